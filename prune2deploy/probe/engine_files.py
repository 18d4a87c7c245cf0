"""Engines kept in a folder: each belongs to one ONNX file, library, GPU, driver and options.

KEY.engine lies beside KEY.json, which has all that it was built from and the engine's hash. The
hash finds what was cut short or mixed up; it is no protection from whoever can write both files,
and reading an engine runs code that is in it. So the folder must belong to its user alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .job import Refusal

# Without these an engine may be another one's: the other facts then say why it is not reused.
_SAME = ("onnx_sha256", "runtime", "precision", "options")


def engine_key(facts: dict[str, Any]) -> str:
    """Return the name for an engine that was built from these facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def engine_path(folder: Path, facts: dict[str, Any]) -> Path:
    return folder / f"{engine_key(facts)}.engine"


def find_engine(folder: Path, facts: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return (the record of a sound engine for these facts, why there is none).

    The record is what `keep_engine` was given; one of the two is None or empty.
    """
    path = engine_path(folder, facts)
    try:
        size = path.stat().st_size
    except OSError:
        return None, _others(folder, facts)
    about = _read_json(path.with_suffix(".json"))
    if about is None:
        return None, "the engine that was there has no readable JSON file beside it"
    if about.get("facts") != facts:
        return None, "the JSON file beside the engine that was there is about another engine"
    if size != about.get("size_bytes"):
        return None, f"the engine that was there has {size} bytes, not {about.get('size_bytes')}"
    if _digest(path) != about.get("sha256"):
        return None, "the engine that was there has been changed since it was built"
    return about, ""


def _others(folder: Path, facts: dict[str, Any]) -> str:
    """Say what changed since an engine was built of the same file with the same options."""
    for path in sorted(folder.glob("*.json")):
        found = (_read_json(path) or {}).get("facts")
        if not isinstance(found, dict) or any(found.get(key) != facts[key] for key in _SAME):
            continue
        changed = [
            f"{key} was {found.get(key)} and is {facts[key]}"
            for key in facts
            if found.get(key) != facts[key]
        ]
        if changed:
            return f"the engine that is there is for another place: {', '.join(changed)}"
    return "there was no engine for it"


def ready_folder(folder: Path) -> None:
    """Make the folder; refuse now, and not after minutes of building, where none can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        text = f"the folder for engines, {folder}, cannot be made: {err.strerror}"
        raise Refusal("cannot_write", f"{text}. Choose another") from err
    if not os.access(str(folder), os.W_OK):
        raise Refusal("cannot_write", f"nothing can be written to {folder}. Choose another folder")


def keep_engine(
    folder: Path, facts: dict[str, Any], plan: Any, made: dict[str, Any]
) -> dict[str, Any]:
    """Write an engine and what is known about it; return the record, which has "path".

    made: further entries of the record, that JSON can hold.
    """
    path = engine_path(folder, facts)
    record = {
        "path": str(path),
        "facts": facts,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "size_bytes": len(plan),
        **made,
    }
    # An engine without its JSON is not used, so a stop in between does no harm.
    with contextlib.suppress(OSError):
        path.with_suffix(".json").unlink()
    write_whole(path, plan)
    write_whole(path.with_suffix(".json"), json.dumps(record, indent=1).encode())
    return record


def write_whole(path: Path, content: Any) -> None:
    """Write a file so that nobody sees it half written.

    Raises:
        Refusal: "cannot_write".
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(str(temporary), str(path))
    except OSError as err:
        raise Refusal(
            "cannot_write",
            f"{path} ({len(content) / 2**20:.1f} MiB) cannot be written: {err.strerror}. Free "
            "some space, or choose another folder for engines",
        ) from err
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
