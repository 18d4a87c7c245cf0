"""Small files of the kernel. Whatever cannot be read is None, never 0."""

from __future__ import annotations

from pathlib import Path
from typing import Callable


def read(path: Path) -> str | None:
    """Return a small text file without its line end, or None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def read_each(root: Path, pattern: str, key: Callable[[Path], str]) -> dict[str, str] | None:
    """Return {key: text} of the readable files that match, or None when there are none."""
    found = {key(path): read(path) for path in sorted(root.glob(pattern))}
    return {name: text for name, text in found.items() if text is not None} or None


def numbers(texts: dict[str, str] | None, scale: float = 1) -> dict[str, float] | None:
    return None if texts is None else {name: int(text) * scale for name, text in texts.items()}


def field(text: str | None, name: str) -> str | None:
    """Return the value of a 'name: value' line, as in /proc/self/status."""
    for line in (text or "").splitlines():
        label, colon, value = line.partition(":")
        if colon and label.strip() == name:
            return value.strip()
    return None


def parent(path: Path) -> str:
    return path.parent.name


def zone(path: Path) -> str:
    return f"{path.parent.name} {read(path.parent / 'type') or ''}"
