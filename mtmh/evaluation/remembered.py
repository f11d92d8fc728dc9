"""A learned preranker that remembers its scores: an evaluation asks about the same users and items for many rows."""

from __future__ import annotations

import numpy as np

from mtmh.data.arrays import Floats, Indices
from mtmh.preranking.neighbours import Sums
from mtmh.preranking.user_ranker import UserRanker
from mtmh.retrieval.open_preranker import LearnedPreranker
from mtmh.retrieval.ranking import Ranker

_MOST_SCORES = 32_000_000  # remembered, of 12 bytes each


def remembering(ranker: Ranker) -> Ranker:
    """The same ranker, but one that is learned judges each item of a user once."""
    return LearnedPreranker(_Remembering(ranker.ranker)) if isinstance(ranker, LearnedPreranker) else ranker


class _Remembering(UserRanker):
    """Scores by what it knows of a user, told by the history; what is new to it goes to the model."""

    def __init__(self, ranker: UserRanker) -> None:
        super().__init__(ranker.scorer, ranker.evidence, ranker.combination)
        self._ranker = ranker
        self._known: dict[bytes, tuple[Indices, Floats]] = {}  # items, ascending, and scores
        self._size = 0

    def score(self, histories: Indices, candidates: Indices, sums: tuple[Sums, Sums] | None = None) -> Floats:
        """As ``UserRanker.score``."""
        nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        keys = [row[row >= 0].astype(np.int64).tobytes() for row in histories]
        known = [self._known.get(key, nothing) for key in keys]
        new = [np.setdiff1d(row[row >= 0], items) for row, (items, _) in zip(candidates, known, strict=True)]
        asked = np.full((len(new), max(map(len, new), default=0)), -1, np.int64)
        for row, items in enumerate(new):
            asked[row, : len(items)] = items
        found = self._ranker.score(histories, asked, sums) if asked.size else np.empty(asked.shape, np.float32)
        scores = np.full(candidates.shape, -np.inf, np.float32)
        for row, (key, (items, values)) in enumerate(zip(keys, known, strict=True)):
            count = len(new[row])
            if count:
                items, values = np.concatenate([items, new[row]]), np.concatenate([values, found[row, :count]])
                order = np.argsort(items)
                items, values = items[order], values[order]
                if self._size < _MOST_SCORES:
                    self._known[key] = items, values
                    self._size += count
            present = candidates[row] >= 0
            scores[row, present] = values[np.searchsorted(items, candidates[row, present])]
        return scores
