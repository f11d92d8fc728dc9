"""The parts that the report of a model and the comparison of several share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mtmh.evaluation.drawings import curve_svg, validation_svg
from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Evaluation, Origin, Row
from mtmh.evaluation.tables import percent
from mtmh.pages.page import cell, figure, note, row, section, table

Cells = Sequence[Estimate | float | None]


def curve_part(evaluations: Sequence[Evaluation]) -> str:
    """Recall against relevance as a drawing."""
    first = evaluations[0]
    if first.merged.match_l2 is None:
        return note("This dataset has no topics, so there is no relevance to draw.")
    largest = first.protocol.recall_at[-1]
    caption = f"Up is more recall@{largest}, right is more L2 topic match. Bars: 95 % intervals."
    if any(found.sweep() for found in evaluations):
        caption += " Lines: the heads alone by alpha (the numbers), chosen when serving; rings: the recipe's answer."
    return figure(curve_svg(evaluations), caption)


def training_part(evaluations: Sequence[Evaluation]) -> str:
    """The curve that ``epochs: auto`` chose the length of training by; nothing where a recipe sets the length."""
    drawn = validation_svg(evaluations)
    caption = (
        "Measured on the end of the training period, which this run did not train on; the test period was not read."
        " Score: geometric mean of recall at 5, 20, 100 and 500, heads merged half and half. The ring: where it was"
        " best, which sets the length of training."
    )
    return section("How long it was trained", figure(drawn, caption)) if drawn else ""


def figures_table(headings: Sequence[str], groups: Iterable[Sequence[tuple[str, Row, Cells]]]) -> str:
    """Rows of figures in percent, with half the width of their intervals.

    Args:
        headings: of the figures.
        groups: name, row and figures each; a line is drawn between groups.
    """
    rows: list[str] = []
    for group in groups:
        for place, (name, found, shown) in enumerate(group):
            marks = {"merged": ["strong"], "yardstick": ["quiet"]}.get(found.kind, [])
            marks += ["rule"] if place == 0 and rows else []
            rows.append(row([cell(name), *map(_figure, shown)], " ".join(marks)))
    return table(["", *headings], rows, "numbers")


def signed(found: Estimate | None) -> str:
    """A cell with a difference in points and its interval."""
    if found is None:
        return cell("–")
    return cell(f"{100 * found.value:+.2f}", small=f"{100 * found.low:+.2f} to {100 * found.high:+.2f}")


def setting(value: Any) -> str:
    """The value of a setting as text."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return "–" if value is None else f"{value:,}" if whole else str(value)


def origin_facts(origin: Origin) -> dict[str, str]:
    """What an index was made of, by whom and when."""
    events = [
        f"{count:,} {word}"
        for count, word in ((origin.train_events, "to train on"), (origin.test_events, "to test on"))
        if count is not None
    ]
    period = f"; the test period begins on {origin.train_until}" if origin.train_until else ""
    facts = {
        "index": f"{origin.index}, built {origin.index_built}" if origin.index_built else origin.index,
        "steps of training": setting(origin.steps),
        "data": f"read {origin.data_read}" if origin.data_read else "",
        "events": ", ".join(events) + period if events else "",
        "mtmh": origin.mtmh_version,
    }
    return {name: value for name, value in facts.items() if value}


def _figure(found: Estimate | float | None) -> str:
    half = f"±{50 * (found.high - found.low):.2f}" if isinstance(found, Estimate) else ""
    return cell(percent(found), small=half)
