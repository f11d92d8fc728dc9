"""The nearest allowed items of one head: index, items added since, and exact search where few are allowed."""

from __future__ import annotations

import math

import faiss
import numpy as np
import numpy.typing as npt

from mtmh.index.vector_index import VectorIndex
from mtmh.serving.catalogue import Indices, Mask
from mtmh.serving.stacked_vectors import StackedVectors

Scores = npt.NDArray[np.float32]
Found = tuple[Scores, npt.NDArray[np.int64]]

_SCANNED_ITEMS = 16_384  # up to so many allowed items, comparing all of them costs less than the index
_MORE_PROBES = 8


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
        scores, items = self._search_base(queries, k + 1, num_probes, needed + 1, allowed)
        if self.vectors.num_added:
            scores, items = _merged((scores, items), self._search_added(queries, k + 1, allowed))
        itself = items == triggers[:, None]
        place = np.where(itself.any(axis=1), itself.argmax(axis=1), k)
        columns = np.arange(k) + (np.arange(k) >= place[:, None])
        return np.take_along_axis(items.astype(np.int32), columns, axis=1), np.take_along_axis(scores, columns, axis=1)

    def _search_base(self, queries: Scores, k: int, num_probes: int, needed: int, allowed: Mask | None) -> Found:
        num_items = self.index.num_items
        if allowed is not None:
            allowed = allowed[:num_items]
            num_allowed = int(np.count_nonzero(allowed))
            if num_allowed == num_items:
                allowed = None
            elif num_allowed <= _SCANNED_ITEMS:
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

    def _search_added(self, queries: Scores, k: int, allowed: Mask | None) -> Found:
        first = self.index.num_items
        places = np.arange(self.vectors.num_added) if allowed is None else np.flatnonzero(allowed[first:])
        return _nearest(queries, self.vectors.added[places], places + first, k)


def _nearest(queries: Scores, vectors: Scores, items: npt.NDArray[np.int64], k: int) -> Found:
    """Exact search among [N, D] vectors of ``items`` [N]; [Q, min(k, N)]."""
    if not len(items):
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    scores, places = faiss.knn(queries, vectors, min(k, len(items)), metric=faiss.METRIC_INNER_PRODUCT)
    return scores, items[places]


def _merged(one: Found, other: Found) -> Found:
    """The best of two answers, as wide as the first."""
    scores, items = np.concatenate([one[0], other[0]], axis=1), np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : one[0].shape[1]]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(items, order, axis=1)


def _padded(found: Found, k: int) -> Found:
    scores, items = found
    missing = ((0, 0), (0, k - scores.shape[1]))
    if scores.shape[1] == k:
        return found
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(items, missing, constant_values=-1)
