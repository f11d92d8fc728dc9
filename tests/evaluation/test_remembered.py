"""Scores that are remembered are those that the model gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtmh.evaluation import remembered
from mtmh.evaluation.remembered import remembering
from mtmh.evaluation.whole_catalogue import MOST_ITEMS
from mtmh.preranking.user_ranker import UserRanker
from mtmh.retrieval.open_preranker import LearnedPreranker
from mtmh.retrieval.ranking import HeadScorePreranker


class Counting(UserRanker):
    """A score that tells user and item, and how many items it was asked about."""

    def __init__(self) -> None:
        self.scorer: Any = SimpleNamespace(vectors=range(MOST_ITEMS + 1))
        self.evidence: Any = None
        self.combination: Any = None
        self.asked = 0

    def score(self, histories: Any, candidates: Any, sums: Any = None) -> Any:
        self.asked += int((candidates >= 0).sum())
        users = np.where(histories >= 0, histories, 0).sum(axis=1)
        return np.where(candidates >= 0, (1000.0 * users[:, None] + candidates).astype(np.float32), -np.inf)


@pytest.mark.parametrize("most", [remembered._MOST_SCORES, 3])
def test_each_item_of_a_user_is_judged_once(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_MOST_SCORES", most)
    model = Counting()
    ranker = remembering(LearnedPreranker(model))
    assert isinstance(ranker, LearnedPreranker)
    rng = np.random.default_rng(0)
    histories = np.array([[3, 1, -1], [2, -1, -1], [3, 1, 7]])
    pairs = set()
    for width in (5, 0, 8, 5):
        rows = rng.permutation(3)[:2]
        candidates = rng.integers(-1, 12, (2, width))
        padded = np.pad(histories[rows], ((0, 0), (0, width)), constant_values=-1)
        np.testing.assert_array_equal(
            ranker.ranker.score(padded, candidates), Counting().score(histories[rows], candidates)
        )
        pairs |= {
            (row, item) for row, items in zip(rows, candidates.tolist(), strict=True) for item in items if item >= 0
        }
    assert model.asked == len(pairs) if most > 3 else model.asked > len(pairs)


def test_other_rankers_stay_as_they_are() -> None:
    ranker = HeadScorePreranker()
    assert remembering(ranker) is ranker
