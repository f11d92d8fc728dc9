"""The figures of one way to answer: a row of the table, and the values of each user behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtmh.data.arrays import Indices
from mtmh.data.dataset import Dataset
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.interests import Interests, match_at, young_items
from mtmh.evaluation.metrics import (
    Bootstrap,
    Ratio,
    Values,
    coverage,
    hits_in,
    marked_counts,
    ndcg_at,
    popular_items,
    popularity_bands,
    recall_at,
    topic_matches,
    topic_sets,
)
from mtmh.evaluation.pipeline import Answers
from mtmh.evaluation.results import Band, Row, RowKind
from mtmh.evaluation.user_values import UserValues


class Measure:
    """Turns answers into rows; what it needs of the dataset is read once.

    Args:
        dataset: of the cohort.
        cohort: U users.
        ks: cut-offs, ascending, at most the size of the catalogue.
        seed: of the bootstrap.

    Attributes:
        rows: in the order in which they were measured.
        values: of each of the rows.
        length: of a user's list: the largest cut-off.
    """

    def __init__(self, dataset: Dataset, cohort: Cohort, ks: Sequence[int], seed: int) -> None:
        self.rows: list[Row] = []
        self.values: list[UserValues] = []
        self.length = max(ks)
        self.train_count = dataset.item_table.train_count
        self.bootstrap = Bootstrap(cohort.num_users, seed=seed)
        self._cohort = cohort
        self._ks = ks
        self._sizes = np.diff(cohort.truth.offsets)
        self._popular = popular_items(self.train_count)
        self._fresh = self.train_count == 0
        self._fresh_sizes = np.bincount(
            np.repeat(np.arange(cohort.num_users), self._sizes)[self._fresh[cohort.truth.items]],
            minlength=cohort.num_users,
        ).astype(np.float64)
        self._topics = [_topic_codes(dataset, name) for name in ("topic_l1", "topic_l2")]
        self._coarse_sets = None
        if separator := dataset.summary.topic_separator:
            self._coarse_sets = topic_sets(dataset.items(["topic_l2"]).column("topic_l2").to_pylist(), separator)
        self._interests = Interests(self._topics[1], cohort.histories, cohort.truth)
        self._young = _young(dataset)
        self._bands = popularity_bands(self.train_count)

    def add(
        self,
        name: str,
        kind: RowKind,
        answers: Answers,
        lists: Indices,
        alpha: float | None = None,
        brought_by: Indices | None = None,
    ) -> Row:
        """Measures one way to answer and keeps the row.

        Args:
            name: of the row.
            kind: of the row.
            answers: K a <user, trigger>, for the topic match.
            lists: [U, length] the users' lists, best first, -1: none.
            alpha: of the row.
            brought_by: [U, length] the trigger that brought each item of the lists, -1: none.
        """
        cohort = self._cohort
        hits = hits_in(lists, cohort.truth.items, cohort.truth.offsets)
        recall, ndcg = recall_at(hits, self._sizes, self._ks), ndcg_at(hits, self._sizes, self._ks)
        fine = topic_matches(answers.triggers, answers.items, self._topics[1])
        coarse = topic_matches(
            answers.triggers,
            answers.items,
            self._topics[0] if self._coarse_sets is None else self._coarse_sets,
            sets=self._coarse_sets is not None,
        )
        values = UserValues(
            cohort.user_index,
            {k: recall[:, place] for place, k in enumerate(self._ks)},
            (self._of_users(answers, coarse[0]), self._of_users(answers, coarse[1])),
            (self._of_users(answers, fine[0]), self._of_users(answers, fine[1])),
        )
        ones, fresh_hits = np.ones(cohort.num_users), hits & self._fresh[lists]
        ratios: dict[str, Mapping[Any, Ratio]] = {
            "recall": {k: (of_users, ones) for k, of_users in values.recall.items()},
            "ndcg": {k: (ndcg[:, place], ones) for place, k in enumerate(self._ks)},
            "hit_rate": {k: (np.asarray(hits[:, :k].any(axis=1), np.float64), ones) for k in self._ks},
            "fresh_recall": {
                k: (fresh_hits[:, :k].sum(axis=1).astype(np.float64), self._fresh_sizes) for k in self._ks
            },
            "match": {} if brought_by is None else match_at(lists, brought_by, self._topics[1], self._ks),
            "interests": self._interests.covered(lists, self._ks),
            "novel_interests": self._interests.discovered(lists, hits, self._ks),
            "diversity": self._interests.diversity(lists, self._ks),
            "match_by_trigger": self._by_trigger(answers, *fine),
        }
        single = {
            "match_l1": values.l1,
            "match_l2": values.l2,
            "popular": marked_counts(lists, self._popular),
            "fresh": marked_counts(lists, self._fresh),
        }
        if self._young is not None:
            single["young"] = marked_counts(lists, self._young)
        estimates = iter(
            self.bootstrap.ratios([*(ratio for group in ratios.values() for ratio in group.values()), *single.values()])
        )
        row = Row.model_validate(
            {
                "name": name,
                "kind": kind,
                "alpha": alpha,
                "coverage": coverage(lists, len(self._fresh)),
                "list_length": float((lists >= 0).sum(axis=1).mean()),
                **{figure: {key: next(estimates) for key in group} for figure, group in ratios.items()},
                **{figure: next(estimates) for figure in single},
            }
        )
        self.rows.append(row)
        self.values.append(values)
        return row

    def _by_trigger(
        self, answers: Answers, matches: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]
    ) -> dict[Band, Ratio]:
        """Matches and counted pairs [P] of the triggers of each band."""
        band = self._bands[answers.triggers]
        names: tuple[Band, ...] = ("bottom", "middle", "top")
        return {
            name: (
                self._of_users(answers, matches * (band == place)), self._of_users(answers, pairs * (band == place))
            )
            for place, name in enumerate(names)
        }  # fmt: skip

    def _of_users(self, answers: Answers, counts: npt.NDArray[np.int64]) -> Values:
        """Sums [P] over each user's triggers."""
        return np.bincount(answers.users, weights=counts, minlength=self._cohort.num_users).astype(np.float64)


def _young(dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """[I] items younger than two days when the test period begins; None: there is no such instant."""
    if dataset.summary.cutoff is None:
        return None
    column = dataset.items(["first_seen"]).column("first_seen").combine_chunks()
    first_seen = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return young_items(np.asarray(first_seen, dtype=np.float64), dataset.summary.cutoff)


def _topic_codes(dataset: Dataset, name: str) -> npt.NDArray[np.int64]:
    """[I] a number for each topic, -1: no topic."""
    column = dataset.items([name]).column(name).combine_chunks()
    codes = pc.fill_null(column.dictionary_encode().indices, -1)
    return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int64)
