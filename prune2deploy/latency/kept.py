"""Results that are kept: one file per device, read again instead of measuring twice."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prune2deploy.devices import CommonSettings
from prune2deploy.errors import DeviceError
from prune2deploy.latency.layers import LayersResult
from prune2deploy.latency.options import ProfileOptions
from prune2deploy.latency.results import ProfileResult, result_from_answer

FORMAT = 1
FOLDER = "latency"
LAYERS_FOLDER = "layers"
# How a device is reached, and how patient we are: another value would measure the same.
_WITHOUT_EFFECT = {"cooldown_s", "connect_timeout_s", "folder", "key", "known_hosts"}
# These are in the options, which may replace them.
_IN_OPTIONS = {"threads", "cores", "spinning"}


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class ResultFolder:
    """The folder `latency` in `path`, with a file DEVICE.json for each device.

    again: measure anew whatever is there. say: told what was found there, and what becomes of it.
    """

    path: Path
    again: bool = False
    say: Callable[[str], None] = _silent

    def file(self, device: str) -> Path:
        """Where the result of a device is, or will be."""
        return self.path / FOLDER / f"{device}.json"

    def make(self) -> None:
        """Make the folder.

        Raises:
            DeviceError: something else has its name.
        """
        folder = self.path / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as err:
            raise DeviceError(
                f"Results would go to the folder {folder}, but there is a file of that name, or "
                "of a folder above it. Name another --output."
            ) from err

    def find(
        self,
        device: str,
        paths: Mapping[str, Path],
        options: ProfileOptions,
        settings: CommonSettings,
    ) -> ProfileResult | None:
        """Return what was measured before of the same files under the same conditions.

        options: with everything that the device decides filled in.
        """
        path = self.file(device)
        if self.again or not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            other = _difference(record, device, paths, options, settings)
            if other is None:
                result = _result(record, device, paths, options)
                when = str(record["measured"])
        except (ValueError, LookupError, TypeError, AttributeError):
            other = "is damaged, or no result of this program"
        if other is not None:
            self.say(f"{device}: {path} {other}; measured anew")
            return None
        self.say(f"{device}: measured before, at {when}; --again measures anew")
        return result

    def keep(self, result: ProfileResult, settings: CommonSettings) -> None:
        """Write a result, whole or not at all; what was there is kept as DEVICE.json.old."""
        now = datetime.datetime.now().astimezone()
        record = {
            "format": FORMAT,
            "device": result.device,
            "measured": now.isoformat(timespec="seconds"),
            "attempts": result.attempts,
            "tainted": list(result.tainted),
            "models": [{"name": one.name, "sha256": one.sha256} for one in result.latencies],
            "options": _plain_options(result.options),
            "settings": _plain_settings(settings),
            "answer": result.answer,
        }
        path = self.file(result.device)
        part = path.with_name(path.name + ".tmp")
        part.write_text(json.dumps(record), encoding="utf-8")
        if path.exists():
            os.replace(path, path.with_name(path.name + ".old"))
        os.replace(part, path)


def keep_layers(result: LayersResult, folder: Path) -> Path:
    """Write the times of layers to layers/DEVICE.json in a folder, whole or not at all.

    Raises:
        DeviceError: something else has the name of the folder.
    """
    path = folder / LAYERS_FOLDER / f"{result.device}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as err:
        raise DeviceError(
            f"Results would go to the folder {path.parent}, but there is a file of that name, or "
            "of a folder above it. Name another --output."
        ) from err
    now = datetime.datetime.now().astimezone()
    record = {
        "format": FORMAT,
        "measured": now.isoformat(timespec="seconds"),
        "sha256": [_sha256(one.path) for one in result.models],
        **result.to_dict(),
    }
    part = path.with_name(path.name + ".tmp")
    part.write_text(json.dumps(record), encoding="utf-8")
    os.replace(part, path)
    return path


def _difference(
    record: Mapping[str, Any],
    device: str,
    paths: Mapping[str, Path],
    options: ProfileOptions,
    settings: CommonSettings,
) -> str | None:
    """Say what keeps a record from being the measurement that is asked for, or None."""
    if record["format"] != FORMAT:
        return f"has format {record['format']!r}, and this version reads {FORMAT}"
    if record["device"] != device:
        return f"is of the device '{record['device']}'"
    if [one["sha256"] for one in record["models"]] != list(map(_sha256, paths.values())):
        return "is of other models"
    if record["answer"].get("in_turns") is False:
        return "is trtexec's, whose version decides what it times"
    for name, wanted in (
        ("options", _plain_options(options)),
        ("settings", _plain_settings(settings)),
    ):
        found = record[name]
        keys = sorted(key for key in {**found, **wanted} if found.get(key) != wanted.get(key))
        if keys:
            return f"was measured with other {name} ({', '.join(keys)})"
    return None


def _result(
    record: Mapping[str, Any], device: str, paths: Mapping[str, Path], options: ProfileOptions
) -> ProfileResult:
    """Judge the kept samples again. The files may have other names by now."""
    answer = record["answer"]
    facts = [{**one, "name": name} for one, name in zip(answer["models"], paths, strict=True)]
    result = result_from_answer(device, paths, options, {**answer, "models": facts})
    return replace(result, tainted=tuple(record["tainted"]), attempts=int(record["attempts"]))


def _plain_options(options: ProfileOptions) -> dict[str, Any]:
    given = {key: value for key, value in asdict(options).items() if key != "time_limit_s"}
    plain: dict[str, Any] = json.loads(json.dumps(given))
    return plain


def _plain_settings(settings: CommonSettings) -> dict[str, Any]:
    plain = settings.model_dump(mode="json", exclude=_WITHOUT_EFFECT | _IN_OPTIONS)
    # Without a host it is this machine, and the folder may have come from another one.
    return {"host": platform.node(), **plain}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
