"""Measure the same models on several devices, keep what is there, and try again what was disturbed.

Each device's result goes into a file of its own as soon as there is one. Who measures again gets
the kept result, as long as models, options and device are the same.
"""

from __future__ import annotations

import contextvars
import datetime
import hashlib
import json
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prune2deploy import progress
from prune2deploy.devices import CommonSettings, Devices, SshSettings, load_devices
from prune2deploy.errors import DeviceError, Prune2DeployError, nearest_name_hint
from prune2deploy.latency.profile import (
    ProfileOptions,
    ProfileResult,
    named_models,
    options_on,
    profile,
    result_from_answer,
)

log = logging.getLogger(__name__)

FOLDER = "latency"
_FORMAT = 1

Measure = Callable[..., ProfileResult]


@dataclass(frozen=True)
class Failure:
    """A device without a result, and why."""

    device: str
    message: str


@dataclass(frozen=True)
class Campaign:
    """What came of it, in the order of the devices. kept: those that were measured before."""

    results: tuple[ProfileResult, ...]
    failures: tuple[Failure, ...]
    kept: tuple[str, ...]


def measure_on(
    names: Sequence[str],
    models: Sequence[Path] | Mapping[str, Path],
    *,
    options: ProfileOptions | None = None,
    devices: Devices | None = None,
    retries: int = 0,
    output: Path | None = None,
    again: bool = False,
    measure: Measure = profile,
    sleep: Callable[[float], None] = time.sleep,
) -> Campaign:
    """Measure models on each device, several machines at the same time.

    Args:
        names: of devices. A device that fails, fails alone.
        models, options, devices: as for `profile`.
        retries: how often a tainted measurement is done again, after the device's cooldown_s; the
            one with the fewest reasons counts.
        output: folder in whose folder `latency` each result is kept, and looked for; None: nowhere.
        again: measure also what is there.
        measure, sleep: `profile` and `time.sleep`, but for tests.

    Raises:
        DeviceError: a name that nobody knows, or no model; nothing is measured then.
    """
    known = load_devices() if devices is None else devices
    check_names(names, known)
    paths = named_models(models)
    asked = options or ProfileOptions()
    stop = threading.Event()

    def one(name: str) -> tuple[ProfileResult, bool]:
        file = None if output is None else output / FOLDER / f"{name}.json"
        on_device = options_on(known[name], asked)
        same = _same(paths, on_device, known[name])
        if file is not None and not again:
            found = _kept(file, name, paths, on_device, same)
            if found is not None:
                return found, True
        result = _with_retries(name, paths, asked, known, retries, measure, sleep, stop)
        if file is not None:
            _keep(file, result, same)
        return result, False

    outcomes = _in_parallel(list(dict.fromkeys(names)), known, one, stop)
    done = {n: o for n, o in outcomes.items() if not isinstance(o, Failure)}
    return Campaign(
        results=tuple(result for result, _ in done.values()),
        failures=tuple(o for o in outcomes.values() if isinstance(o, Failure)),
        kept=tuple(name for name, (_, kept) in done.items() if kept),
    )


def check_names(names: Sequence[str], known: Mapping[str, Any]) -> None:
    """Refuse names of no device.

    Raises:
        DeviceError: the first of them.
    """
    for name in names:
        if name not in known:
            raise DeviceError(
                f"No device is named '{name}'. {nearest_name_hint(name, known)} Add it with: "
                f"prune2deploy devices add {name} --host HOST"
            )


def _in_parallel(
    names: Sequence[str],
    known: Devices,
    one: Callable[[str], tuple[ProfileResult, bool]],
    stop: threading.Event,
) -> dict[str, tuple[ProfileResult, bool] | Failure]:
    """Different machines at once, devices that are the same machine one after the other."""
    machines: dict[str, list[str]] = {}
    for name in names:
        settings = known[name]
        place = settings.host if isinstance(settings, SshSettings) else "local"
        machines.setdefault(place, []).append(name)
    outcomes: dict[str, tuple[ProfileResult, bool] | Failure] = {}
    broken: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def run(some: Sequence[str]) -> None:
        for name in some:
            try:
                outcomes[name] = one(name)
            except Prune2DeployError as err:
                outcomes[name] = Failure(name, str(err))
            except BaseException as err:
                broken.put(err)
                return

    if len(machines) == 1:
        run(names)
    else:
        # Contexts are copied, so that progress is shown where it is for this thread.
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(run, some), daemon=True)
            for some in machines.values()
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            stop.set()  # the next sign of life of each measurement ends it
            for thread in threads:
                thread.join(5)
            raise
    if not broken.empty():
        raise broken.get()
    return {name: outcomes[name] for name in names}


def _with_retries(
    name: str,
    paths: Mapping[str, Path],
    options: ProfileOptions,
    known: Devices,
    retries: int,
    measure: Measure,
    sleep: Callable[[float], None],
    stop: threading.Event,
) -> ProfileResult:
    best: ProfileResult | None = None
    for attempt in range(1 + retries):
        if attempt:
            _cool_down(name, known[name].cooldown_s, sleep)
        result = measure(paths, device=name, options=options, devices=known, stop=stop)
        if best is None or len(result.tainted) <= len(best.tainted):
            best = result
        if not result.tainted:
            break
        log.warning("%s: tainted: %s", name, "; ".join(result.tainted))
    assert best is not None
    return best


def _cool_down(name: str, seconds: float, sleep: Callable[[float], None]) -> None:
    with progress.task(f"Letting {name} cool down", seconds) as shown:
        left = seconds
        while left > 0:
            sleep(min(1.0, left))
            shown.advance(min(1.0, left))
            left -= 1.0


def _same(
    paths: Mapping[str, Path], options: ProfileOptions, settings: CommonSettings
) -> dict[str, Any]:
    """What must be equal for a kept result to count."""
    models = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    device = settings.model_dump(mode="json", exclude={"cooldown_s", "connect_timeout_s", "folder"})
    same = {"models": models, "options": asdict(options), "device": device}
    plain: dict[str, Any] = json.loads(json.dumps(same))
    return plain


def _kept(
    file: Path,
    name: str,
    paths: Mapping[str, Path],
    options: ProfileOptions,
    same: Mapping[str, Any],
) -> ProfileResult | None:
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        if content["format"] != _FORMAT or content["same"] != same:
            log.info("%s: %s is of other models or options; measuring anew", name, file)
            return None
        result = result_from_answer(name, paths, options, content["answer"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        log.warning("%s: %s is damaged (%s) and is measured anew.", name, file, err)
        return None
    log.info("%s: measured before, on %s", name, content["measured"])
    return result


def _keep(file: Path, result: ProfileResult, same: Mapping[str, Any]) -> None:
    content = {
        "format": _FORMAT,
        "measured": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "same": same,
        "answer": result.answer,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as stream:
        json.dump(content, stream)
    os.replace(stream.name, file)
