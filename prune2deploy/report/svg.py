"""The few elements of SVG that our pictures are made of; texts are escaped by xml.etree."""

from __future__ import annotations

import re
import textwrap
from xml.etree import ElementTree as Xml

DARK, GREY = "#222222", "#666666"
SANS = "Helvetica, Arial, DejaVu Sans, sans-serif"
MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"
CHARACTER = 0.602
"""Width of one character of the monospaced font, over its size."""
PROSE = 11.5
"""Size of running text."""
_LINE = 16.0


def add_shape(parent: Xml.Element, tag: str, **attributes: str | float) -> Xml.Element:
    """Add an element; stroke_width becomes stroke-width, an empty text is left out."""
    texts = {
        name.replace("_", "-"): value if isinstance(value, str) else short(value)
        for name, value in attributes.items()
    }
    return Xml.SubElement(parent, tag, {name: text for name, text in texts.items() if text})


def add_title(parent: Xml.Element, text: str) -> None:
    """Add what a viewer shows for an element under the pointer."""
    Xml.SubElement(parent, "title").text = clean(text)


def add_text(
    parent: Xml.Element,
    x: float,
    y: float,
    text: str,
    size: float,
    fill: str = DARK,
    *,
    weight: str = "",
    anchor: str = "",
    family: str = MONO,
) -> None:
    """Add one line of text, y being its base line; nothing for an empty one."""
    if text:
        element = add_shape(
            parent,
            "text",
            x=x,
            y=y,
            font_size=size,
            font_family=family,
            font_weight=weight,
            text_anchor=anchor,
            fill=fill,
        )
        element.text = clean(text)


def add_paragraph(
    parent: Xml.Element, x: float, y: float, text: str, width: float, fill: str = DARK
) -> float:
    """Add text in lines of about this width; returns the base line of what may follow."""
    room = max(int(width / (PROSE * 0.53)), 30)
    for line in textwrap.wrap(text, room):
        add_text(parent, x, y, line, PROSE, fill, family=SANS)
        y += _LINE
    return y


def clean(text: str) -> str:
    """The text without control characters, which XML does not allow."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def short(value: float) -> str:
    """A length with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
