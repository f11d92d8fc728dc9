"""A learned preranker that remembers its scores: an evaluation asks about the same users and items for many rows."""

from __future__ import annotations

import numpy as np

from mtmh.data.arrays import Floats, Indices
from mtmh.evaluation.whole_catalogue import MOST_ITEMS, WholeCatalogue
from mtmh.preranking.neighbours import BothSums
from mtmh.preranking.user_ranker import UserRanker
from mtmh.retrieval.open_preranker import LearnedPreranker
from mtmh.retrieval.ranking import Ranker

_MOST_SCORES = 32_000_000  # remembered, of 12 bytes each


def remembering(ranker: Ranker) -> Ranker:
    """The same ranker, but one that is learned judges each item of a user once."""
    if not isinstance(ranker, LearnedPreranker):
        return ranker
    if len(ranker.ranker.scorer.vectors) <= MOST_ITEMS:
        return LearnedPreranker(WholeCatalogue(ranker.ranker))
    return LearnedPreranker(_Remembering(ranker.ranker))


class _Remembering(UserRanker):
    """Scores by what it knows of a user, told by the history; what is new to it goes to the model."""

    def __init__(self, ranker: UserRanker) -> None:
        super().__init__(ranker.scorer, ranker.evidence, ranker.combination)
        self._ranker = ranker
        self._known: dict[bytes, tuple[Indices, Floats]] = {}  # items, ascending, and scores
        self._size = 0

    def score(self, histories: Indices, candidates: Indices, sums: BothSums | None = None) -> Floats:
        """As ``UserRanker.score``."""
        nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        keys = [row[row >= 0].astype(np.int64).tobytes() for row in histories]
        known = [self._known.get(key, nothing) for key in keys]
        new = [_missing(row, items) for row, (items, _) in zip(candidates, known, strict=True)]
        asking = [row for row, items in enumerate(new) if len(items) or sums is not None]
        asked = np.full((len(asking), max(map(len, new), default=0)), -1, np.int64)
        for place, row in enumerate(asking):
            asked[place, : len(new[row])] = new[row]
        found = self._ranker.score(histories[asking], asked, sums) if asked.size else np.empty(asked.shape, np.float32)
        for row, scores_of in zip(asking, found, strict=True):
            count = len(new[row])
            items, values = known[row]
            items, values = np.concatenate([items, new[row]]), np.concatenate([values, scores_of[:count]])
            order = np.argsort(items)
            known[row] = items[order], values[order]
            if count and self._size < _MOST_SCORES:
                self._known[keys[row]] = known[row]
                self._size += count
        scores = np.full(candidates.shape, -np.inf, np.float32)
        for row, (items, values) in enumerate(known):
            present = candidates[row] >= 0
            scores[row, present] = values[np.searchsorted(items, candidates[row, present])]
        return scores


def _missing(candidates: Indices, items: Indices) -> Indices:
    """The distinct candidates that are not among some items, both ascending; -1 among the candidates is none."""
    wanted = np.sort(candidates[candidates >= 0])
    wanted = wanted[np.flatnonzero(np.diff(wanted, prepend=-1))]
    if len(items):
        wanted = wanted[items[np.minimum(np.searchsorted(items, wanted), len(items) - 1)] != wanted]
    return wanted
