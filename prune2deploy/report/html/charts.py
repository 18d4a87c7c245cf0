"""Charts by matplotlib as SVG inside a page: text stays text, colours come from the page's CSS.

matplotlib draws with stand-in colours, one for each role; they become the classes f-ROLE (fill) and
s-ROLE (stroke), which style.css colours for light and dark. What else it writes as CSS becomes
attributes, so that the page needs to allow no inline styles.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as Xml

from markupsafe import Markup

from prune2deploy.report.svg import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 680, 330
"""Widths in CSS pixels; each chart is drawn for both, and CSS shows the one that fits."""
TEXT = 12.0
"""Size of text in CSS pixels."""

SERIES = 7
_ROLES = (
    *("ink", "muted", "line", "before", "after"),
    *(f"series{number}" for number in range(SERIES)),
)
COLOUR = {role: f"#01{number:02x}fe" for number, role in enumerate(_ROLES)}
"""What to draw with, by role; no colour that anybody would see."""

_CLASS = {colour: role for role, colour in COLOUR.items()}
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NUMBER = re.compile(r"-?\d+\.\d+")

Draw = Callable[["Figure", bool], None]
"""Draws into a figure; the flag says that it is the narrow one."""


@dataclass(frozen=True)
class Table:
    """Figures under a chart or by themselves. A column is numeric where all headings say so.

    numeric: places of the columns that hold numbers, which are set flush right.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chart:
    """A drawing for wide and one for narrow pages, what it shows in words, and its figures.

    key: pairs of a role and what it means. note: in small print under it.
    """

    wide: Markup
    narrow: Markup
    caption: str
    table: Table
    key: tuple[tuple[str, str], ...] = ()
    note: str = ""


def chart(
    draw: Draw,
    name: str,
    description: str,
    table: Table,
    *,
    heights: tuple[float, float],
    caption: str = "",
    key: tuple[tuple[str, str], ...] = (),
    note: str = "",
) -> Chart:
    """Draw a chart twice.

    Args:
        name: the title of both drawings for those who do not see them.
        description: what there is to see, in a sentence or two.
        heights: of the wide and of the narrow drawing, in CSS pixels.
    """
    wide, narrow = (_drawn(draw, flag, heights[flag], name, description) for flag in (False, True))
    return Chart(wide, narrow, caption or name, table, key, note)


def plain_axes(figure: Figure, *, grid: str = "x") -> Axes:
    """Axes without a frame, with quiet ticks and a grid along one axis ('x', 'y' or 'both')."""
    axes = figure.add_subplot()
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelcolor=COLOUR["muted"], labelsize=TEXT)
    axes.grid(True, axis=grid, color=COLOUR["line"], linewidth=1)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    return axes


def _drawn(draw: Draw, narrow: bool, height: float, name: str, description: str) -> Markup:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width = NARROW if narrow else WIDE
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "prune2deploy",
        "text.parse_math": False,  # a dollar in the name of a layer is a dollar
        "text.color": COLOUR["ink"],
        "font.size": TEXT,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout everywhere
    }
    written = io.StringIO()
    with rc_context(settings), warnings.catch_warnings():
        # Names may hold letters that this font lacks; the browser has others.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # One unit of the drawing, a point of matplotlib's, is one CSS pixel.
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        figure.patch.set_visible(False)
        draw(figure, narrow)
        figure.savefig(written, format="svg", metadata={"Date": None})
    return Markup(_for_a_page(clean(written.getvalue()), name, description))


def _for_a_page(document: str, name: str, description: str) -> str:
    """The drawing as an element of a page: named, without CSS, with ids that are its own."""
    root = Xml.fromstring(document)
    digest = hashlib.sha256(f"{name}\0{document}".encode()).hexdigest()[:10]
    prefix = f"c{digest}"
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in list(root.iter()):
        tag = element.tag.removeprefix(f"{{{_SVG}}}")
        if tag in ("metadata", "style"):
            parents[element].remove(element)
    linked = _linked(root)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        _plain(element, linked, prefix)
    view = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        {
            "viewBox": view,
            "role": "img",
            "aria-labelledby": f"{prefix}t {prefix}d",
            "stroke-linejoin": "round",
        }
    )
    for tag, text in (("desc", description), ("title", name)):
        child = Xml.Element(tag, id=f"{prefix}{tag[0]}")
        child.text = clean(text)
        root.insert(0, child)
    return Xml.tostring(root, encoding="unicode")


def _linked(root: Xml.Element) -> set[str]:
    """Ids that something in the drawing points to."""
    found: set[str] = set()
    for element in root.iter():
        for value in element.attrib.values():
            found.update(re.findall(r"url\(#([^)]+)\)", value))
        link = element.get(f"{{{_LINK}}}href")
        if link is not None:
            found.add(link.removeprefix("#"))
    return found


def _plain(element: Xml.Element, linked: set[str], prefix: str) -> None:
    """Turn CSS into attributes and classes, shorten numbers, keep only ids that are needed."""
    given = dict(element.attrib)
    element.attrib.clear()
    classes = []
    for name, value in given.items():
        if name == "style":
            for key, text in _declarations(value):
                role = _CLASS.get(text)
                if role is not None:
                    classes.append(f"{key[0]}-{role}")
                elif key != "font-family":
                    element.set(key, text)
        elif name == "id":
            if value in linked:
                element.set("id", prefix + value)
        elif name == f"{{{_LINK}}}href":
            element.set("href", "#" + prefix + value.removeprefix("#"))
        elif name == "transform" and value.startswith("rotate(-0 "):
            continue
        else:
            text = value.replace("url(#", f"url(#{prefix}")
            element.set(name, _short(" ".join(text.split())))
    if classes:
        element.set("class", " ".join(classes))
    if element.tag != "text" and element.text and not element.text.strip():
        element.text = None
    if element.tail and not element.tail.strip():
        element.tail = None


def _declarations(style: str) -> list[tuple[str, str]]:
    """Pairs of a CSS declaration list. Names of fonts may hold what separates; none is kept."""
    pairs = (part.partition(":") for part in style.split(";"))
    return [(key.strip(), value.strip()) for key, _, value in pairs if value.strip()]


def _short(text: str) -> str:
    """The text with numbers of two decimals at most."""
    return _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)
