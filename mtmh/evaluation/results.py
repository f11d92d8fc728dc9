"""What an evaluation found: the content of ``metrics.json``, and its tables for terminal and docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich import box
from rich.markup import escape
from rich.table import Table

from mtmh.artifacts import open_artifact
from mtmh.evaluation.metrics import Estimate
from mtmh.retrieval.curve import Curve, CurvePoint

METRICS = Path("metrics.json")
USERS = Path("users.parquet")  # per-user values of the model's merged answers, for paired comparisons
REPORT = Path("report.html")

Kind = Literal["merged", "head", "alpha", "preranking", "exact", "published", "yardstick"]


class Row(BaseModel):
    """One line of the table.

    Attributes:
        name: for people.
        kind: ``merged`` at the recipe's alpha; ``head`` alone; ``alpha``: another merge; ``preranking``: as merged,
            ranked in another way; ``exact``: as merged, with exact search in place of the index; ``published``: the
            published version by the recipe's settings; ``yardstick``: no model of ours.
        alpha: percent of the engagement head, where there is a choice.
        recall: by cut-off.
        match_l1: share of <trigger, candidate> pairs of the same coarse topic; None without topics.
        match_l2: the same for the fine topic.
        coverage: share of the catalogue in any user's list.
        popular: share of recommendations in the most popular 1 % of the catalogue by training count.
        fresh: share of recommendations without a training event.
        list_length: mean length of a user's list.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: Kind
    alpha: float | None = None
    recall: dict[int, Estimate]
    match_l1: Estimate | None
    match_l2: Estimate | None
    coverage: float
    popular: Estimate | None
    fresh: Estimate | None
    list_length: float


class Protocol(BaseModel):
    """The settings that must agree before two evaluations are compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_triggers: int
    k: int
    recall_at: list[int]
    exclude_seen: bool


class Difference(BaseModel):
    """This model's merged answers minus another's, on the users that both evaluated."""

    model_config = ConfigDict(extra="forbid")

    num_users: int
    recall: Estimate  # at the largest cut-off
    match_l2: Estimate | None


class Published(BaseModel):
    """The published version that was measured beside, in the row of kind ``published``.

    Attributes:
        version: its name.
        unmeasured: why there is no such row; empty: there is one.
    """

    model_config = ConfigDict(extra="forbid")

    version: str
    unmeasured: str = ""


class Evaluation(BaseModel):
    """The content of ``metrics.json``."""

    model_config = ConfigDict(extra="forbid")

    model: str
    description: str
    dataset: str
    dataset_digest: str
    num_items: int
    num_users: int
    num_users_without_truth: int
    num_pairs: int  # of <user, trigger>
    k_ann: int
    num_probes: int
    alpha: float
    seed: int
    preranker: str
    sorter: str
    protocol: Protocol
    rows: list[Row]
    published: Published | None = None  # None: it was not asked for
    differences: dict[str, Difference] = {}  # by name of the other model

    def row(self, kind: Kind) -> Row:
        """The first row of a kind."""
        return next(row for row in self.rows if row.kind == kind)

    @property
    def merged(self) -> Row:
        """What the model answers at the recipe's alpha."""
        return self.row("merged")

    def sweep(self) -> list[Row]:
        """Every merge of the heads by rising alpha, heads alone included; empty for a model with one head."""
        rows = {
            row.alpha: row for row in self.rows if row.kind in ("merged", "head", "alpha") and row.alpha is not None
        }
        return [rows[alpha] for alpha in sorted(rows)]

    def curve(self) -> Curve | None:
        """Recall at the largest cut-off and topic match of every alpha; None for a model with one head."""
        sweep = self.sweep()
        if len(sweep) < 2:
            return None
        fine = all(row.match_l2 is not None for row in sweep)
        largest = self.protocol.recall_at[-1]
        points = []
        for row in sweep:
            match = row.match_l2 if fine else row.match_l1
            assert row.alpha is not None
            points.append(
                CurvePoint(
                    alpha=row.alpha, recall=row.recall[largest].value, match=match.value if match is not None else None
                )
            )
        return Curve(recall_at=largest, topic="topic_l2" if fine else "topic_l1", points=points)


def load_evaluation(path: Path) -> Evaluation:
    """Reads an evaluation artifact.

    Raises:
        ValueError: none there, or its metrics are not of this form.
    """
    artifact = open_artifact(path, "evaluation")
    try:
        return Evaluation.model_validate_json((artifact.path / METRICS).read_text())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path / METRICS}: {field}: {first['msg']}") from None


def columns(recall_at: Sequence[int]) -> list[str]:
    """Headings of the figures of a row, in the order of ``cells``."""
    return [*(f"recall@{k}" for k in recall_at), "L1 match", "L2 match", "coverage", "popular 1 %", "fresh"]


def cells(row: Row, *, intervals: bool) -> list[str]:
    """The figures of a row in percent; with ``intervals`` half the width of the 95 % interval beside each."""
    figures: list[Estimate | float | None] = [
        *row.recall.values(), row.match_l1, row.match_l2, row.coverage, row.popular, row.fresh
    ]  # fmt: skip
    return [percent(figure, interval=intervals) for figure in figures]


def percent(figure: Estimate | float | None, *, interval: bool) -> str:
    """``12.34``, or with interval ``12.34 ±0.56``; an en dash where nothing was measured."""
    if figure is None:
        return "–"
    if isinstance(figure, float):
        return f"{100 * figure:.2f}"
    half = 100 * (figure.high - figure.low) / 2
    return f"{100 * figure.value:.2f}" + (f" ±{half:.2f}" if interval else "")


def results_table(evaluations: Sequence[Evaluation]) -> Table:
    """All rows of the first evaluation and the merged row of the others, for the terminal; fits 80 columns."""
    first = evaluations[0]
    largest = first.protocol.recall_at[-1]
    figures = {f"recall@{largest}": first.merged.recall[largest], "L2 match": first.merged.match_l2}
    intervals = ", ".join(f"{name} {percent(figure, interval=True)}" for name, figure in figures.items())
    table = Table(
        title=f"{first.model} on {first.dataset}: {first.num_users} users, percent",
        caption=f"± half of the 95 % interval: {intervals}; all others are in the report",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    # Two lines a heading and no wider than the figures, so that the names keep their room.
    short = {"coverage": "cover-\nage", "popular 1 %": "top\n1 %", "L1 match": "L1\nmatch", "L2 match": "L2\nmatch"}
    table.add_column("")
    for heading in columns(first.protocol.recall_at):
        table.add_column(short.get(heading, heading.replace("recall", "recall\n")), justify="right", no_wrap=True)
    for row in first.rows:
        style = {"merged": "bold", "yardstick": "dim"}.get(row.kind)
        table.add_row(escape(row.name.removeprefix(f"{first.model}, ")), *cells(row, intervals=False), style=style)
    if len(evaluations) > 1:
        table.add_section()
        for other in evaluations[1:]:
            table.add_row(escape(other.merged.name), *cells(other.merged, intervals=False))
    return table


def markdown_table(evaluations: Sequence[Evaluation]) -> str:
    """The rows of ``results_table`` without the alpha sweep, for docs."""
    first = evaluations[0]
    headings = ["", *columns(first.protocol.recall_at)]
    rows = [row for row in first.rows if row.kind != "alpha"] + [other.merged for other in evaluations[1:]]
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join([row.name, *cells(row, intervals=True)]) + " |" for row in rows]
    return "\n".join(lines) + "\n"
