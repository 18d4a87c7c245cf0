"""Several devices at once: together, apart from one another, and measured once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_profile import measured

from prune2deploy import progress
from prune2deploy.devices import Devices, LocalSettings, SshSettings
from prune2deploy.errors import DeviceError
from prune2deploy.latency import ProfileOptions, ProfileResult, ResultFolder, campaign
from prune2deploy.latency.campaign import best_of, cool_down, one_per_machine, profile_devices

Measure = Callable[..., ProfileResult]


def ssh(host: str, **more: Any) -> SshSettings:
    return SshSettings(kind="ssh", host=host, **more)


KNOWN: Devices = {"local": LocalSettings(), "pi5": ssh("pi5.lan"), "orin": ssh("10.0.0.7")}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "original.onnx", tmp_path / "pruned.onnx"]
    for path in paths:
        path.write_text(path.stem)
    return paths


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Measure], None]:
    """Return a function that puts this one in the place of a measurement."""

    def put(measure: Measure) -> None:
        monkeypatch.setattr(campaign, "profile", measure)

    return put


@pytest.fixture
def calls(stand_in: Callable[[Measure], None]) -> list[str]:
    """Have every measurement succeed at once; the devices that were measured."""
    found: list[str] = []

    def measure(paths: Mapping[str, Path], *, device: str, **more: Any) -> ProfileResult:
        found.append(device)
        return measured(paths, device=device, **more)

    stand_in(measure)
    return found


def test_devices_are_measured_at_the_same_time(models: list[Path], stand_in: Any) -> None:
    meeting = threading.Barrier(3, timeout=20)  # nobody gets past it alone

    def measure(*args: Any, **more: Any) -> ProfileResult:
        meeting.wait()
        return measured(*args, **more)

    stand_in(measure)
    done = profile_devices(models, ["orin", "local", "pi5"], devices=KNOWN)
    assert [one.device for one in done.results] == ["orin", "local", "pi5"]
    assert done.failures == ()


def test_names_of_one_machine_wait_for_one_another(models: list[Path], stand_in: Any) -> None:
    known: Devices = {**KNOWN, "fast": ssh("PI5.lan", threads=4)}
    running: list[str] = []
    alone: list[bool] = []

    def measure(*args: Any, device: str, **more: Any) -> ProfileResult:
        running.append(device)
        time.sleep(0.02)
        alone.append(not {"pi5", "fast"} <= set(running))
        running.remove(device)
        return measured(*args, device=device, **more)

    stand_in(measure)
    profile_devices(models, ["pi5", "orin", "fast"], devices=known)
    assert alone == [True, True, True]


def test_machines_are_told_apart_by_host_and_this_one_has_several() -> None:
    known: Devices = {
        **KNOWN,
        "other": LocalSettings(threads=2),
        "loop": ssh("localhost", port=2222),
        "again": ssh("Pi5.lan", user="x"),
    }
    names = ["pi5", "local", "orin", "other", "loop", "again"]
    assert one_per_machine(names, known) == [["pi5", "again"], ["local", "other", "loop"], ["orin"]]


def test_each_device_decides_what_the_options_leave_open(models: list[Path], calls: Any) -> None:
    known: Devices = {"local": LocalSettings(threads=2), "pi5": ssh("h", threads=4, cores=[0, 1])}
    done = profile_devices(models, ["local", "pi5"], devices=known)
    assert [one.options.threads for one in done.results] == [2, 4]


def test_a_device_that_fails_fails_only_its_part(models: list[Path], stand_in: Any) -> None:
    def measure(*args: Any, device: str, **more: Any) -> ProfileResult:
        if device == "pi5":
            raise DeviceError("Device 'pi5': no answer within 15 s.")
        return measured(*args, device=device, **more)

    stand_in(measure)
    seen: list[str] = []
    done = profile_devices(
        models,
        ["pi5", "local"],
        devices=KNOWN,
        finished=lambda result: seen.append(result.device),
    )
    assert [one.device for one in done.results] == seen == ["local"]
    assert [vars(one) for one in done.failures] == [
        {"device": "pi5", "message": "Device 'pi5': no answer within 15 s."}
    ]


def test_an_error_of_our_own_is_raised_when_the_others_are_done(
    models: list[Path], stand_in: Any, tmp_path: Path
) -> None:
    def measure(*args: Any, device: str, **more: Any) -> ProfileResult:
        if device == "pi5":
            raise ZeroDivisionError
        time.sleep(0.05)
        return measured(*args, device=device, **more)

    stand_in(measure)
    with pytest.raises(ZeroDivisionError):
        profile_devices(
            models, ["pi5", "local"], devices=KNOWN, folder=ResultFolder(tmp_path / "out")
        )
    assert (tmp_path / "out/latency/local.json").is_file()


def test_an_unknown_name_is_told_before_anything_is_measured(
    models: list[Path], calls: list[str]
) -> None:
    with pytest.raises(DeviceError, match=r"'pi6'.*Did you mean 'pi5'"):
        profile_devices(models, ["local", "pi6"], devices=KNOWN)
    with pytest.raises(DeviceError, match="No model file at"):
        profile_devices([*models, Path("gone.onnx")], ["local"], devices=KNOWN)
    assert calls == []


class Case:
    """One folder, asked twice."""

    def __init__(self, models: list[Path], folder: Path) -> None:
        self.models, self.folder, self.said = models, folder, list[str]()
        self.known = dict(KNOWN)
        self.options = ProfileOptions()

    def ask(self, *on: str, again: bool = False) -> campaign.Campaign:
        self.said.clear()
        return profile_devices(
            self.models,
            on,
            options=self.options,
            devices=self.known,
            folder=ResultFolder(self.folder, again, self.said.append),
        )

    @property
    def file(self) -> Path:
        return self.folder / "latency" / "pi5.json"

    def edit(self, **changes: Any) -> None:
        self.file.write_text(json.dumps({**json.loads(self.file.read_text()), **changes}))


@pytest.fixture
def case(models: list[Path], tmp_path: Path, calls: list[str]) -> Case:
    return Case(models, tmp_path / "out")


def test_only_what_is_missing_is_measured(case: Case, calls: list[str]) -> None:
    first = case.ask("pi5")
    assert case.said == []
    done = case.ask("pi5", "local")
    assert calls == ["pi5", "local"]
    assert [one.device for one in done.results] == ["pi5", "local"]
    assert done.results[0] == first.results[0]
    when = json.loads(case.file.read_text())["measured"]
    assert case.said == [f"pi5: measured before, at {when}; --again measures anew"]
    case.ask("pi5", again=True)
    assert calls == ["pi5", "local", "pi5"]


def test_the_file_holds_all_that_was_measured(case: Case) -> None:
    case.ask("pi5")
    record = json.loads(case.file.read_text())
    assert record["format"] == 1
    assert record["answer"]["turns"][1] == {"block": 0, "model": 1, "samples_ns": [1_000_000] * 10}
    assert [one["sha256"] for one in record["models"]] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in case.models
    ]
    assert record["options"]["threads"] == 1
    assert record["settings"]["host"] == "pi5.lan"
    assert sorted(path.name for path in case.file.parent.iterdir()) == ["pi5.json"]


def test_taint_and_attempts_are_read_back(case: Case) -> None:
    case.ask("pi5")
    case.edit(tainted=["it was hot"], attempts=3)
    (result,) = case.ask("pi5").results
    assert (result.tainted, result.attempts) == (("it was hot",), 3)


def test_renamed_files_are_the_same_models_under_new_names(case: Case, calls: list[str]) -> None:
    case.ask("pi5")
    case.models = [path.rename(path.with_stem("new_" + path.stem)) for path in case.models]
    (result,) = case.ask("pi5").results
    assert calls == ["pi5"]
    assert [one.name for one in result.latencies] == ["new_original", "new_pruned"]
    assert (result.speedups[0].baseline, result.speedups[0].other) == ("new_original", "new_pruned")


def another_model(case: Case) -> None:
    case.models[1].write_text("retrained")


def another_order(case: Case) -> None:
    case.models.reverse()


def other_options(case: Case) -> None:
    case.options = ProfileOptions(min_time_s=7)


def other_threads_on_the_device(case: Case) -> None:
    case.known["pi5"] = ssh("pi5.lan", threads=2)


def another_host(case: Case) -> None:
    case.known["pi5"] = ssh("pi6.lan")


def another_format(case: Case) -> None:
    case.edit(format=2)


def another_device(case: Case) -> None:
    case.edit(device="orin")


def cut_short(case: Case) -> None:
    case.file.write_text(case.file.read_text()[:-30])


def foreign(case: Case) -> None:
    case.file.write_text("[1, 2]")


def without_samples(case: Case) -> None:
    case.edit(answer={"models": []})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_model, "is of other models"),
        (another_order, "is of other models"),
        (other_options, "was measured with other options (min_time_s)"),
        (other_threads_on_the_device, "was measured with other options (threads)"),
        (another_host, "was measured with other settings (host)"),
        (another_format, "has format 2, and this version reads 1"),
        (another_device, "is of the device 'orin'"),
        (cut_short, "is damaged, or no result of this program"),
        (foreign, "is damaged, or no result of this program"),
        (without_samples, "is damaged, or no result of this program"),
    ],
)
def test_what_is_something_else_is_measured_anew_and_the_old_file_stays(
    case: Case, calls: list[str], change: Callable[[Case], None], said: str
) -> None:
    case.ask("pi5")
    change(case)
    before = case.file.read_text()
    done = case.ask("pi5")
    assert calls == ["pi5", "pi5"]
    assert case.said == [f"pi5: {case.file} {said}; measured anew"]
    assert len(done.results) == 1
    assert case.file.with_name("pi5.json.old").read_text() == before
    case.ask("pi5")
    assert calls == ["pi5", "pi5"], "what was measured anew is kept"


def test_settings_that_measure_nothing_else_are_no_reason_to_measure_anew(
    case: Case, calls: list[str]
) -> None:
    case.ask("pi5")
    case.known["pi5"] = ssh("pi5.lan", cooldown_s=1, connect_timeout_s=60, key="other")
    case.options = ProfileOptions(time_limit_s=60)
    case.ask("pi5")
    assert calls == ["pi5"]


def test_results_of_another_machine_are_not_those_of_this_one(
    case: Case, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case.ask("local")
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    case.ask("local")
    assert calls == ["local", "local"]
    assert "other settings (host)" in case.said[0]


def test_a_file_where_the_folder_should_be(case: Case, calls: list[str]) -> None:
    case.folder.write_text("mine")
    with pytest.raises(DeviceError, match=r"folder .*latency, but there is a file.*--output"):
        case.ask("pi5")
    assert calls == []


def test_a_result_is_kept_while_others_are_still_measured(
    models: list[Path], stand_in: Any, tmp_path: Path
) -> None:
    file = tmp_path / "out/latency/local.json"

    def measure(*args: Any, device: str, **more: Any) -> ProfileResult:
        end = time.monotonic() + 20
        while device == "pi5" and not file.exists():
            assert time.monotonic() < end, "local's result does not come before pi5 ends"
            time.sleep(0.005)
        return measured(*args, device=device, **more)

    stand_in(measure)
    folder = ResultFolder(tmp_path / "out")
    done = profile_devices(models, ["pi5", "local"], devices=KNOWN, folder=folder)
    assert len(done.results) == 2


@pytest.mark.parametrize(
    ("reasons", "retries", "kept", "attempts", "pauses"),
    [
        ([0], 2, 0, 1, 0),
        ([2, 1, 0, 1], 3, 2, 3, 2),  # it ends with the first that is not tainted
        ([2, 1, 3], 2, 1, 3, 2),
        ([1, 1], 1, 1, 2, 1),  # of equals the last
        ([1, 0], 0, 0, 1, 0),
    ],
)
def test_the_least_tainted_of_the_attempts_is_kept(
    models: list[Path], reasons: list[int], retries: int, kept: int, attempts: int, pauses: int
) -> None:
    paths = {path.stem: path for path in models}
    results = [
        measured(
            paths,
            device="local",
            options=ProfileOptions(seed=number),
            devices=KNOWN,
            tainted=("hot",) * count,
        )
        for number, count in enumerate(reasons)
    ]
    coming = iter(results)
    paused: list[None] = []
    best = best_of(lambda: next(coming), retries=retries, pause=lambda: paused.append(None))
    assert best.options.seed == kept
    assert best.attempts == attempts
    assert len(paused) == pauses


def test_an_attempt_that_fails_leaves_the_result_before_it(
    models: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def outcomes() -> Any:
        yield measured(
            {"a": models[0]},
            device="local",
            options=ProfileOptions(),
            devices=KNOWN,
            tainted=("hot",),
        )
        raise DeviceError("gone")

    coming = outcomes()
    best = best_of(lambda: next(coming), retries=5, pause=lambda: None)
    assert (best.tainted, best.attempts) == (("hot",), 2)
    assert "attempt 2 failed" in caplog.text
    with pytest.raises(DeviceError, match="gone"):
        best_of(lambda: (_ for _ in ()).throw(DeviceError("gone")), retries=5, pause=lambda: None)


def test_between_attempts_the_device_cools_down_for_its_time(
    models: list[Path], stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[tuple[str, float]] = []
    monkeypatch.setattr(campaign, "cool_down", lambda name, s: paused.append((name, s)))
    stand_in(lambda *args, **more: measured(*args, **more, tainted=("hot",)))
    known: Devices = {"pi5": ssh("h", cooldown_s=90)}
    (result,) = profile_devices(models, ["pi5"], devices=known, retries=2).results
    assert paused == [("pi5", 90.0)] * 2
    assert result.attempts == 3


class Seen:
    """A listener that notes labels and how far the work went."""

    def __init__(self) -> None:
        self.labels: list[tuple[str, float | None]] = []
        self.done = 0.0

    def open(self, label: str, total: float | None) -> Seen:
        self.labels.append((label, total))
        return self

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        self.done += steps

    def close(self, task: progress.Task) -> None:
        assert task is self


def test_cooling_down_is_shown() -> None:
    seen, slept = Seen(), list[float]()
    with progress.use(seen):
        cool_down("pi5", 2.5, slept.append)
    assert seen.labels == [("pi5: cooling down", 2.5)]
    assert slept == [1.0, 1.0, 0.5]
    assert seen.done == pytest.approx(2.5)


def test_work_on_threads_is_shown_to_the_same_listener(models: list[Path], stand_in: Any) -> None:
    def measure(*args: Any, device: str, **more: Any) -> ProfileResult:
        with progress.task(f"Measuring on {device}", 1.0) as shown:
            shown.advance(1.0)
        return measured(*args, device=device, **more)

    stand_in(measure)
    seen = Seen()
    with progress.use(seen):
        profile_devices(models, ["pi5", "local"], devices=KNOWN)
    assert sorted(seen.labels) == [("Measuring on local", 1.0), ("Measuring on pi5", 1.0)]


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
from fake_profile import measured
from prune2deploy import progress
from prune2deploy.devices import LocalSettings, SshSettings
from prune2deploy.latency import ResultFolder, campaign

known = {"local": LocalSettings(), "pi5": SshSettings(kind="ssh", host="pi5.lan")}
out, models = Path(sys.argv[1]), [Path(sys.argv[2])]

def measure(paths, *, device, **more):
    if device == "local":
        return measured(paths, device=device, **more)
    with progress.task("Measuring", 1.0) as shown:
        while not (out / "latency/local.json").exists():
            time.sleep(0.005)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                shown.advance(0)
                time.sleep(0.005)
        finally:
            print("pi5 ended")

campaign.profile = measure
try:
    campaign.profile_devices(models, ["pi5", "local"], devices=known, folder=ResultFolder(out))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_what_goes_on_and_keeps_what_is_finished(
    models: list[Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out"), str(models[0])],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["pi5 ended", "interrupted"], done.stderr
    assert [path.name for path in (tmp_path / "out/latency").iterdir()] == ["local.json"]
