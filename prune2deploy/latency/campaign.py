"""Measure on several devices at once. What one of them gets wrong does not stop the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prune2deploy import progress
from prune2deploy.devices import CommonSettings, Devices, SshSettings, load_devices, open_device
from prune2deploy.errors import DeviceError
from prune2deploy.latency.kept import ResultFolder
from prune2deploy.latency.options import ProfileOptions, options_on
from prune2deploy.latency.profile import named_models, profile
from prune2deploy.latency.results import ProfileResult
from prune2deploy.latency.side_by_side import side_by_side

_log = logging.getLogger(__name__)

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Failure:
    """A device that could not be measured, and why."""

    device: str
    message: str


@dataclass(frozen=True)
class Campaign:
    """What came of it, both in the order in which the devices were named."""

    results: tuple[ProfileResult, ...]
    failures: tuple[Failure, ...]


def _ignore(result: ProfileResult) -> None:
    pass


def profile_devices(
    models: Sequence[Path] | Mapping[str, Path],
    on: Sequence[str],
    *,
    options: ProfileOptions | None = None,
    devices: Devices | None = None,
    retries: int = 0,
    folder: ResultFolder | None = None,
    finished: Callable[[ProfileResult], None] = _ignore,
) -> Campaign:
    """Measure ONNX files on devices in parallel; names of one machine wait for one another.

    Args:
        models, options, devices: see `profile`.
        on: names of devices.
        retries: how often a tainted result is measured again.
        folder: where each result is kept as soon as it is there; what is there already is not
            measured again. None: nothing is kept.
        finished: gets each result as soon as it is there, possibly on another thread.

    Raises:
        DeviceError: a file or a device does not exist; nothing was measured. What a device does
            wrong later is among the failures.
    """
    options = options or ProfileOptions()
    paths = named_models(models)
    known = load_devices() if devices is None else devices
    names = list(dict.fromkeys(on))
    for name in names:
        open_device(name, known)  # nothing is connected yet: only unknown names are found
    outcomes: dict[str, ProfileResult | Failure] = {}
    if folder is not None:
        for name, kept in _kept(folder, names, paths, options, known).items():
            outcomes[name] = kept
            finished(kept)

    def measure(name: str) -> None:
        try:
            result = best_of(
                lambda: profile(paths, device=name, options=options, devices=known),
                retries=retries,
                pause=lambda: cool_down(name, known[name].cooldown_s),
            )
        except DeviceError as err:
            outcomes[name] = Failure(name, str(err))
            return
        outcomes[name] = result
        finished(result)
        if folder is not None:
            folder.keep(result, known[name])

    missing = [name for name in names if name not in outcomes]
    side_by_side(
        [
            [lambda name=name: measure(name) for name in chain]  # type: ignore[misc]
            for chain in one_per_machine(missing, known)
        ]
    )
    ordered = [outcomes[name] for name in names]
    return Campaign(
        tuple(one for one in ordered if isinstance(one, ProfileResult)),
        tuple(one for one in ordered if isinstance(one, Failure)),
    )


def _kept(
    folder: ResultFolder,
    names: Sequence[str],
    paths: Mapping[str, Path],
    options: ProfileOptions,
    known: Devices,
) -> dict[str, ProfileResult]:
    """Make the folder, and return what is in it already."""
    folder.make()
    found = {
        name: folder.find(name, paths, options_on(known[name], options), known[name])
        for name in names
    }
    return {name: result for name, result in found.items() if result is not None}


def one_per_machine(names: Sequence[str], known: Mapping[str, CommonSettings]) -> list[list[str]]:
    """Group devices that are one machine, as far as their hosts tell.

    Where they do not tell, the lock of the probe lets one wait for the other.
    """
    chains: dict[str, list[str]] = {}
    for name in names:
        settings = known[name]
        host = settings.host.lower() if isinstance(settings, SshSettings) else "localhost"
        chains.setdefault("localhost" if host in _THIS_MACHINE else host, []).append(name)
    return list(chains.values())


def best_of(
    measure: Callable[[], ProfileResult], *, retries: int, pause: Callable[[], None]
) -> ProfileResult:
    """Measure until a result is not tainted, at most 1 + retries times, with pauses between.

    Returns:
        The result with the fewest reasons to doubt it, the last of these, with `attempts`.

    Raises:
        DeviceError: the first attempt fails. A later one that fails ends the attempts.
    """
    best = measure()
    attempts = 1
    while best.tainted and attempts <= retries:
        pause()
        attempts += 1
        try:
            result = measure()
        except DeviceError as err:
            _log.warning(
                "%s: attempt %d failed, and the tainted result before it is kept. %s",
                best.device,
                attempts,
                err,
            )
            break
        if len(result.tainted) <= len(best.tainted):
            best = result
    return replace(best, attempts=attempts)


def cool_down(device: str, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait, visibly, so that what heated or throttled a device can pass."""
    with progress.task(f"{device}: cooling down", seconds) as shown:
        left = seconds
        while left > 0:
            step = min(left, 1.0)
            sleep(step)
            shown.advance(step)
            left -= step
