"""report.html: what it says, with everything and with nothing, and what it never does."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_up_run import device, full_metrics, full_run, metrics, weight_run

from prune2deploy.report.html import RunContents, run_page
from prune2deploy.report.html.verdict import verdict
from prune2deploy.report.metrics import GateResult

HOSTILE = "</text></script><script>alert('x')</script><img src=http://e.vil/ onerror=y>&\"'`$a_1$\0"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, headings, ids, and the text of each element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.styles = ""
        self.feed(text)
        self.close()
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def headings(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]


@pytest.fixture(scope="module")
def whole() -> str:
    return run_page(full_run())


@pytest.fixture(scope="module")
def bare() -> str:
    return run_page(RunContents(folder="bare", metrics=metrics()))


def test_the_sections_stand_in_order_and_the_verdict_first(whole: str) -> None:
    places = [
        attrs["id"] for tag, attrs in Page(whole).tags if tag in ("h2", "section") and "id" in attrs
    ]
    assert places == [
        *("verdict", "latency", "accuracy", "network", "layers", "precisions", "front"),
        *("frozen", "devices", "made", "files", "versions", "recipe", "use"),
    ]


def test_the_verdict_is_of_the_network_that_the_gates_look_at(whole: str) -> None:
    text = Page(whole).text
    # int8: 2 / 0.8; 2 / 1.9; 150 kB of 1 MB; 87.5 after 90.
    headline = (
        "2.50× faster on local; 1.05× faster on pi5 (tainted); file 85 % smaller; "
        "accuracy −2.50 points."
    )
    assert headline in text
    assert "95 % interval 2.45 to 2.55, from 30 paired blocks" in text
    assert "1 of 2 gates failed: min_speedup" in text
    assert "Not measured: no answer from whole" in text


def test_what_a_whole_run_shows(whole: str) -> None:
    text = Page(whole).text
    for piece in (
        "Latency on local",
        "Time by layer on local",
        "Multiply-accumulates by layer",
        "64 → 40",
        "loses too much: whole",
        "int8 is slower than fp32 on pi5: 1.05 times",
        "Networks that the search tried",
        "Judged on whole.",
        "No rule for the operator whole , met 2 times",
        "reaches whole 13 whole (10), head (3)",
        "Tainted: hot whole",
        "ab" * 32,
        "name: whole",
        "session.run(None, {'whole': images})",
        "InferenceSession('pruned.int8.onnx')",
        "whole is not there.",
    ):
        assert piece in text, piece


def test_where_int8_does_not_compute_what_its_file_says() -> None:
    old = device(pruned_int8=0.8)
    old["setup"]["machine"] |= {"kind": "x86", "cpu_flags": ["avx2"]}
    found = full_run()
    shown = run_page(replace(found, metrics=full_metrics(latency=[old])))
    assert "int8 on local: large sums saturate" in Page(shown).text
    assert "saturate" not in Page(run_page(found)).text


def test_a_run_without_anything_optional(bare: str) -> None:
    page = Page(bare)
    assert "Speed not measured; file 60 % smaller; accuracy −2.00 points." in page.text
    assert "The recipe sets no gates." in page.text
    assert "Latency was not measured." in page.text
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert not {"layers", "precisions", "front", "recipe"} & ids


def test_single_weights_are_shown_by_layer() -> None:
    text = Page(run_page(weight_run())).text
    assert "Weights that are not zero" in text
    assert "conv1.weight 1,000 200 80.0%" in text


@pytest.mark.parametrize("name", ["whole", "bare"])
def test_it_asks_nothing_of_the_network_and_allows_nothing(
    name: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(name)
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in (
            "script",
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "foreignobject",
        )
        for key, value in attrs.items():
            assert not key.startswith("on"), (tag, key)
            assert key != "style", "the policy allows no inline styles"
            if key in ("href", "src", "xlink:href"):
                assert value is not None
                assert value.startswith("#") or value == "data:,"
    assert "@import" not in page.styles
    assert "url(" not in page.styles
    assert re.findall(r"https?://", text) == []
    policy = next(
        attrs["content"]
        for tag, attrs in page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(page.styles.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", ["whole", "bare"])
def test_headings_names_and_ids(name: str, request: pytest.FixtureRequest) -> None:
    page = Page(request.getfixturevalue(name))
    levels = page.headings()
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        if tag == "svg" and "aria-hidden" not in attrs:
            assert attrs["role"] == "img"
            assert set(str(attrs["aria-labelledby"]).split()) <= set(ids)
        for value in attrs.values():
            assert set(re.findall(r"url\(#([^)]+)\)", value or "")) <= set(ids)


def test_names_from_a_model_stay_text() -> None:
    text = run_page(full_run(HOSTILE))
    page = Page(text)
    assert {tag for tag, _ in page.tags if tag in ("script", "img")} == set()
    assert "alert('x')" in page.text, "shown as it is, not dropped"
    assert "\0" not in text
    assert html.escape("<script>alert", quote=False) in text


def test_the_same_run_gives_the_same_bytes(whole: str) -> None:
    assert run_page(full_run()) == whole


def test_letters_that_the_charts_font_lacks_make_no_warning() -> None:
    found = full_metrics("层")
    assert "层" in run_page(RunContents(folder="x", metrics=found))


def test_a_tainted_figure_is_in_doubt_and_an_interval_around_1_shows_nothing() -> None:
    doubtful = device("a", 1.6, ("hot",))
    nothing = device("b", 1.01)
    slower = device("c", 0.5)
    run = RunContents(folder="x", metrics=metrics(latency=[doubtful, nothing, slower]))
    found = verdict(run)
    assert [card.tone for card in found.cards[:3]] == ["doubt", "doubt", "bad"]
    assert found.headline.startswith(
        "1.60× faster on a (tainted); no faster on b; 2.00× slower on c;"
    )
    assert "no difference is shown" in " ".join(found.cards[1].lines)


def test_a_narrow_interval_has_digits_that_tell_its_ends_apart() -> None:
    narrow = device()
    narrow["speedups"][0] |= {"low": 1.5981, "high": 1.6019}
    run = RunContents(folder="x", metrics=metrics(latency=[narrow]))
    assert verdict(run).cards[0].lines[0] == "95 % interval 1.598 to 1.602, from 30 paired blocks"


def test_a_measurement_that_was_tried_again_says_so() -> None:
    again = device() | {"attempts": 3}
    run = RunContents(folder="x", metrics=metrics(latency=[device("a"), again]))
    once, thrice = (" ".join(card.lines) for card in verdict(run).cards[:2])
    assert "attempts" not in once
    assert "the least tainted of 3 attempts" in thrice


@pytest.mark.parametrize(
    ("held", "note", "said"),
    [
        ([True], None, ("The gate held", "good")),
        ([True, True], None, ("Both gates held", "good")),
        ([True] * 3, None, ("All 3 gates held", "good")),
        ([True, False], None, ("1 of 2 gates failed: g1", "bad")),
        (
            [True],
            "tainted",
            ("The gate held, by tainted figures, which the recipe allows", "doubt"),
        ),
    ],
)
def test_what_the_gates_came_to(held: list[bool], note: str | None, said: tuple[str, str]) -> None:
    gates = [
        GateResult(name=f"g{n}", held=one, found=1.0, limit=1.0, note=note)
        for n, one in enumerate(held)
    ]
    found = verdict(RunContents(folder="x", metrics=metrics(gates=gates)))
    assert (found.gates, found.tone) == said


def test_a_file_as_large_as_before_is_no_smaller() -> None:
    found = metrics()
    same = found.after.model_copy(update={"onnx_bytes": found.before.onnx_bytes + 1})
    run = RunContents(folder="x", metrics=found.model_copy(update={"after": same}))
    assert "; file of the same size; " in verdict(run).headline


def test_an_interval_of_the_accuracy_needs_a_share_of_images() -> None:
    lines = verdict(RunContents(folder="x", metrics=metrics())).cards[0].lines
    # By hand: Wilson's intervals of 0.90 and 0.88 of 1000 are 0.8799 to 0.9171 and 0.8584 to
    # 0.8987; -0.02 - hypot(0.0216, 0.0171) = -0.0476 and -0.02 + hypot(0.0187, 0.0201) = 0.0075.
    assert "95 % interval −4.76 to +0.75, from 1,000 test images" in lines
    assert "The interval includes 0: no change is shown." in lines
    other = metrics().model_dump()
    for figures in (other["before"], other["after"], *other["stages"]):
        figures["metrics"] = {"iou": 0.5}
    other["metric"] = "iou"
    lines = verdict(RunContents(folder="x", metrics=metrics(**other))).cards[0].lines
    assert "No interval: this metric is no share of images." in lines
