"""The drawings of a report: recall against relevance, and what training measured on its way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes

from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Evaluation, Row
from mtmh.pages.drawing import MARKERS, SERIES, SOFT, drawing


def curve_svg(evaluations: Sequence[Evaluation]) -> str:
    """Recall at the largest cut-off against L2 match as an SVG element; needs a dataset with topics.

    Args:
        evaluations: on one dataset; the alphas of the first are named, and its yardsticks are drawn.
    """
    largest = evaluations[0].protocol.recall_at[-1]
    with drawing(f"recall at {largest} against L2 topic match") as made:
        axes = made.panels[0]
        axes.set_xlabel("L2 topic match, percent")
        axes.set_ylabel(f"recall@{largest}, percent")
        axes.margins(0.1)
        for evaluation, color in zip(evaluations, cycle(SERIES), strict=False):
            _draw_model(axes, evaluation, largest, color, labelled=evaluation is evaluations[0])
        yardsticks = [row for row in evaluations[0].of_kind("yardstick") if row.match_l2 is not None]
        for row, marker in zip(yardsticks, cycle(MARKERS), strict=False):
            axes.plot(*_point(row, largest), marker, color=SOFT, markersize=7, linestyle="none", label=row.name)
    return made.svg


def validation_svg(evaluations: Sequence[Evaluation]) -> str:
    """The scores that training chose its length by, as an SVG element; empty where no model has any."""
    drawn = [found for found in evaluations if found.origin.validation]
    if not drawn:
        return ""
    with drawing("score on the end of the training period, by epoch", height=3.4) as made:
        axes = made.panels[0]
        axes.set_xlabel("epochs")
        axes.set_ylabel("score")
        for found, color in zip(drawn, cycle(SERIES), strict=False):
            points = [(point.epoch, point.measured["score"]) for point in found.origin.validation]
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.6, marker="o", markersize=4)
            best = next(point for point in found.origin.validation if point.step == found.origin.best_step)
            axes.plot(
                best.epoch, best.measured["score"], "o", color=color, markerfacecolor="none", markersize=12,
                markeredgewidth=2, linestyle="none", label=f"{found.model}: {best.epoch:.2f} epochs",
            )  # fmt: skip
    return made.svg


def _draw_model(axes: Axes, evaluation: Evaluation, largest: int, color: str, *, labelled: bool) -> None:
    sweep = [row for row in evaluation.sweep() if row.match_l2 is not None]
    if sweep:
        points = [_point(row, largest) for row in sweep]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.6, marker="o", markersize=4, alpha=0.9)
        for row, point in zip(sweep, points, strict=True):
            if labelled and row.alpha is not None:
                axes.annotate(f"{row.alpha:g}", point, (7, -13), textcoords="offset points", color=SOFT, fontsize=9)
    merged = evaluation.merged
    if merged.match_l2 is None:
        return
    x, y = _point(merged, largest)
    axes.errorbar(x, y, xerr=_bars(merged.match_l2), yerr=_bars(merged.recall[largest]), color=color, linewidth=1)
    name = evaluation.model + (f", alpha = {merged.alpha:g}" if merged.alpha is not None else "")
    axes.plot(
        x, y, "o", color=color, markerfacecolor="none" if sweep else color, markersize=12 if sweep else 8,
        markeredgewidth=2, linestyle="none", label=name,
    )  # fmt: skip


def _point(row: Row, largest: int) -> tuple[float, float]:
    assert row.match_l2 is not None
    return 100 * row.match_l2.value, 100 * row.recall[largest].value


def _bars(figure: Estimate) -> list[list[float]]:
    return [[100 * max(0.0, figure.value - figure.low)], [100 * max(0.0, figure.high - figure.value)]]
