"""Charts as they stand in a page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as Xml

import pytest

from prune2deploy.report.html.charts import COLOUR, NARROW, WIDE, Chart, Table, chart, plain_axes
from prune2deploy.report.html.figures import label, short_count
from prune2deploy.report.html.page import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE = Table(("a",), (("1",),))


def drawn(name: str = "A name", text: str = "a $b$ <c>") -> Chart:
    def draw(figure: Figure, narrow: bool) -> None:
        axes = plain_axes(figure)
        axes.barh([text], [1.23456], color=COLOUR["after"])

    return chart(draw, name, "What it shows.", TABLE, heights=(100, 80))


def test_text_stays_text_and_colours_are_classes() -> None:
    root = Xml.fromstring(drawn().wide)
    assert "a $b$ <c>" in [element.text for element in root.iter("text")]
    assert "f-after" in {element.get("class") for element in root.iter("path")}
    assert re.findall(r"#01[0-9a-f]{2}fe|style=|font-family", drawn().wide) == []


def test_it_has_a_name_and_a_description_of_its_own() -> None:
    root = Xml.fromstring(drawn("<Speed>").narrow)
    title, described = root[0], root[1]
    assert (title.tag, title.text) == ("title", "<Speed>")
    assert (described.tag, described.text) == ("desc", "What it shows.")
    assert root.get("aria-labelledby") == f"{title.get('id')} {described.get('id')}"


def test_both_drawings_are_as_wide_as_their_place() -> None:
    found = drawn()
    boxes = [Xml.fromstring(one).get("viewBox") for one in (found.wide, found.narrow)]
    assert boxes == [f"0 0 {WIDE} 100", f"0 0 {NARROW} 80"]


def test_every_colour_that_is_drawn_with_has_a_rule() -> None:
    page = render(
        "compare.html", title="x", runs=[], table=TABLE, over_seeds=None, warnings=[], charts=[]
    )
    for role in COLOUR:
        assert f"svg .f-{role} {{ fill: var(--{role}); }}" in page, role
        assert page.count(f"--{role}:") == 2, "once for light and once for dark"


def _luminance(colour: str) -> float:
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough_in_both_schemes(scheme: int) -> None:
    # WCAG 2.2, AA: 4.5 for text, 3 for what is drawn.
    page = render(
        "compare.html", title="x", runs=[], table=TABLE, over_seeds=None, warnings=[], charts=[]
    )
    colours = {
        name: found[scheme]
        for name in set(re.findall(r"--(\w+):", page))
        if len(found := re.findall(rf"--{name}: (#[0-9a-f]{{6}});", page)) == 2
    }
    for paper in ("page", "card"):
        for ink in ("ink", "muted", "good", "bad", "doubt", "link"):
            assert _contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    for shape in ("before", "after", *(name for name in colours if name.startswith("series"))):
        assert _contrast(colours[shape], colours["page"]) >= 3, shape


def test_a_long_name_keeps_its_end() -> None:
    assert label("features.denseblock4.denselayer16.conv2", 110).endswith("layer16.conv2")
    assert label("features.denseblock4.denselayer16.conv2", 110).startswith("…")
    assert label("a\n b\0", 110) == "a b�"


@pytest.mark.parametrize(
    ("value", "text"),
    [(640, "640"), (589_824, "590 k"), (999_900, "1 M"), (2_360_000, "2.36 M"), (4.1e9, "4.1 G")],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert short_count(value) == text
