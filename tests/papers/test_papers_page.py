"""The page of a reproduction: the papers' lines beside ours, drawings, claims in words, what is missing and why."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Row
from mtmh.evaluation.user_values import UserValues
from mtmh.papers.claims import judge
from mtmh.papers.figures import Measured
from mtmh.papers.models import MTMH, Part, weight_name
from mtmh.papers.page import Page, html, markdown
from mtmh.papers.tables import Table, make_figures, make_tables

PARTS: list[Part] = ["table1", "table4", "figure2", "table5", "related3"]


def estimate(value: float) -> Estimate:
    return Estimate(value=value, standard_error=0.01, low=value - 0.02, high=value + 0.02)


def measured(name: str, recall: float, match: float) -> Measured:
    """A row with one value in every cell, the same for both of two users."""
    by_cut_off = {k: estimate(recall) for k in (5, 20, 100, 500)}
    row = Row(
        name=name, kind="merged", recall=by_cut_off, ndcg=by_cut_off, hit_rate=by_cut_off, fresh_recall={},
        match_l1=estimate(match), match_l2=estimate(match), coverage=0.5, popular=estimate(0.1), fresh=None,
        list_length=500, match=dict.fromkeys((5, 20), estimate(match)), interests={20: estimate(0.4)},
        novel_interests={20: None}, diversity={20: estimate(0.9)}, young=None,
        match_by_trigger={"bottom": estimate(match), "middle": None, "top": estimate(match)},
    )  # fmt: skip
    pairs = np.full(2, 100.0)
    users = UserValues(np.arange(2), {500: np.full(2, recall)}, (match * pairs, pairs), (match * pairs, pairs))
    return Measured([row], {0: users}, f"mtmh run synthetic+paper --set name={name}")


@pytest.fixture(name="page")
def fixture_page() -> Page:
    rows = {
        MTMH: measured("mtmh", 0.2, 0.3),
        "NeuCF": measured("neucf", 0.1, 0.1),
        weight_name(5.0): measured("five", 0.15, 0.33),
    }
    tables, figures = make_tables(rows, PARTS), make_figures(rows, PARTS)
    claims = judge(rows, tuple(PARTS))
    return Page("Tables", ["one fact"], "mtmh reproduce x", tables, figures, claims, {"hllm-seed0": "<no content>"})


def of_part(page: Page, part: Part) -> Table:
    return next(table for table in page.tables if table.part == part)


def test_the_papers_lines_stand_before_ours(page: Page) -> None:
    lines = of_part(page, "table1").lines
    names = [line[0] for line in lines]
    assert names.index("NeuCF, paper") + 1 == names.index("NeuCF, here")
    assert lines[names.index("NeuCF, here")] == ["NeuCF, here", *["10.00 ±1.96"] * 6, "500"]
    assert lines[names.index("NeuCF, paper")][-2:] == ["22.40", "–"]
    assert "ItemCF, here" not in names  # not measured, and not made up


def test_changes_of_the_weight_are_relative_to_the_papers_own(page: Page) -> None:
    lines = {line[0]: line[1:] for line in of_part(page, "table4").lines}
    assert lines["MTMH, w_r = 5, here"] == ["-25.00 ±0.00 %", "+10.00 ±0.00 %", "+10.00 ±0.00 %"]
    assert lines["MTMH, w_r = 5, paper"] == ["-7.38 %", "+9.01 %", "+13.22 %"]


def test_what_is_not_measured_is_a_dash_and_lines_have_one_width(page: Page) -> None:
    assert ["MTMH, here", "50.00", "–", "–", "40.00 ±1.96", "90.00 ±1.96"] in of_part(page, "table5").lines
    related = of_part(page, "related3")
    assert {len(line) for line in related.lines} == {1 + len(related.headings)}


def test_markdown_and_html_tell_the_same(page: Page) -> None:
    text, whole = markdown(page), html(page)
    for part in (
        "Table 1",
        "MTMH is above NeuCF in recall@500",
        "mtmh run synthetic+paper --set name=neucf",
        "one fact",
    ):
        assert part in text
        assert part in whole
    assert "* hllm-seed0 is missing: <no content>" in text
    assert "&lt;no content&gt;" in whole
    assert whole.count("<svg") == len(page.figures) == 2
    assert not re.search(r"(src|href)=", whole.replace("xlink:href", ""))  # nothing from the outside
    verdicts = dict(re.findall(r"\| (MTMH is above [^|]*) \| [^|]* \| ([^|]*) \|", text))
    assert verdicts["MTMH is above NeuCF in recall@500"] == "holds"
    HTMLParser().feed(whole)
