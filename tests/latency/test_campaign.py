"""Several devices, kept results, and measurements that are done again."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_onnx import QUICK, ConvModel

from prune2deploy import progress
from prune2deploy.devices import Devices, LocalSettings, SshSettings
from prune2deploy.errors import DeviceError
from prune2deploy.latency import ProfileOptions, ProfileResult, measure_on
from prune2deploy.latency import profile as really_profile


def board(host: str) -> SshSettings:
    return SshSettings(kind="ssh", host=host, cooldown_s=2.5)


DEVICES: Devices = {
    "local": LocalSettings(),
    "pi5": board("pi"),
    "pi5-two-threads": SshSettings(kind="ssh", host="pi", threads=2),
    "orin": board("orin"),
}


class Measuring:
    """Stands in for `profile`: what it is asked, and a result with the taints of the turn."""

    def __init__(self, real: ProfileResult, taints: Mapping[str, list[tuple[str, ...]]]) -> None:
        self.real = real
        self.taints = {name: list(some) for name, some in taints.items()}
        self.asked: list[str] = []
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()
        self.met = threading.Barrier(2, timeout=5)

    def __call__(self, paths: Any, *, device: str, **given: Any) -> ProfileResult:
        with self.lock:
            self.asked.append(device)
        if device == "broken":
            raise DeviceError("Device 'broken': switched off.")
        if device in ("pi5", "orin") and self.met.parties:
            self.met.wait()
        import dataclasses

        tainted = self.taints.get(device, [()]).pop(0) if self.taints.get(device) else ()
        return dataclasses.replace(self.real, device=device, tainted=tainted)


@pytest.fixture(scope="module")
def options() -> ProfileOptions:
    return ProfileOptions(**QUICK, time_limit_s=60)


@pytest.fixture
def real(conv_model: ConvModel, options: ProfileOptions) -> ProfileResult:
    return really_profile({"net": conv_model(4)}, options=options, devices=DEVICES)


def test_devices_are_measured_at_the_same_time_and_fail_alone(
    real: ProfileResult, conv_model: ConvModel
) -> None:
    measuring = Measuring(real, {})
    known = {**DEVICES, "broken": board("broken")}
    # The barrier lets pi5 and orin pass only together.
    found = measure_on(
        ["pi5", "broken", "orin"], {"net": conv_model(4)}, devices=known, measure=measuring
    )
    assert [result.device for result in found.results] == ["pi5", "orin"]
    assert [(f.device, f.message) for f in found.failures] == [
        ("broken", "Device 'broken': switched off.")
    ]


def test_one_machine_under_two_names_is_measured_one_after_the_other(
    real: ProfileResult, conv_model: ConvModel
) -> None:
    running: list[str] = []

    def measure(paths: Any, *, device: str, **given: Any) -> ProfileResult:
        assert not running, "two at once on one machine"
        running.append(device)
        running.pop()
        return real

    names = ["pi5", "pi5-two-threads"]
    found = measure_on(names, {"net": conv_model(4)}, devices=DEVICES, measure=measure)
    assert len(found.results) == 2


def test_an_unknown_name_is_told_before_anything_is_measured(conv_model: ConvModel) -> None:
    def measure(*given: Any, **named: Any) -> ProfileResult:
        raise AssertionError("measured")

    with pytest.raises(DeviceError, match=r"'pi6'.*Did you mean 'pi5'.*devices add pi6"):
        measure_on(["local", "pi6"], [conv_model(4)], devices=DEVICES, measure=measure)


def test_what_is_disturbed_is_done_again_after_a_pause(
    real: ProfileResult, conv_model: ConvModel
) -> None:
    turns = [("hot", "slow"), ("hot",), ("hot", "slow")]
    measuring = Measuring(real, {"pi5-two-threads": turns})
    pauses: list[float] = []
    known = {"pi5-two-threads": SshSettings(kind="ssh", host="pi", cooldown_s=2.5)}
    found = measure_on(
        ["pi5-two-threads"],
        {"net": conv_model(4)},
        devices=known,
        retries=2,
        measure=measuring,
        sleep=pauses.append,
    )
    assert measuring.asked == ["pi5-two-threads"] * 3
    assert sum(pauses) == pytest.approx(2 * 2.5)
    assert found.results[0].tainted == ("hot",), "the least disturbed one counts"


def test_a_clean_one_is_not_done_again(real: ProfileResult, conv_model: ConvModel) -> None:
    measuring = Measuring(real, {})
    measure_on(["local"], {"net": conv_model(4)}, devices=DEVICES, retries=5, measure=measuring)
    assert measuring.asked == ["local"]


def test_only_what_is_missing_is_measured(
    conv_model: ConvModel, tmp_path: Path, options: ProfileOptions
) -> None:
    asked: list[str] = []

    def measure(paths: Any, **given: Any) -> ProfileResult:
        asked.append(given["device"])
        return really_profile(paths, **given)

    def again(**given: Any) -> Any:
        return measure_on(
            ["local"],
            {"net": conv_model(4)},
            **{"options": options, "devices": DEVICES, "output": tmp_path, **given},
            measure=measure,
        )

    first = again()
    file = tmp_path / "latency/local.json"
    assert json.loads(file.read_text())["answer"] == json.loads(json.dumps(first.results[0].answer))
    second = again()
    assert (asked, second.kept) == (["local"], ("local",))
    assert second.results[0].latencies == first.results[0].latencies
    again(again=True)
    again(options=ProfileOptions(**{**QUICK, "min_samples": 65}, time_limit_s=60))
    assert len(asked) == 3
    file.write_text("{")
    assert again().kept == ()
    assert len(asked) == 4
    conv_model(4).write_bytes(conv_model(5).read_bytes())
    assert not list((tmp_path / "latency").glob("tmp*"))


class Interrupting:
    """Ctrl-C as soon as two measurements show progress."""

    def __init__(self) -> None:
        self.opened = 0

    def open(self, label: str, total: float | None) -> Interrupting:
        return self

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        raise KeyboardInterrupt

    def close(self, task: Any) -> None:
        pass


def test_ctrl_c_in_one_of_them_ends_all(conv_model: ConvModel, options: ProfileOptions) -> None:
    with progress.use(Interrupting()), pytest.raises(KeyboardInterrupt):
        measure_on(["local"], [conv_model(4)], options=options, devices=DEVICES)
