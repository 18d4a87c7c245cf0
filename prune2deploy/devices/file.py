"""devices.yaml: the devices of a project, or of a user, by name.

The file in the working folder comes first, then the one in the user's configuration folder; a name
that both have is the working folder's. `local` is always there.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import TypeAdapter, ValidationError

from prune2deploy.devices.settings import CommonSettings, LocalSettings, Settings, SshSettings
from prune2deploy.errors import DeviceError, nearest_name_hint
from prune2deploy.yaml_text import YamlError, YamlText, read_yaml, write_yaml

FILE = "devices.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADAPTER: TypeAdapter[LocalSettings | SshSettings] = TypeAdapter(Settings)
_KINDS: dict[str, type[CommonSettings]] = {"local": LocalSettings, "ssh": SshSettings}

Devices = dict[str, LocalSettings | SshSettings]


def user_file() -> Path:
    """Where the user's own devices are."""
    return platformdirs.user_config_path("prune2deploy") / FILE


def device_files() -> list[Path]:
    """Where devices are looked for, the one that counts most first."""
    return [Path.cwd() / FILE, user_file()]


def load_devices() -> Devices:
    """Read every devices.yaml there is.

    Raises:
        DeviceError: one is not as it should be; the message has file, line and key.
    """
    found: Devices = {"local": LocalSettings()}
    for path in reversed(device_files()):
        if path.is_file():
            found |= read_devices(path)
    return found


def read_devices(path: Path) -> Devices:
    """Read one file.

    Raises:
        DeviceError: see `load_devices`.
    """
    try:
        text = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError) as err:
        raise DeviceError(f"{path} cannot be read ({err}).") from err
    except YamlError as err:
        where = path if err.line is None else f"{path}:{err.line}"
        raise DeviceError(f"{where}: {err}") from err
    problems = [f"{path}:{line}: {_dotted(key)}: {what}" for line, key, what in text.problems]
    devices: Devices = {}
    for name, given in _entries(path, text).items():
        try:
            devices[name] = parse_device(name, given, path.parent)
        except ValidationError as err:
            problems += [
                f"{path}:{_line(text, name, key)}: {_dotted(('devices', name, *key))}: {what}"
                for key, what in _findings(err, given)
            ]
        except ValueError as err:
            problems.append(f"{path}:{_line(text, name, ())}: devices.{name}: {err}")
    if problems:
        raise DeviceError("\n".join(problems))
    return devices


def parse_device(name: str, given: Any, folder: Path) -> LocalSettings | SshSettings:
    """Check what one entry says. Relative paths are seen from `folder`, the file's.

    Raises:
        ValueError: name or entry; a pydantic.ValidationError where keys are to blame.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a name is made of letters, digits, '.', '_' and '-', found '{name}'")
    if not isinstance(given, dict):
        raise ValueError(f"expected keys such as kind and host, found {given!r}")
    if given.get("kind") not in _KINDS:
        raise ValueError(f"kind should be local or ssh, found {given.get('kind')!r}")
    if name == "local" and given["kind"] != "local":
        raise ValueError("'local' is this machine; give the other one another name")
    paths = {
        key: str(folder / Path(value).expanduser())
        for key, value in given.items()
        if key in ("key", "known_hosts") and isinstance(value, str)
    }
    return _ADAPTER.validate_python({**given, **paths})


def add_device(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Write a device into a file, which is made if need be.

    Raises:
        DeviceError: it has one of this name, is wrong itself, or the entry is.
    """
    known = read_devices(path) if path.is_file() else {}
    if name in known:
        raise DeviceError(
            f"{path} has a device '{name}' already. Edit it there, or choose another name."
        )
    try:
        parse_device(name, dict(entry), path.parent)
    except ValidationError as err:
        told = "; ".join(f"{_dotted(key)}: {what}" for key, what in _findings(err, dict(entry)))
        raise DeviceError(f"Device '{name}': {told}") from err
    except ValueError as err:
        raise DeviceError(f"Device '{name}': {err}") from err
    # Appended, so that the comments of who wrote the file stay.
    before = path.read_text() if path.is_file() else ""
    block = "".join(f"  {line}\n" for line in write_yaml({name: dict(entry)}).splitlines())
    if known:
        text = before.rstrip("\n") + "\n" + block
    else:
        text = before + ("" if not before or before.endswith("\n") else "\n") + "devices:\n" + block
    _replace(path, text)
    if name not in read_devices(path):
        _replace(path, before)
        raise DeviceError(
            f"{path}: cannot add to it, since 'devices' is not its last key. Put these lines "
            f"under 'devices:' yourself:\n{block}"
        )


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=FILE, delete=False) as stream:
        stream.write(text)
    os.replace(stream.name, path)


def _entries(path: Path, text: YamlText) -> dict[str, Any]:
    value = {} if text.value is None else text.value
    if not isinstance(value, dict) or set(value) - {"devices"}:
        raise DeviceError(f"{path}: expected one key, 'devices', found {_shown(value)}.")
    entries = value.get("devices") or {}
    if not isinstance(entries, dict):
        raise DeviceError(f"{path}: 'devices' should hold one entry per name, found {entries!r}.")
    return entries


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)


def _findings(err: ValidationError, given: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], str]]:
    found = []
    known = _KINDS[given["kind"]].model_fields
    for details in err.errors():
        # The first part is the kind, by which pydantic chose the class.
        key = tuple(details["loc"][1:])
        if details["type"] == "extra_forbidden":
            what = f"unknown key. {nearest_name_hint(str(key[-1]), known)}"
        elif details["type"] == "missing":
            what = f"missing. {known[str(key[0])].description}"
        else:
            what = f"{details['msg'].replace('Input should', 'should')}, found {details['input']!r}"
        found.append((key, what))
    return found


def _line(text: YamlText, name: str, key: tuple[Any, ...]) -> int:
    whole = ("devices", name, *key)
    while whole not in text.lines:
        whole = whole[:-1]
    return text.lines[whole]


def _dotted(key: tuple[Any, ...]) -> str:
    return ".".join(map(str, key))
