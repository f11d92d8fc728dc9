"""The report of a teacher check: one HTML file with a table and a picture, that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from mtmh.content.check_metrics import Agreement
from mtmh.pages.drawing import SERIES, drawing
from mtmh.pages.page import callout, cell, figure, note, page, row, section, table

_MIN_PAIRS = 50  # a bin of fewer pairs says nothing


def write_check_report(
    facts: Mapping[str, Any],
    found: Sequence[Agreement],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    path: Path,
) -> None:
    """Writes the report.

    Args:
        facts: what the check has found, as in ``metrics.json``.
        found: the rows of the table.
        heads: names of the table's figures.
        rows: the figures of each row.
        path: the file.
    """
    shown = [row([cell(line.name), *map(cell, values)]) for line, values in zip(found, rows, strict=True)]
    failures = facts["failures"]
    path.write_text(
        page(
            f"Teacher of {facts['recipe']} against topics",
            callout(
                "A gate that the recipe sets is missed." if failures else "Every gate that the recipe sets is passed.",
                failures,
                "bad" if failures else "good",
            ),
            section(
                "How well it tells topics apart",
                table(["", *heads], shown, "numbers"),
                note(
                    "AUC: the chance that a pair of items with the same topic is more similar than a pair with"
                    " different topics; 0.5 is a coin. P@k, precision at k: the mean share of an item's k nearest"
                    " neighbours, within the sample, that have its topic."
                ),
            ),
            section(
                "What a similarity means",
                figure(
                    calibration_svg(found),
                    "The share of same-topic pairs among all pairs of about that cosine; bins of fewer than"
                    f" {_MIN_PAIRS} pairs are left out. A steep curve that starts near 0 and ends near 1 is a teacher"
                    " whose similarities can be trusted as soft labels.",
                ),
            ),
            subtitle=f"All pairs of {facts['num_items']:,} labelled items of {facts['source']};"
            f" {facts['num_items_without_all_content']:,} items of the sample were left out because some of their"
            " content is missing or broken.",
        ),
        encoding="utf-8",
    )


def calibration_svg(found: Sequence[Agreement]) -> str:
    """One panel a level: share of same-topic pairs against cosine, a line for each row, as an SVG element."""
    levels = list(found[0].auc)
    with drawing("share of same-topic pairs by cosine", panels=len(levels), height=3.8) as made:
        for axes, level in zip(made.panels, levels, strict=True):
            _draw_level(axes, found, level)
    return made.svg


def _draw_level(axes: Axes, found: Sequence[Agreement], level: str) -> None:
    for line, color in zip(found, cycle(SERIES), strict=False):
        edges, shares = line.calibration.edges, line.calibration.same[level]
        points = [
            ((low + high) / 2.0, share)
            for low, high, share, pairs in zip(edges[:-1], edges[1:], shares, line.calibration.pairs, strict=True)
            if share is not None and pairs >= _MIN_PAIRS
        ]
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=line.name)
    axes.set_xlabel("cosine of the pair")
    axes.set_ylabel(f"share with the same {level.removeprefix('topic_').upper()} topic")
    axes.set_ylim(0.0, 1.02)
