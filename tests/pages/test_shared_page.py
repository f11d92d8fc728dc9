"""The parts of a page: text stays text, and what is not there leaves nothing behind."""

from __future__ import annotations

from mtmh.pages.drawing import INK, SERIES, drawing
from mtmh.pages.page import callout, cell, facts, page, pairs, row, section, table

HOSTILE = '<script>alert("&")</script>'


def test_text_stays_text() -> None:
    parts = [
        callout(HOSTILE, [HOSTILE]),
        facts({HOSTILE: HOSTILE}),
        section(HOSTILE, table([HOSTILE], [row([cell(HOSTILE, "good", HOSTILE)])], "numbers")),
        pairs({HOSTILE: HOSTILE}),
    ]
    made = page(HOSTILE, *parts, subtitle=HOSTILE)
    assert "<script" not in made
    assert made.count("&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;") == 13


def test_a_section_of_nothing_is_nothing() -> None:
    assert section("Examples", "", "") == ""
    assert "refresh" not in page("title")
    assert '<meta http-equiv="refresh" content="3">' in page("title", refresh=3)


def test_a_drawing_has_the_colours_of_the_page() -> None:
    with drawing("two & lines") as made:
        made.panels[0].plot([0, 1], [1, 0], color=SERIES[1], label="down")
        made.panels[0].set_xlabel("x", color=INK)
    assert made.svg.startswith('<svg role="img" aria-label="two &amp; lines"')
    assert "var(--c1)" in made.svg
    assert SERIES[1] not in made.svg
    assert ">down<" in made.svg.replace("\n", ""), "the legend is text"
