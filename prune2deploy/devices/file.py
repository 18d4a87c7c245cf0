"""devices.yaml: the devices of a project, or of a user, by name.

The file in the working folder comes first, then the one in the user's configuration folder; a name
that both have is the working folder's. `local` is always there.
"""

from __future__ import annotations

import os
import re
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


def file_of(name: str) -> Path | None:
    """Return the file whose entry of this name counts; None: it is only a default, or unknown.

    Raises:
        DeviceError: see `load_devices`.
    """
    files = [path for path in device_files() if path.is_file()]
    return next((path for path in files if name in read_devices(path)), None)


def read_devices(path: Path) -> Devices:
    """Read one file.

    Raises:
        DeviceError: see `load_devices`.
    """
    return _parse_file(path, _read(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise DeviceError(f"{path} cannot be read ({err}).") from err


def _parse_yaml(path: Path, content: str) -> YamlText:
    try:
        return read_yaml(content)
    except YamlError as err:
        where = path if err.line is None else f"{path}:{err.line}"
        raise DeviceError(f"{where}: {err}") from err


def _parse_file(path: Path, content: str) -> Devices:
    """Check the text of a file. path: for messages, and for what relative paths are seen from."""
    text = _parse_yaml(path, content)
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
    if given.get("kind") not in list(_KINDS):  # a list: it may be something without a hash
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
    before = _read(path) if path.is_file() else ""
    known = _parse_file(path, before)
    if name in known:
        raise DeviceError(
            f"{path} has a device '{name}' already. Edit it there, or choose another name."
        )
    try:
        device = parse_device(name, dict(entry), path.parent)
    except ValidationError as err:
        told = "; ".join(f"{_dotted(key)}: {what}" for key, what in _findings(err, dict(entry)))
        raise DeviceError(f"Device '{name}': {told}") from err
    except ValueError as err:
        raise DeviceError(f"Device '{name}': {err}") from err
    # Appended, so that the comments of who wrote the file stay.
    text = _parse_yaml(path, before)
    has_key = isinstance(text.value, dict) and "devices" in text.value
    indent = "  "
    if known:
        first = before.splitlines()[text.lines["devices", next(iter(known))] - 1]
        indent = first[: len(first) - len(first.lstrip())] or indent
    lines = [f"{name}:", *(f"  {_pair(key, value)}" for key, value in entry.items())]
    block = "".join(f"{indent}{line}\n" for line in lines)
    start = before + ("" if not before or before.endswith("\n") else "\n")
    after = start + ("" if has_key else "devices:\n") + block
    if not _says(path, after, {**known, name: device}):
        raise DeviceError(
            f"{path}: cannot add to it as it is written. Put these lines under 'devices:' "
            f"yourself:\n{block}"
        )
    _replace(path, after)


def set_key(path: Path, name: str, key: str, value: str) -> None:
    """Change or add one key of a device in its file; all else, comments too, stays.

    Raises:
        DeviceError: the file is not as it should be, or is written so that it is not to be done.
    """
    before = _read(path)
    devices = _parse_file(path, before)
    text = _parse_yaml(path, before)
    lines = before.splitlines(keepends=True)
    wanted = parse_device(name, {**text.value["devices"][name], key: value}, path.parent)
    at = text.lines.get(("devices", name, key))
    if at is not None:
        old = re.match(r"(\s*)[^#]*?(\s+#.*)?(\r?\n)?$", lines[at - 1])
        indent, comment, end = old.groups(default="") if old else ("", "", "")
        lines[at - 1] = f"{indent}{_pair(key, value)}{comment}{end}"
    else:
        at = text.lines["devices", name, "kind"]
        kind = lines[at - 1]
        indent = kind[: len(kind) - len(kind.lstrip())]
        lines[at - 1] = kind.rstrip("\r\n") + "\n"
        lines.insert(at, f"{indent}{_pair(key, value)}\n")
    after = "".join(lines)
    if not _says(path, after, {**devices, name: wanted}):
        raise DeviceError(
            f"{path}: cannot change it as it is written. Set this yourself, under '{name}':\n"
            f"    {_pair(key, value)}"
        )
    _replace(path, after)


def _pair(key: str, value: Any) -> str:
    """One line of YAML."""
    text = write_yaml({key: value}).strip()
    return text[1:-1] if text.startswith("{") else text


def _says(path: Path, content: str, devices: Devices) -> bool:
    """Whether this text would be a file of these devices, so that it may be written."""
    try:
        return _parse_file(path, content) == devices
    except DeviceError:
        return False


def _replace(path: Path, text: str) -> None:
    """Write the file whole or not at all. It keeps its rights, and a link stays a link."""
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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
