"""Figures of models over seeds: a row of each evaluation, and differences that are paired by user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mtmh.evaluation.metrics import Bootstrap, Estimate
from mtmh.evaluation.results import Evaluation, Row, load_evaluation, user_values
from mtmh.evaluation.user_values import UserValues
from mtmh.papers.intervals import Interval
from mtmh.papers.models import DEFAULTS, MTMH
from mtmh.papers.published import H1, H2, SHARED
from mtmh.papers.runs import Run

Find = Callable[[Evaluation], Row | None]


@dataclass(frozen=True)
class Measured:
    """A row of the tables under every seed that was run.

    Attributes:
        rows: one a seed.
        users: seed -> the values behind its row, of the same users in every row.
        command: that measured it, of the first seed.
    """

    rows: list[Row]
    users: dict[int, UserValues]
    command: str

    def interval(self, column: str) -> Interval | None:
        """The mean of a column of the papers' tables over users and seeds; None: not measured."""
        return Interval.of([value_of(row, column) for row in self.rows])

    @property
    def list_length(self) -> float:
        """Items of a user's list, a mean over users and seeds: recall of shorter lists is less by itself."""
        return fmean(row.list_length for row in self.rows)

    def above(self, other: Measured, column: str) -> Interval | None:
        """The mean of this minus another's, paired by user and seed; None: not measured in both."""
        found = []
        for seed in sorted(self.users.keys() & other.users.keys()):
            bootstrap = Bootstrap(len(self.users[seed].user_index))
            parts = self.users[seed].parts(column), other.users[seed].parts(column)
            if parts[0] is not None and parts[1] is not None:
                found.append(bootstrap.difference(parts[0], parts[1]))
        return Interval.of(found)


def value_of(row: Row, column: str) -> Estimate | None:
    """A figure by the name of its column: ``recall@500``, ``L2 match``, ``young``, ``coverage``, ``interests@20``.

    Coverage is of all users together, so that it has no interval over them.
    """
    if column in ("L1 match", "L2 match"):
        return row.match_l1 if column == "L1 match" else row.match_l2
    if column in ("young", "popular"):
        return row.young if column == "young" else row.popular
    if column.endswith(" triggers"):
        wanted = column.removesuffix(" triggers")
        return next((estimate for band, estimate in row.match_by_trigger.items() if band == wanted), None)
    if column == "coverage":
        return Estimate(value=row.coverage, standard_error=0.0, low=row.coverage, high=row.coverage)
    name, _, cut_off = column.partition("@")
    by_cut_off: Mapping[int, Estimate | None] = getattr(row, name.replace(" ", "_"))
    return by_cut_off.get(int(cut_off))


def measured_rows(by_model: Mapping[str, Sequence[Run]]) -> dict[str, Measured]:
    """Everything that the tables draw on, by the papers' names.

    A model stands for what it answers by its own settings; MTMH also for each of its heads alone, for its heads under
    one shared preranking, for every alpha (``MTMH, alpha = 30``), and for the yardsticks beside it. Data without a
    teacher have no MTMH: there the yardsticks beside the recipe's own settings stand.
    """
    found: dict[str, Measured] = {}
    with_yardsticks = MTMH if MTMH in by_model else DEFAULTS
    for name, runs in by_model.items():
        evaluations = [load_evaluation(run.evaluation) for run in runs]
        wanted: dict[str, Find] = {name: lambda evaluation: evaluation.merged}
        if name == MTMH:
            wanted |= _parts_of_mtmh(evaluations[0])
        if name == with_yardsticks:
            wanted |= _yardsticks(evaluations[0])
        for label, find in wanted.items():
            rows, users = [], {}
            for run, evaluation in zip(runs, evaluations, strict=True):
                row = find(evaluation)
                if row is not None:
                    rows.append(row)
                    users[run.seed] = user_values(run.evaluation, evaluation, row)
            if rows:
                found[label] = Measured(rows, users, runs[0].command)
    return found


def _parts_of_mtmh(evaluation: Evaluation) -> dict[str, Find]:
    more: dict[str, Find] = {}
    for label, row in zip((H1, H2), evaluation.of_kind("head"), strict=False):
        more[label] = _named(row, evaluation)
    for row in evaluation.of_kind("preranking"):
        if row.name.endswith(", shared preranking") or row.name.endswith(", learned preranker, shared"):
            more[SHARED] = _named(row, evaluation)
    for row in evaluation.sweep():
        more[f"{MTMH}, alpha = {row.alpha:g}"] = _named(row, evaluation)
    return more


def _yardsticks(evaluation: Evaluation) -> dict[str, Find]:
    rows = evaluation.of_kind("yardstick")
    return {row.name: _named(row, evaluation) for row in rows if not row.name.endswith(", best trigger")}


def _named(row: Row, evaluation: Evaluation) -> Find:
    """Finds a row in the evaluation of another seed: names begin with the model's, which has the seed in it."""
    ends = row.name.removeprefix(evaluation.model)
    return lambda of_seed: next((row for row in of_seed.rows if row.name.removeprefix(of_seed.model) == ends), None)
