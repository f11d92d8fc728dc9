"""A learned preranker that judges all items of a small catalogue for a user at once, out of tables made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mtmh.data.arrays import Floats, Indices, falling, widened
from mtmh.preranking.evidence import Evidence, history_weights
from mtmh.preranking.neighbours import BothSums, Neighbours
from mtmh.preranking.user_ranker import UserRanker, first_allowed

MOST_ITEMS = 8192  # of a catalogue: 256 MiB of similarities a source
_MOST_SCORES = 64_000_000  # remembered (256 MiB), and candidates of each source, which are no more than the scores
_BLOCK_SCORES = 65_536  # judged at a time: what is known of them stays in the processor's cache
_PROPOSED = 1024  # candidates of a source that are remembered, at first


class WholeCatalogue(UserRanker):
    """Scores as the ranker does; the first question about a user has all items judged, and is remembered.

    Similarities of all items to all, and sums of neighbours by sparse products, cost a fraction of what they cost pair
    by pair, once there are more users than a few. For one thread: what is remembered changes with every question.

    Args:
        ranker: of at most ``MOST_ITEMS`` items.
    """

    def __init__(self, ranker: UserRanker) -> None:
        super().__init__(ranker.scorer, _CatalogueEvidence(ranker.evidence), ranker.combination)
        self._num_items = len(ranker.scorer.vectors)
        self._width = min(_PROPOSED, self._num_items)
        self._most_users = max(1, _MOST_SCORES // self._num_items)
        self._row: dict[bytes, int] = {}  # of a user, who is told by the history
        self._scores = np.empty((0, self._num_items), np.float32)
        self._proposed: list[Indices] = []  # by source, as ``Evidence.proposed``

    def score(self, histories: Indices, candidates: Indices, sums: BothSums | None = None) -> Floats:
        """As ``UserRanker.score``."""
        del sums
        scores = np.full(candidates.shape, -np.inf, np.float32)
        for start in range(0, len(histories), self._most_users):
            part = slice(start, start + self._most_users)
            rows, asked = self._rows_of(histories[part]), candidates[part]
            np.copyto(scores[part], self._scores[rows[:, None], asked], where=asked >= 0)
        return scores

    def judged(
        self,
        histories: Indices,
        found: Indices,
        k: int,
        may_answer: Callable[[Indices], npt.NDArray[np.bool_]],
        more: int = 0,
    ) -> tuple[Indices, Floats]:
        """As ``UserRanker.judged``, but a pool is the catalogue in its order, -1 for what is not in it."""
        if min(k + more, self._num_items) > self._width:
            self._width = min(1 << (k + more - 1).bit_length(), self._num_items)
            self._forget()
        rows, users = self._rows_of(histories), np.arange(len(histories))[:, None]
        in_pool = np.zeros((len(histories), self._num_items + 1), bool)  # the last column is for none
        in_pool[users, np.where(may_answer(found), found, -1)] = True
        for of_source in self._proposed:
            in_pool[users, first_allowed(of_source[rows, : k + more], k, may_answer)] = True
        pool = np.where(in_pool[:, :-1], np.arange(self._num_items), -1)
        return pool, np.where(in_pool[:, :-1], self._scores[rows], np.float32(-np.inf))

    def _rows_of(self, histories: Indices) -> npt.NDArray[np.intp]:
        """[U] rows of the users in what is remembered; those that are new are judged."""
        keys = [row[row >= 0].astype(np.int64).tobytes() for row in histories]
        new = {key: row for row, key in enumerate(keys) if key not in self._row}
        if len(self._row) + len(new) > self._most_users:
            self._forget()
            new = {key: row for row, key in enumerate(keys)}
        if new:
            self._row |= dict(zip(new, range(len(self._row), len(self._row) + len(new)), strict=True))
            scores, proposed = self._judge(histories[list(new.values())])
            self._scores = np.concatenate([self._scores, scores])
            remembered = self._proposed or [np.empty((0, self._width), np.int32)] * len(proposed)
            self._proposed = [np.concatenate(parts) for parts in zip(remembered, proposed, strict=True)]
        return np.array([self._row[key] for key in keys], np.intp)

    def _judge(self, histories: Indices) -> tuple[Floats, list[Indices]]:
        """Scores [U, I], and candidates by source [U, N]."""
        catalogue, block = np.arange(self._num_items), max(1, _BLOCK_SCORES // self._num_items)
        scores, proposed = [], []
        for start in range(0, len(histories), block):
            part = histories[start : start + block]
            sums = self.evidence.sums(part)
            items = np.broadcast_to(catalogue, (len(part), len(catalogue)))
            scores.append(super().score(part, items, sums))
            by_source = self.evidence.proposed(sums, self._width)
            proposed.append([widened(of_source.astype(np.int32), self._width) for of_source in by_source])
        return np.concatenate(scores), [np.concatenate(parts) for parts in zip(*proposed, strict=True)]

    def _forget(self) -> None:
        # Not a part of the old one, which would hold all of it.
        self._row, self._scores, self._proposed = {}, np.empty((0, self._num_items), np.float32), []


class _CatalogueEvidence(Evidence):
    """The evidence about all items of a catalogue, which are the candidates in their order."""

    def __init__(self, evidence: Evidence) -> None:
        vars(self).update(vars(evidence))
        self._similar: dict[str, Floats] = {}
        self._summed = [_SparseTable(evidence.cosines), _SparseTable(evidence.linear)]

    def sums(self, histories: Indices) -> BothSums:
        """As ``Evidence.sums``."""
        weights = history_weights(histories)
        num_items = len(self.popularity)
        cosines, linear = (table.sums(histories, weights, num_items) for table in self._summed)
        return cosines, linear

    def _compare(self, source: str, histories: Indices, candidates: Indices, out: Floats) -> None:
        del candidates
        if source not in self._similar:
            vectors = self.vectors[source][:]
            self._similar[source] = vectors @ vectors.T
        weights = np.stack(history_weights(histories), axis=1)
        weights /= np.maximum(weights.sum(axis=2, keepdims=True), np.float32(1e-6))
        for user, history in enumerate(histories):
            known = history >= 0
            similar = self._similar[source][history[known]]
            out[user, :, 0] = similar.max(axis=0, initial=-1.0)
            out[user, :, 1:] = (weights[user][:, known] @ similar).T


class _SparseTable:
    """A table of neighbours whose sums over histories are sparse products."""

    def __init__(self, table: Neighbours) -> None:
        self._table = table

    @cached_property
    def _weights(self) -> sparse.csr_matrix:
        present = self._table.items >= 0
        ends = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
        weights = self._table.weights[present].astype(np.float64)
        num_items = len(self._table.items)
        return sparse.csr_matrix((weights, self._table.items[present], ends), shape=(num_items, num_items))

    @cached_property
    def _pattern(self) -> sparse.csr_matrix:
        pattern = self._weights.copy()
        pattern.data[:] = 1.0
        return pattern

    def sums(self, histories: Indices, weights: tuple[Floats, ...], num_items: int) -> _CatalogueSums:
        """As ``Neighbours.sums``, for a catalogue of at least the items of the table."""
        known = (histories >= 0) & (histories < self._weights.shape[0])
        ends = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
        shape = (len(histories), self._weights.shape[0])
        values = np.zeros((len(weights), len(histories), num_items), np.float32)
        for of_weight, weight in zip(values, weights, strict=True):
            engaged = sparse.csr_matrix((weight[known].astype(np.float64), histories[known], ends), shape=shape)
            of_weight[:, : shape[1]] = (engaged @ self._weights).toarray()
        is_neighbour = np.zeros((len(histories), num_items), bool)
        # Not by a weight: that of an item a thousand places back is 0.
        engaged = sparse.csr_matrix((np.ones(ends[-1]), histories[known], ends), shape=shape)
        is_neighbour[:, : shape[1]] = (engaged @ self._pattern).toarray() > 0.0
        return _CatalogueSums(values, is_neighbour)


@dataclass(frozen=True)
class _CatalogueSums:
    """Sums over the histories of U users, of all items: a `NeighbourSums`.

    Attributes:
        values: [W, U, I] float32, by each of W weights.
        is_neighbour: [U, I] whether an item is a neighbour of anything in the history.
    """

    values: Floats
    is_neighbour: npt.NDArray[np.bool_]

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.is_neighbour)

    def of_users(self, part: slice) -> _CatalogueSums:
        """As ``Sums.of_users``."""
        return _CatalogueSums(self.values[:, part], self.is_neighbour[part])

    def of(self, candidates: Indices) -> Floats:
        """As ``Sums.of``, where the candidates are all items in their order."""
        assert candidates.shape == self.is_neighbour.shape
        return self.values

    def nearest(self, weight: int, k: int) -> npt.NDArray[np.int64]:
        """As ``Sums.nearest``."""
        values = np.where(self.is_neighbour, self.values[weight], np.float32(-np.inf))
        width = min(k, values.shape[1])
        packed = falling(values) << np.uint64(32) | np.arange(values.shape[1], dtype=np.uint64)
        packed = np.sort(np.partition(packed, width - 1, axis=1)[:, :width], axis=1)
        best = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
        nearest = np.full((len(values), k), -1, np.int64)
        nearest[:, :width] = np.where(np.take_along_axis(self.is_neighbour, best, axis=1), best, -1)
        return nearest
