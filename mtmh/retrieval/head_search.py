"""The nearest allowed items of one head: index, items added since, and exact search where few are allowed."""

from __future__ import annotations

import math

import faiss
import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, Mask, Scores
from mtmh.data.item_vectors import StackedVectors
from mtmh.index.vector_index import VectorIndex

Found = tuple[Scores, npt.NDArray[np.int64]]

SCANNED_ITEMS = 16_384  # up to so many allowed items, comparing all of them costs less than the index
_MORE_PROBES = 8
_COMPARED = 16_777_216  # scores of added items at a time: bounds memory


class HeadSearch:
    """Searches one head.

    Args:
        index: over the I items of the built version.
        vectors: of these and of F added items.
    """

    def __init__(self, index: VectorIndex, vectors: StackedVectors) -> None:
        self.index = index
        self.vectors = vectors

    def search(
        self, triggers: Indices, k: int, *, num_probes: int, needed: int, allowed: Mask | None = None
    ) -> tuple[npt.NDArray[np.int32], Scores]:
        """Finds the nearest items of each trigger; itself is not among them.

        Args:
            triggers: [T] item indices.
            k: answers a trigger.
            num_probes: clusters searched. With a filter as many more as it takes to compare as many allowed items.
            needed: where fewer than this are found although there are more, further clusters are searched.
            allowed: [I + F]; None: all.

        Returns:
            Items [T, k] int32, the nearest first, -1: none; scores [T, k] float32, -inf: none.
        """
        queries = self.vectors[triggers]
        # One more than asked for: a trigger is its own nearest neighbour.
        found = self._search_base(queries, k + 1, num_probes, needed + 1, allowed)
        if self.vectors.num_added:
            found = self._with_added(queries, found, allowed)
        scores, items = _without_self(found, triggers)
        return items.astype(np.int32), scores

    def _search_base(self, queries: Scores, k: int, num_probes: int, needed: int, allowed: Mask | None) -> Found:
        num_items = self.index.num_items
        if allowed is not None:
            allowed = allowed[:num_items]
            num_allowed = int(np.count_nonzero(allowed))
            if num_allowed == num_items:
                allowed = None
            elif num_allowed <= SCANNED_ITEMS:
                places = np.flatnonzero(allowed)
                return _padded(_nearest(queries, self.vectors.base[places], places, k), k)
            else:
                num_probes = math.ceil(num_probes * num_items / num_allowed)
        else:
            num_allowed = num_items
        width, needed = min(k, num_items), min(needed, num_allowed, k)
        probes = min(num_probes, self.index.num_clusters)
        scores, items = self.index.search(queries, width, probes, allowed)
        while probes < self.index.num_clusters:
            short = np.flatnonzero(items[:, needed - 1] < 0)
            if not len(short):
                break
            probes = min(_MORE_PROBES * probes, self.index.num_clusters)
            scores[short], items[short] = self.index.search(queries[short], width, probes, allowed)
        return _padded((scores, items), k)

    def _with_added(self, queries: Scores, found: Found, allowed: Mask | None) -> Found:
        """The best of what was found and of the added items, as many as were found."""
        first = self.index.num_items
        places = np.arange(self.vectors.num_added) if allowed is None else np.flatnonzero(allowed[first:])
        if not len(places):
            return found
        added = self.vectors.added[places]
        block = max(1, _COMPARED // len(places))
        parts = [
            _merged((found[0][rows], found[1][rows]), queries[rows] @ added.T, places + first)
            for rows in (slice(start, start + block) for start in range(0, len(queries), block))
        ]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([items for _, items in parts])


def _nearest(queries: Scores, vectors: Scores, items: npt.NDArray[np.int64], k: int) -> Found:
    """Exact search among [N, D] vectors of ``items`` [N]; [Q, min(k, N)]."""
    if not len(items):
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    scores, places = faiss.knn(queries, vectors, min(k, len(items)), metric=faiss.METRIC_INNER_PRODUCT)
    return scores, items[places]


def _merged(found: Found, scores: Scores, items: npt.NDArray[np.int64]) -> Found:
    """The best of answers [Q, k] and of others with scores [Q, N] of ``items`` [N]; [Q, k]."""
    width = found[0].shape[1]
    # Few of the others, if any, are better than the last answer.
    better = min(width, int((scores > found[0][:, -1:]).sum(axis=1).max(initial=0)))
    if better == 0:
        return found
    columns = np.argpartition(-scores, better - 1, axis=1)[:, :better]
    scores = np.concatenate([found[0], np.take_along_axis(scores, columns, axis=1)], axis=1)
    merged = np.concatenate([found[1], items[columns]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(merged, order, axis=1)


def _without_self(found: Found, triggers: Indices) -> Found:
    """Drops each trigger from its own answers [T, k + 1], or the last answer where it is not there; [T, k]."""
    scores, items = found
    k = items.shape[1] - 1
    if len(triggers) and (items[:, 0] == triggers).all():  # its own nearest neighbour, as a rule
        return scores[:, 1:], items[:, 1:]
    itself = items == triggers[:, None]
    if not itself.any():
        return scores[:, :k], items[:, :k]
    place = np.where(itself.any(axis=1), itself.argmax(axis=1), k)
    columns = np.arange(k) + (np.arange(k) >= place[:, None])
    return np.take_along_axis(scores, columns, axis=1), np.take_along_axis(items, columns, axis=1)


def _padded(found: Found, k: int) -> Found:
    scores, items = found
    missing = ((0, 0), (0, k - scores.shape[1]))
    if scores.shape[1] == k:
        return found
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(items, missing, constant_values=-1)
