"""Text from elsewhere, without what a terminal would obey."""

from __future__ import annotations

import re

# C0 without tab and line feed, DEL and C1; and what reorders or hides text around it.
_UNSEEN = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_TABLE = {code: "\N{REPLACEMENT CHARACTER}" for code in _UNSEEN if chr(code) not in "\t\n"}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_SHORT = {r"\b", r"\f", r"\r"}


def printable(text: str) -> str:
    """Replace control characters (all but tab and line feed) by U+FFFD."""
    return text.translate(_TABLE)


def printable_json(text: str) -> str:
    """Do so in the strings of a JSON document that is not parsed yet, where they are escaped."""

    def kept(found: re.Match[str]) -> str:
        code = int(found[1], 16) if found[1] else None
        return r"\ufffd" if code in _TABLE or found[0] in _SHORT else found[0]

    # Between the strings a line may end as it likes.
    return _ESCAPE.sub(kept, text).replace("\r\n", "\n").translate(_TABLE)
