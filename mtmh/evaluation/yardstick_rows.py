"""Rows of the yardsticks: simple recommenders that a user would pick instead, from the same training histories."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mtmh.config import Yardstick
from mtmh.data.arrays import Indices, Scores
from mtmh.evaluation.als import Als
from mtmh.evaluation.baselines import ContentSearch, Cooccurrence, popularity
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.ease import MOST_ITEMS, Ease
from mtmh.evaluation.measure import Measure
from mtmh.evaluation.pipeline import Pipeline
from mtmh.evaluation.protocol import rank_users
from mtmh.evaluation.ranked import RankedCandidates
from mtmh.evaluation.whole_lists import whole_lists
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, Ranker

EASE_REGULARIZATION = 250.0


class _Scored(Protocol):
    """A yardstick that scores the catalogue for a history, and knows the neighbours of an item."""

    def score(self, histories: sparse.csr_matrix) -> Scores: ...

    def search(self, triggers: Indices, k: int) -> Candidates: ...


@dataclass(frozen=True)
class YardstickRows:
    """The yardsticks that are wanted, and the users that they are measured on.

    A yardstick's list is the whole catalogue by its own score of the whole training history. Those that have neighbours
    for a trigger, as a model has, also answer by the model's rule: the best of all triggers counts.

    Attributes:
        engaged: [all users, I] of `engagement_matrix`, of the training period.
        content: [I, Dc] the teacher's unit vectors; None: there is no teacher.
        cohort: U users.
        measure: takes the rows.
        k: answers a trigger.
        k_ann: candidates a trigger.
        sorter: of the model.
        seed: of factors.
    """

    engaged: sparse.csr_matrix
    content: npt.NDArray[np.float32] | None
    cohort: Cohort
    measure: Measure
    k: int
    k_ann: int
    sorter: Ranker
    seed: int

    def add(self, wanted: Collection[Yardstick]) -> list[str]:
        """Measures them, and says which are left out and why."""
        left_out = []
        if "item-item" in wanted:
            self._add_by_trigger("item-item cosine", Cooccurrence(self.engaged))
        if "ease" in wanted:
            if (known := int((self.measure.train_count > 0).sum())) <= MOST_ITEMS:
                self._add_whole("EASE", Ease(self.engaged, EASE_REGULARIZATION))
            else:
                left_out.append(f"EASE is not measured: {known:,} items are more than the {MOST_ITEMS:,} it is for")
        if "als" in wanted:
            try:
                self._add_whole("implicit ALS", Als(self.engaged, self.seed))
            except ImportError:
                left_out.append("implicit ALS is not measured: pip install 'mtmh[yardsticks]'")
        if "teacher" in wanted and self.content is not None:
            self._add_by_trigger("content (teacher)", ContentSearch(self.content))
        if "popularity" in wanted:
            answers, lists = popularity(self.cohort, self.measure.train_count, k=self.k, length=self.measure.length)
            self.measure.add("popularity", "yardstick", answers, lists)
        return left_out

    def _add_whole(self, name: str, yardstick: _Scored) -> None:
        answers = self._ranked(name, yardstick, length=1).answers()
        self.measure.add(name, "yardstick", answers, self._lists(yardstick))

    def _add_by_trigger(self, name: str, yardstick: _Scored) -> None:
        ranking = self._ranked(name, yardstick, self.measure.length)
        answers = ranking.answers()
        self.measure.add(name, "yardstick", answers, self._lists(yardstick))
        self.measure.add(f"{name}, best trigger", "yardstick", answers, ranking.lists())
        self.measure.add(f"{name}, sorted as the model", "candidates", answers, ranking.sorted_by(self.sorter).lists())

    def _lists(self, yardstick: _Scored) -> npt.NDArray[np.int64]:
        return whole_lists(self.cohort, yardstick.score, self.engaged.shape[1], self.measure.length)

    def _ranked(self, name: str, yardstick: _Scored, length: int) -> RankedCandidates:
        num_items = self.engaged.shape[1]
        k_ann = min(self.k_ann, num_items)
        by_score = HeadScorePreranker()
        searches = {name: lambda triggers, k, _needed: yardstick.search(triggers, k)}
        pipeline = Pipeline(searches, by_score, by_score, num_items=num_items, k_ann=k_ann, k=min(self.k, k_ann))
        return rank_users(self.cohort, pipeline, length)
