"""The probe as one file, that any Python from 3.8 on can run."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "probe"
# An old Python, such as JetPack 4's 3.6, cannot read the room: what any Python reads comes first.
_START = """\
import sys

if sys.version_info < (3, 8):
    import json

    message = "Python %s at %s is too old, 3.8 or newer is needed. Install one beside it and "
    message = message % (sys.version.split()[0], sys.executable)
    message += "name it as `python` in devices.yaml"
    error = {"kind": "old_python", "message": message, "model": None, "signal": None}
    sys.stdout.write(json.dumps({"status": "error", "error": error}))
    sys.exit(1)

from p2d_probe.main import main

sys.exit(main())
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip file can hold: equal sources, equal bytes


@cache
def probe_bytes() -> bytes:
    """Return a zip file of the room `probe`, to be run as `python FILE`."""
    content = {"__main__.py": _START.encode()}
    content |= {f"p2d_probe/{p.name}": p.read_bytes() for p in sorted(SOURCES.glob("*.py"))}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text)
    return stream.getvalue()
