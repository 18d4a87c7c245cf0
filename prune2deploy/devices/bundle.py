"""The probe as one file, that any Python from 3.8 on can run."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "probe"
_START = "import sys\nfrom p2d_probe.main import main\n\nsys.exit(main())\n"
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
