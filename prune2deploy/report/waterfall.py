"""The waterfall of an explanation as SVG: from the original's time to the pruned network's."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

from prune2deploy.export.onnx import write_whole
from prune2deploy.latency.explain import Explanation
from prune2deploy.latency.explain_format import Bar, waterfall
from prune2deploy.report.palette import COLOURS, FROZEN
from prune2deploy.report.svg import (
    GREY,
    PROSE,
    SANS,
    add_paragraph,
    add_shape,
    add_text,
    add_title,
    short,
)

_MARGIN, _LABELS, _CHART, _FIGURES = 24.0, 270.0, 420.0, 90.0
_ROW, _BAR = 26.0, 18.0
_SAVED, _LOST, _TOTAL = COLOURS[2], COLOURS[3], FROZEN


def write_waterfall(explanation: Explanation, path: Path) -> None:
    """Write the picture, whole or not at all.

    Raises:
        ExportError: the file cannot be written.
    """
    write_whole(path, waterfall_picture(explanation).encode())


def waterfall_picture(explanation: Explanation) -> str:
    """The picture as the text of an SVG document."""
    bars = waterfall(explanation)
    root = Xml.Element("svg", xmlns="http://www.w3.org/2000/svg")
    background = add_shape(root, "rect", fill="#FFFFFF")
    width = _LABELS + _CHART + _FIGURES
    title = f"Where the time went on {explanation.device}"
    add_text(root, _MARGIN, 38, title, 18, weight="bold", family=SANS)
    y = add_paragraph(root, _MARGIN, 58, explanation.sentence, width)
    edges = [ms for one in bars for ms in (one.start_ms, one.end_ms)]
    lowest, highest = min(0.0, *edges), max(edges)
    scale = _CHART / ((highest - lowest) or 1.0)
    for one in bars:
        _row(root, one, y, lowest, scale)
        y += _ROW
    ground = _MARGIN + _LABELS - lowest * scale
    add_shape(root, "line", x1=ground, x2=ground, y1=y - _ROW * len(bars), y2=y, stroke=GREY)
    sizes = short(width + 2 * _MARGIN), short(y + _MARGIN)
    for element in (root, background):
        element.set("width", sizes[0])
        element.set("height", sizes[1])
    root.set("viewBox", f"0 0 {sizes[0]} {sizes[1]}")
    Xml.indent(root, " ")
    return Xml.tostring(root, encoding="unicode") + "\n"


def _row(root: Xml.Element, bar: Bar, y: float, lowest: float, scale: float) -> None:
    left, right = sorted((bar.start_ms, bar.end_ms))
    grows = bar.end_ms > bar.start_ms
    start = _MARGIN + _LABELS + (left - lowest) * scale
    length = (right - left) * scale
    base = y + _BAR - 5
    add_text(root, _MARGIN, base, bar.label, PROSE, family=SANS)
    colour = _TOTAL if bar.total else _LOST if grows else _SAVED
    shape = add_shape(root, "rect", x=start, y=y, width=length, height=_BAR, fill=colour)
    add_title(shape, f"{bar.label}: {bar.text}")
    add_text(root, start + length + 6, base, bar.text, 10.5)
