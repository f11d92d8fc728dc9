"""The nearest allowed items of one head: index, items added since, and exact search where few are allowed."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, Mask, Scores, Vectors, narrowed
from mtmh.data.item_vectors import StackedVectors
from mtmh.index.added_lists import AddedLists
from mtmh.index.vector_index import IvfIndex, Near, VectorIndex, largest

Found = tuple[Scores, npt.NDArray[np.int64]]

SCANNED_ITEMS = 4096  # up to so many allowed items, comparing all of them costs less than the index in any case
SCANNED_ADDED = 1024  # up to so many added items, the latest, are in no lists
_FEW_OF = 32  # items that may be no answers are few where they are at most so small a part of all
_SPARE = 64  # candidates in the place of those that may be no answers
# Costs in comparisons of a query with an item of a list (by benchmarks.retrieval, 1M x 128): testing whether an item is
# allowed; taking the vector of an item out of the index; comparing it with a query in one product with all others.
_TEST, _TAKE, _PRODUCT = 0.3, 6.0, 0.4
_MORE_PROBES = 8
_COMPARED = 16_777_216  # scores of exact search at a time: bounds memory


class HeadSearch:
    """Searches one head.

    Args:
        index: over the I items of the built version.
        vectors: of these and of F added items.
        lists: of the first added items; None: all are compared one by one.
    """

    def __init__(self, index: VectorIndex, vectors: StackedVectors, lists: AddedLists | None = None) -> None:
        self.index = index
        self.vectors = vectors
        self._lists = lists

    def with_added(self, vectors: Vectors, *, listed: bool) -> HeadSearch:
        """That of more items [N, D]; ``listed``: they may be answers, so that lists are worth their while."""
        stacked, lists = self.vectors.with_added(vectors), self._lists
        unlisted = stacked.num_added - (lists.num_items if lists else 0)
        if listed and unlisted > SCANNED_ADDED and isinstance(self.index, IvfIndex):
            lists = AddedLists(self.index, stacked.added, lists)
        return HeadSearch(self.index, stacked, lists)

    def search(
        self, triggers: Indices, k: int, *, num_probes: int, needed: int, allowed: Mask | None = None
    ) -> tuple[Indices, Scores]:
        """Finds the nearest items of each trigger; itself is not among them.

        Args:
            triggers: [T] item indices.
            k: answers a trigger.
            num_probes: clusters searched. With a filter as many more as it takes to compare as many allowed items; all
                of these are compared where that costs less.
            needed: where fewer than this are found although there are more, further clusters are searched.
            allowed: [I + F]; None: all.

        Returns:
            Items [T, k], the nearest first, -1: none; scores [T, k] float32, -inf: none.
        """
        queries = self.vectors[triggers]
        near = None
        if isinstance(self.index, IvfIndex):
            near = self.index.nearest_kept(triggers, queries, num_probes)
            if near is None and self._lists is not None:  # which both ask for
                near = self.index.nearest(queries, num_probes)
        # One more than asked for: a trigger is its own nearest neighbour.
        found = self._search_base(queries, k + 1, num_probes, needed + 1, allowed, near)
        if self.vectors.num_added:
            found = self._with_added(queries, found, allowed, near)
        scores, items = _without_self(found, triggers)
        return narrowed(items, len(self.vectors)), scores

    def _search_base(
        self, queries: Scores, k: int, num_probes: int, needed: int, allowed: Mask | None, near: Near | None
    ) -> Found:
        num_items = self.index.num_items
        num_allowed = num_items
        if allowed is not None:
            allowed = allowed[:num_items]
            num_allowed = int(np.count_nonzero(allowed))
        if allowed is None or num_allowed == num_items:
            return self._probe(queries, k, num_probes, min(needed, num_items, k), None, near)
        if (num_items - num_allowed) * _FEW_OF <= num_items and num_allowed > SCANNED_ITEMS:
            return self._past_few(queries, k, num_probes, needed, allowed, num_items - num_allowed, near)
        return self._search_allowed(queries, k, num_probes, needed, allowed)

    def _probe(
        self,
        queries: Scores,
        k: int,
        num_probes: int,
        needed: int,
        allowed: Mask | None,
        near: Near | None = None,
    ) -> Found:
        """Asks the index; where fewer than ``needed`` are found, again with more clusters."""
        width, probes = min(k, self.index.num_items), min(num_probes, self.index.num_clusters)
        if near is not None and isinstance(self.index, IvfIndex):
            scores, items = self.index.search(queries, width, probes, allowed, near)
        else:
            scores, items = self.index.search(queries, width, probes, allowed)
        while probes < self.index.num_clusters:
            short = np.flatnonzero(items[:, needed - 1] < 0)
            if not len(short):
                break
            probes = min(_MORE_PROBES * probes, self.index.num_clusters)
            scores[short], items[short] = self.index.search(queries[short], width, probes, allowed)
        return _padded((scores, items), k)

    def _past_few(
        self,
        queries: Scores,
        k: int,
        num_probes: int,
        needed: int,
        allowed: Mask,
        num_others: int,
        near: Near | None,
    ) -> Found:
        """Finds some more and drops the few that may be no answers; a filter would test every item that is compared."""
        spare = min(num_others, max(_SPARE, k))
        least = min(needed + spare, self.index.num_items)
        scores, items = self._probe(queries, k + spare, num_probes, least, None, near)
        present = items >= 0
        gone = present & ~allowed[items]
        order = np.argsort(gone | ~present, axis=1, kind="stable")[:, :k]
        scores[gone], items[gone] = -np.inf, -1
        # Where more had to go than there are to spare, although there may be others behind them.
        short = np.flatnonzero(gone.sum(axis=1) > spare) if spare < num_others else np.empty(0, np.int64)
        scores, items = np.take_along_axis(scores, order, axis=1), np.take_along_axis(items, order, axis=1)
        if len(short):
            scores[short], items[short] = self._search_allowed(queries[short], k, num_probes, needed, allowed)
        return scores, items

    def _search_allowed(self, queries: Scores, k: int, num_probes: int, needed: int, allowed: Mask) -> Found:
        """Compares as many allowed items as a search without a filter would compare items, in the cheapest way."""
        places = np.flatnonzero(allowed)
        needed, num_queries = min(needed, len(places), k), len(queries)
        probed = min(self.index.num_clusters, math.ceil(num_probes * len(allowed) / max(1, len(places))))
        compared = num_probes * len(allowed) / self.index.num_clusters  # by a search without a filter
        tested = probed * len(allowed) / self.index.num_clusters
        costs = num_queries * (compared + _TEST * tested)
        scanned = _scan_cost(len(places), num_queries)
        if scanned <= costs or len(places) <= SCANNED_ITEMS:
            return _padded(_nearest(queries, self.vectors.base[places], places, k), k)
        if isinstance(self.index, IvfIndex) and num_queries > 1:
            near = self._near(queries, places, probed, compared)
            if _scan_cost(len(near), num_queries) <= costs:
                found = _padded(_nearest(queries, self.vectors.base[near], near, k), k)
                if (found[1][:, needed - 1] >= 0).all():
                    return found
        return self._probe(queries, k, probed, needed, allowed)

    def _near(
        self, queries: Scores, places: npt.NDArray[np.int64], num_probes: int, compared: float
    ) -> npt.NDArray[np.int64]:
        """Allowed items in the clusters that any of the queries visits until it has seen enough of them.

        Args:
            queries: [Q, D].
            places: [N] the allowed items.
            num_probes: clusters a query, at most.
            compared: allowed items that are enough for a query.
        """
        assert isinstance(self.index, IvfIndex)
        clusters = self.index.clusters_of_items[places]
        counts = np.bincount(clusters, minlength=self.index.num_clusters)
        visited = self.index.nearest(queries, num_probes).clusters
        before = np.cumsum(counts[visited], axis=1) - counts[visited]
        is_visited = np.zeros(self.index.num_clusters, bool)
        is_visited[visited[before < compared]] = True
        return places[is_visited[clusters]]

    def _with_added(self, queries: Scores, found: Found, allowed: Mask | None, near: Near | None) -> Found:
        """The best of what was found and of the added items, as many as were found."""
        first, listed = self.index.num_items, 0
        may = np.ones(self.vectors.num_added, bool) if allowed is None else allowed[first:]
        # A filter that leaves few of them would need more clusters than the search without it.
        if self._lists is not None and near is not None and 2 * np.count_nonzero(may) > len(may):
            listed = self._lists.num_items
            some = may[:listed]
            scores, places = self._lists.search(queries, found[0].shape[1], near, None if some.all() else some)
            scores[places < 0] = -np.inf
            found = _merged(found, scores, np.where(places >= 0, places + first, -1))
        places = listed + np.flatnonzero(may[listed:])
        if not len(places):
            return found
        added = self.vectors.added[places]
        block = max(1, _COMPARED // len(places))
        parts = [
            _merged((found[0][rows], found[1][rows]), queries[rows] @ added.T, places[None, :] + first)
            for rows in (slice(start, start + block) for start in range(0, len(queries), block))
        ]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([items for _, items in parts])


def _scan_cost(num_items: int, num_queries: int) -> float:
    """The cost of comparing queries with vectors that are taken out of the index, in comparisons."""
    return num_items * (_TAKE + _PRODUCT * num_queries)


def _nearest(queries: Scores, vectors: Scores, items: npt.NDArray[np.int64], k: int) -> Found:
    """Exact search among [N, D] vectors of ``items`` [N]; [Q, min(k, N)]."""
    width = min(k, len(items))
    scores, found = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
    block = max(1, _COMPARED // max(1, len(items)))
    for start in range(0, len(queries) if width else 0, block):
        rows = slice(start, start + block)
        scores[rows], columns = largest(queries[rows] @ vectors.T, width)
        found[rows] = items[columns]
    return scores, found


def _merged(found: Found, scores: Scores, items: npt.NDArray[np.int64]) -> Found:
    """The best of answers [Q, k] and of others with scores [Q, N] of ``items`` [Q or 1, N]; [Q, k]."""
    width = found[0].shape[1]
    # Few of the others, if any, are better than the last answer.
    better = min(width, int((scores > found[0][:, -1:]).sum(axis=1).max(initial=0)))
    if better == 0:
        return found
    best, columns = largest(scores, better)
    scores = np.concatenate([found[0], best], axis=1)
    others = np.take_along_axis(np.broadcast_to(items, (len(columns), items.shape[1])), columns, axis=1)
    merged = np.concatenate([found[1], np.where(np.isfinite(best), others, -1)], axis=1)
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
