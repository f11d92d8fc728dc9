"""Opens the prerankers of an index, learned or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtmh.config.retrieval import Ranking
from mtmh.data.arrays import Indices, Mask, Scores, Vectors
from mtmh.data.item_vectors import ItemVectors
from mtmh.preranking.neighbours import distinct_pairs
from mtmh.preranking.user_ranker import UserRanker
from mtmh.retrieval.ranking import USER, Candidates, HeadScorePreranker, HistoryPreranker, Ranker, Requests, top_columns

_MORE_CANDIDATES = 2000  # looked at in the place of those that may not be answers


class LearnedPreranker:
    """The model of ``mtmh train-preranker``: what it makes of all the evidence on a candidate of a user.

    It speaks of a user and an item; which trigger brought the item plays no part.

    Args:
        ranker: the files of a preranker artifact.
    """

    def __init__(self, ranker: UserRanker) -> None:
        self.ranker = ranker

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """As ``Ranker.score``; each distinct item of a user is judged once.

        Raises:
            ValueError: an item is newer than the model, see `with_added`.
        """
        if np.array_equal(requests.users, np.arange(len(requests.histories))):  # one row each, without repetitions
            return self.ranker.score(requests.histories, candidates.items)
        present = candidates.items >= 0
        users = np.broadcast_to(requests.users[:, None], candidates.items.shape)[present]
        pairs, place = distinct_pairs(users, candidates.items[present])
        rows = pairs >> 32
        column = np.arange(len(pairs)) - np.searchsorted(rows, rows)
        asking, row = np.unique(rows, return_inverse=True)
        items = np.full((len(asking), int(column.max(initial=-1)) + 1), -1, np.int64)
        items[row, column] = pairs & 0xFFFFFFFF
        scores = np.full(candidates.items.shape, -np.inf, np.float32)
        scores[present] = self.ranker.score(requests.histories[asking], items)[row, column][place]
        return scores

    def best_of_users(
        self, histories: Indices, found: Indices, k: int, may_answer: Callable[[Indices], npt.NDArray[np.bool_]]
    ) -> tuple[Indices, Scores]:
        """As ``UserSource.best_of_users``."""
        pool, scores = self.ranker.judged(histories, found, k, may_answer, more=histories.shape[1])
        order = top_columns(scores, k)
        missing = ((0, 0), (0, k - order.shape[1]))
        items = np.where(np.isfinite(scores), pool, -1)
        return (
            np.pad(np.take_along_axis(items, order, axis=1), missing, constant_values=-1),
            np.pad(np.take_along_axis(scores, order, axis=1), missing, constant_values=-np.inf),
        )

    def propose(
        self, requests: Requests, found: Sequence[Candidates], k: int, allowed: Mask | None
    ) -> tuple[Candidates, Ranker]:
        """As ``UserSource.propose``; its own candidates are what goes with the history, and popular items."""
        brought = np.concatenate([candidates.items.ravel() for candidates in found])
        blocked = 0 if allowed is None else int(np.count_nonzero(~allowed))
        pool, scores = self.ranker.judged(
            requests.histories[requests.users[:1]],
            brought[None, :],
            k,
            lambda items: np.ones(items.shape, bool) if allowed is None else allowed[items],
            more=min(blocked, _MORE_CANDIDATES),
        )
        present = pool[0] >= 0
        items, own = pool[0][present], scores[0][present]
        best = items[np.argsort(-own, kind="stable")[:k]]
        directions = self.ranker.scorer.directions
        similar = directions(requests.triggers) @ directions(best).T
        placed = np.full(similar.shape, -1, np.int64)
        placed[similar.argmax(axis=0), np.arange(len(best))] = best
        proposed = Candidates(USER, placed, np.where(placed >= 0, similar, np.float32(-np.inf)))
        return proposed, _Judged(items, own)

    def engaged_with(self, item: int) -> tuple[npt.NDArray[np.int64], Scores]:
        """As ``CoOccurrence.engaged_with``; none of an item that is newer than the table."""
        table = self.ranker.evidence.cosines
        if item >= len(table.items):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        present = table.items[item] >= 0
        return table.items[item][present].astype(np.int64), table.weights[item][present].astype(np.float32)

    def with_added(
        self, items: pa.Table, added: Mapping[str, Vectors], vectors: Mapping[str, ItemVectors]
    ) -> LearnedPreranker:
        """As ``Extensible.with_added``."""
        return LearnedPreranker(self.ranker.with_added(items, added, vectors))


class _Judged:
    """Scores of one user's candidates that are known already.

    Args:
        items: [N] item indices, distinct; more than none.
        scores: [N] of them.
    """

    def __init__(self, items: Indices, scores: Scores) -> None:
        order = np.argsort(items)
        self._items, self._scores = items[order], scores[order]

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """As ``Ranker.score``; -inf for an item that is not known."""
        del requests
        if not len(self._items):
            return np.full(candidates.items.shape, -np.inf, np.float32)
        place = np.minimum(np.searchsorted(self._items, candidates.items), len(self._items) - 1)
        return np.where(self._items[place] == candidates.items, self._scores[place], np.float32(-np.inf))


def open_prerankers(
    preranker: Ranking,
    sorter: Ranking,
    heads: Sequence[str],
    vectors: Mapping[str, ItemVectors],
    folder: Path,
    *,
    temperature: float,
) -> tuple[Ranker, Ranker]:
    """The ranker that keeps the best of each head, and the one that sorts the answers of all heads and triggers.

    Args:
        preranker: keeps the best of each head.
        sorter: sorts the answers.
        heads: names, the engagement head first.
        vectors: head -> [I, D] float32 unit-length embeddings.
        folder: of the preranker artifact, which only ``learned`` needs.
        temperature: of the engagement head's loss, which only ``history`` needs.

    Raises:
        ValueError: the learned preranker is asked for and not there, or knows other items.
    """
    engagement = heads[0]
    rankers: dict[str, Ranker] = {}
    if "learned" in (preranker, sorter):
        rankers["learned"] = LearnedPreranker(UserRanker.load(folder, vectors))
    if "history" in (preranker, sorter):
        rankers["history"] = HistoryPreranker(engagement, vectors[engagement], temperature)
    return (
        rankers.get(preranker, HeadScorePreranker()),
        rankers.get(sorter, HeadScorePreranker((engagement, vectors[engagement]))),
    )
