"""The pages in a browser: nothing asked for, nothing refused, readable wide and narrow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_run import full_run

from prune2deploy.report.html import compare_page, run_page

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1280, 360, 320)

# Text with less contrast than AA asks for, against the nearest background that is painted.
LOW_CONTRAST = """() => {
  const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  let seen = 0;
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.matches("title, desc")) continue;
    seen += 1;
    const style = getComputedStyle(element);
    const ink = element.matches("svg text") ? style.fill : style.color;
    const [low, high] = [light(rgb(ink)), light(paper(element))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push([element.textContent.trim().slice(0, 40), ratio]);
  }
  return [seen, found];
}"""

# Pictures without a name; headings; links that lead nowhere; tables that nobody can scroll.
STRUCTURE = """() => {
  const text = (id) => document.getElementById(id)?.textContent.trim() ?? "";
  const pictures = [...document.querySelectorAll("svg:not([aria-hidden])")];
  return {
    pictures: pictures.length,
    nameless: pictures.filter((one) => one.getAttribute("role") !== "img" ||
      !one.getAttribute("aria-labelledby").split(" ").every((id) => text(id))).length,
    titles: document.querySelectorAll("h1").length,
    astray: [...document.querySelectorAll("a")].filter((a) =>
      !document.getElementById(a.hash.slice(1))).length,
    stuck: [...document.querySelectorAll(".scroll")].filter((one) =>
      one.tabIndex !== 0 || !one.getAttribute("aria-label")).length,
    language: document.documentElement.lang,
    title: document.title.trim().length > 0,
    narrow: [...document.querySelectorAll(".narrow")].filter((e) => e.checkVisibility()).length,
    wide: [...document.querySelectorAll(".wide")].filter((e) => e.checkVisibility()).length,
    // The text of the charts as it is seen.
    smallest: Math.min(...pictures.filter((e) => e.checkVisibility()).flatMap((one) =>
      [...one.querySelectorAll("text")].map((e) =>
        parseFloat(getComputedStyle(e).fontSize) * one.getBoundingClientRect().width /
        one.viewBox.baseVal.width))),
  };
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["run", "comparison"])
def page_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / f"{request.param}.html"
    hostile = full_run("a_very.long_name<script>document.title='x'</script>" + "x" * 90)
    runs = [full_run(), hostile]
    path.write_text(compare_page(runs) if request.param == "comparison" else run_page(hostile))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_in_the_browser(chromium: Any, page_file: Path, scheme: str) -> None:
    context = chromium.new_context(color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        across = page.evaluate("document.documentElement.scrollWidth")
        assert across <= width, "the page scrolls sideways"
        seen, low = page.evaluate(LOW_CONTRAST)
        assert seen > 50
        assert low == []
        found = page.evaluate(STRUCTURE)
        assert found.pop("pictures") >= 6
        narrow, wide = found.pop("narrow"), found.pop("wide")
        assert (narrow > 0, wide > 0) == (width < 500, width > 500)
        assert found.pop("smallest") >= 9.5
        assert found == {
            "nameless": 0,
            "titles": 1,
            "astray": 0,
            "stuck": 0,
            "language": "en",
            "title": True,
        }
    assert said == []
    assert [url for url in asked if url != page_file.as_uri()] == []
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert shade == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(16, 20, 24)")
    context.close()
