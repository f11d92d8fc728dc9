"""Measures what an index finds of the exact neighbours, and chooses how many clusters a search visits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import faiss
import numpy as np
import numpy.typing as npt
from faiss.contrib.exhaustive_search import knn_ground_truth

from mtmh.data.item_vectors import ItemVectors
from mtmh.data.row_file import RowFile
from mtmh.index.artifact import AnnRecall
from mtmh.index.vector_index import IvfIndex, VectorIndex

_K = 100
_QUERIES = 1000
_BLOCK = 32  # queries between two drops of mapped pages
_READ_ROWS = 65_536
_EQUAL = 1e-6  # of a score: vectors that are the same may differ by rounding
_AS_GOOD = 0.005  # of recall: where none reaches the gate, the fewest probes that are so close to the best


class RecallMeter:
    """Compares an index with exact search, with sampled items as queries.

    Vectors are compared block by block: memory does not grow with the catalogue. Where items share the score of the
    last exact neighbour, whichever of them an index finds will do.

    Args:
        index: holds the items 0 to I - 1.
        vectors: [I, D] float32 of all of them.
        seed: of the sample.

    Attributes:
        curve: what was measured, by number of probes, ascending.
    """

    def __init__(self, index: VectorIndex, vectors: ItemVectors | RowFile, seed: int) -> None:
        self._index = index
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(len(vectors), min(_QUERIES, len(vectors)), replace=False))
        self._queries = np.ascontiguousarray(vectors[rows])
        blocks = (
            np.ascontiguousarray(vectors[start : start + _READ_ROWS]) for start in range(0, len(vectors), _READ_ROWS)
        )
        k, one_more = min(_K, len(vectors)), min(_K + 1, len(vectors))
        scores, exact = knn_ground_truth(self._queries, blocks, one_more, faiss.METRIC_INNER_PRODUCT)
        self._vectors, self._exact = vectors, exact[:, :k]
        self._least = scores[:, k - 1] - _EQUAL * np.maximum(1.0, np.abs(scores[:, k - 1]))
        self._tied = np.flatnonzero((scores[:, k:] >= self._least[:, None]).any(axis=1))
        self._measured: dict[int, AnnRecall] = {}

    @property
    def curve(self) -> list[AnnRecall]:
        """Recalls measured so far, by number of probes."""
        return [self._measured[probes] for probes in sorted(self._measured)]

    def recall(self, num_probes: int) -> AnnRecall:
        """The share of the exact neighbours that a search of so many clusters finds."""
        if num_probes not in self._measured:
            k, found = self._exact.shape[1], []
            for start in range(0, len(self._queries), _BLOCK):
                found.append(self._index.search(self._queries[start : start + _BLOCK], k, num_probes)[1])
                if isinstance(self._index, IvfIndex):
                    self._index.drop_pages()
            items = np.concatenate(found)
            hits = _in_row(items, self._exact)
            hits[self._tied] |= self._as_near(items[self._tied], hits[self._tied])
            self._measured[num_probes] = AnnRecall(
                k=k, num_probes=num_probes, num_queries=len(self._queries), recall=float(hits.sum() / hits.size)
            )
        return self._measured[num_probes]

    def _as_near(self, items: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which of the items found for the tied queries, [T, k], are no further than the last exact neighbour.

        Those that are ``known`` to be neighbours are not looked at.
        """
        queries, places = np.nonzero((items >= 0) & ~known)
        rows, row_of = np.unique(items[queries, places], return_inverse=True)
        vectors = self._vectors[rows]
        near = np.zeros(items.shape, bool)
        bounds = np.searchsorted(queries, np.arange(len(items) + 1))
        for row, (tied, (start, stop)) in enumerate(zip(self._tied, pairwise(bounds), strict=True)):
            scores = vectors[row_of[start:stop]] @ self._queries[tied]
            near[row, places[start:stop]] = scores >= self._least[tied]
        return near

    def fewest_probes(self, min_recall: float) -> int:
        """The fewest probes of a rising list that reach a recall; where none does, the fewest that come near the best.

        Args:
            min_recall: 0 to 1.
        """
        for probes in rising(self._index.num_clusters):
            if self.recall(probes).recall >= min_recall:
                return probes
        best = max(measured.recall for measured in self.curve)
        return next(measured.num_probes for measured in self.curve if measured.recall >= best - _AS_GOOD)


def rising(num_clusters: int) -> Iterator[int]:
    """Numbers of probes to try: each a fifth larger than the one before, the last one all clusters.

    Example:
        >>> list(rising(20))
        [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 20]
    """
    probes = 1
    while probes < num_clusters:
        yield probes
        probes = math.ceil(1.2 * probes)
    yield num_clusters


def _in_row(items: npt.NDArray[np.int64], exact: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of the items [Q, k] the same row of ``exact`` [Q, k] holds; -1 is none."""
    width = int(max(items.max(), exact.max())) + 2
    rows = np.arange(len(items))[:, None] * width
    held: npt.NDArray[np.bool_] = np.isin(items + rows, exact + rows) & (items >= 0)
    return held
