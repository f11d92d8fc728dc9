"""Pages in real Chromium: on a phone nothing scrolls sideways but tables and drawings, and dark is dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

from mtmh.pages.drawing import SERIES, drawing
from mtmh.pages.page import callout, cell, facts, figure, page, pairs, row, section, table

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running
        assert running.problems == []


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    with drawing("a line") as made:
        made.panels[0].plot([0, 1], [1, 0], color=SERIES[0], label="a model with a long name, merged, alpha = 50")
    numbers = [row([cell("a model with a long name", "", "small"), *(cell("12.34", "", "±0.56") for _ in range(10))])]
    parts = [
        callout("A verdict that is long enough to need two lines on a phone at the least.", ["a line"] * 3, "good"),
        facts({"recall@500": "52.41 %", "where": "runs/" + "a-very-long-folder-name" * 6}),
        section("Numbers", table(["", *(f"recall@{k}" for k in range(10))], numbers, "numbers")),
        section("Drawing", figure(made.svg, "words")),
        section("Pairs", pairs({"artifact": "runs/" + "a-very-long-folder-name" * 6})),
    ]
    path = Path(tmp_path_factory.mktemp("page")) / "page.html"
    path.write_text(page("a title", *parts), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_can_be_read(browser: Browser, address: str, width: int, scheme: str) -> None:
    browser.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
    )
    browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(address)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("window.innerWidth") == width
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 29)")
    # WCAG AA, of every text against what is behind it.
    worst = browser.evaluate(CONTRAST)
    assert worst["contrast"] >= 4.5, worst
    assert browser.breaches() == []


CONTRAST = """(() => {
  const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => c.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (let up = node; up; up = up.parentElement) {
      const color = parse(getComputedStyle(up).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
  };
  let worst = {contrast: 99};
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const ink = parse(node.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const pair = [light(ink), light(behind(node))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < worst.contrast) worst = {contrast, text: node.textContent.slice(0, 60), ink, tag: node.tagName};
  }
  return worst;
})()"""
