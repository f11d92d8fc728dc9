"""The table of an evaluation for the terminal, and the figures that the report shows too."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Evaluation, Row, RowKind

_REPORT_ONLY: tuple[RowKind, ...] = ("alpha", "candidates")  # rows that the terminal has no room for


def columns(recall_at: Sequence[int]) -> list[str]:
    """Headings of the figures of a row, in the order of ``figures``."""
    recalls = [f"recall@{k}" for k in recall_at]
    return [*recalls, "L1 match", "L2 match", f"fresh@{max(recall_at)}", "coverage", "popular 1 %", "full"]


def figures(row: Row) -> list[Estimate | float | None]:
    """The figures of a row, shares from 0 to 1; None: nothing to measure."""
    largest = max(row.recall)
    recalls, fresh = row.recall.values(), row.fresh_recall[largest]
    return [*recalls, row.match_l1, row.match_l2, fresh, row.coverage, row.popular, row.list_length / largest]


def percent(figure: Estimate | float | None) -> str:
    """``12.34``; an en dash where nothing was measured."""
    if figure is None:
        return "–"
    return f"{100 * (figure if isinstance(figure, float) else figure.value):.2f}"


def results_table(evaluations: Sequence[Evaluation]) -> Table:
    """Rows of the first evaluation and the merged row of the others, for the terminal; fits 80 columns.

    Recall at the smallest and the two largest cut-offs. The others, other alphas, and yardsticks' candidates sorted as
    the model sorts, are in the report only.
    """
    first = evaluations[0]
    recall_at = _shown_cut_offs(first.protocol.recall_at)
    table = Table(
        title=f"{first.model} on {first.dataset}: {first.num_users:,} users, percent",
        caption="intervals, other cut-offs and alphas, NDCG and hit rate are in the report",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    table.add_column(f"recall\n@{recall_at[0]}", justify="right", no_wrap=True)
    for heading in [*(f"@{k}" for k in recall_at[1:]), "L1", "L2", "fresh"]:
        table.add_column(f"\n{heading}", justify="right", no_wrap=True)
    for row in first.rows:
        if row.kind not in _REPORT_ONLY:
            style = {"merged": "bold", "yardstick": "dim"}.get(row.kind)
            table.add_row(escape(row.name.removeprefix(f"{first.model}, ")), *_short(row, recall_at), style=style)
    if len(evaluations) > 1:
        table.add_section()
        for other in evaluations[1:]:
            table.add_row(escape(other.merged.name), *_short(other.merged, recall_at))
    return table


def _shown_cut_offs(recall_at: Sequence[int]) -> list[int]:
    return list(dict.fromkeys([recall_at[0], *recall_at[-2:]]))


def _short(row: Row, recall_at: Sequence[int]) -> list[str]:
    """Recalls, matches and recall of fresh items."""
    fresh = row.fresh_recall[max(row.recall)]
    return [percent(figure) for figure in (*(row.recall[k] for k in recall_at), row.match_l1, row.match_l2, fresh)]
