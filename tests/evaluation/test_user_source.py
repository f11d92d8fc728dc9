"""A user's own candidates beside those that the triggers bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, Mask, Scores
from mtmh.data.dataset import EvaluationUsers
from mtmh.data.histories import Histories
from mtmh.evaluation.cohort import make_cohort
from mtmh.evaluation.pipeline import Pipeline
from mtmh.evaluation.protocol import rank_users
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, Ranker, Requests, UserSource

NUM_ITEMS = 40


class ByTable:
    """Scores items by a table, the same for all users, and proposes the best of all items."""

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).random(NUM_ITEMS).astype(np.float32)
        self.histories: list[Indices] = []

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        return np.where(candidates.items >= 0, self.table[candidates.items], np.float32(-np.inf))

    def best_of_users(
        self, histories: Indices, found: Indices, k: int, may_answer: Callable[[Indices], npt.NDArray[np.bool_]]
    ) -> tuple[Indices, Scores]:
        self.histories.append(histories)
        items = np.tile(np.argsort(-self.table), (len(histories), 1))
        items = np.stack([row[good][:k] for row, good in zip(items, may_answer(items), strict=True)])
        return items, self.table[items]

    def propose(
        self, requests: Requests, found: Sequence[Candidates], k: int, allowed: Mask | None
    ) -> tuple[Candidates, Ranker]:
        raise AssertionError("of one user, in service")


def lists_of(values: list[list[int]]) -> Histories:
    return Histories(np.concatenate(values).astype(np.int32), np.cumsum([0, *map(len, values)]))


def test_a_share_of_the_list_is_the_users_own() -> None:
    histories = [[1, 2, 3, 2], [7, 8, 9, 10, 11, 12]]
    users = EvaluationUsers(np.array([0, 1]), lists_of(histories), lists_of([[30], [31, 32]]))
    cohort = make_cohort(users, num_triggers=2, exclude_seen=True)

    def search(triggers: Indices, k: int, needed: int) -> Candidates:
        items = (triggers[:, None] + 1 + np.arange(6)) % 20  # never one of the upper half
        return Candidates("engagement", items, -np.tile(np.arange(6, dtype=np.float32), (len(triggers), 1)))

    sorter = ByTable()
    assert isinstance(sorter, UserSource)
    for share in (0.0, 50.0, 100.0):
        pipeline = Pipeline({"engagement": search}, HeadScorePreranker(), sorter, NUM_ITEMS, 6, 6, user_share=share)
        ranking = rank_users(cohort, pipeline, 8)
        lists = ranking.lists()
        for user, history in enumerate(histories):
            brought = {
                item for trigger in cohort.triggers[user] for item in ((trigger + 1 + np.arange(6)) % 20).tolist()
            }
            best = [item for item in np.argsort(-sorter.table).tolist() if item not in history]
            candidates = (brought - set(history)) | set(best[: round(8 * share / 100)])
            expected = sorted(candidates, key=lambda item: -sorter.table[item])[:8]
            assert lists[user][lists[user] >= 0].tolist() == expected
        assert (ranking.lists(head=0) == rank_users(cohort, pipeline, 8).lists(head=0)).all()
        assert set(ranking.answers().items.ravel().tolist()) <= {*range(20), -1}, "a trigger's answers are the heads'"
    seen = sorter.histories[-1]
    assert [row[row >= 0].tolist() for row in seen] == [[2, 3, 1], [12, 11, 10, 9, 8, 7]], "whole, the latest first"
