"""Nearest neighbours by inner product over the catalogue of one head: inverted file (ANN) and exact search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

_ADD_ROWS = 65_536  # rows copied out of a memory map at a time


class VectorIndex(Protocol):
    """What retrieval asks of an index; positions in the index are item indices of the catalogue."""

    @property
    def num_items(self) -> int:
        """Vectors in the index."""

    def search(self, queries: Vectors, k: int, num_probes: int) -> tuple[Vectors, Items]:
        """Finds the ``k`` items with the largest inner product.

        Args:
            queries: [Q, D] float32.
            k: answers a query; may exceed ``num_items``.
            num_probes: clusters searched (exact search ignores it).

        Returns:
            Scores [Q, k] float32, descending, and items [Q, k] int64; a missing answer is item -1 with score -inf.
        """

    def save(self, path: Path) -> None:
        """Writes the index to one file."""


class _FaissIndex:
    """What both kinds share: shapes, padding and the file format."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @property
    def num_items(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return int(self._index.d)

    def save(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    def _search(self, queries: Vectors, k: int, params: Any) -> tuple[Vectors, Items]:
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries of shape {queries.shape}, expected [Q, {self.dim}]")
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        found = min(k, max(self.num_items, 1))
        scores, items = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), found, params=params)
        scores[items < 0] = -np.inf
        missing = ((0, 0), (0, k - found))
        return np.pad(scores, missing, constant_values=-np.inf), np.pad(items, missing, constant_values=-1)


class ExactIndex(_FaissIndex):
    """Every vector is compared with every query: the yardstick of the ANN index."""

    @classmethod
    def build(cls, vectors: Vectors) -> Self:
        """Indexes ``vectors`` [I, D] float32 (a memory map is read in chunks)."""
        index = faiss.IndexFlatIP(vectors.shape[1])
        _add(index, vectors)
        return cls(index)

    def search(self, queries: Vectors, k: int, num_probes: int = 1) -> tuple[Vectors, Items]:
        """As ``VectorIndex.search``; ``num_probes`` has no meaning here."""
        del num_probes
        return self._search(queries, k, None)


class IvfIndex(_FaissIndex):
    """k-means clusters, of which only the nearest are searched (paper, section 3.5: multi-ANN module)."""

    @property
    def num_clusters(self) -> int:
        """Clusters of the index; probing all of them is exact search."""
        return int(self._index.nlist)

    @classmethod
    def build(
        cls,
        vectors: Vectors,
        *,
        num_clusters: int | None = None,
        train_sample: int = 262_144,
        iterations: int = 20,
        seed: int = 0,
    ) -> Self:
        """Trains k-means on a seeded sample and files every vector under its cluster.

        Args:
            vectors: [I, D] float32, unit length (a memory map is read in chunks).
            num_clusters: None takes ``default_num_clusters``.
            train_sample: vectors that k-means sees, at most.
            iterations: of k-means.
            seed: of the sample and of k-means; the same vectors and seed give the same index.

        Raises:
            ValueError: no vectors, or more clusters than vectors to train them on.
        """
        num_items, dim = vectors.shape
        if num_items == 0:
            raise ValueError("no vectors to index: the catalogue is empty")
        num_sampled = min(num_items, train_sample)
        clusters = num_clusters or default_num_clusters(num_items, num_sampled)
        if clusters > num_sampled:
            raise ValueError(
                f"index.num_clusters is {clusters}, more than the {num_sampled} vectors k-means sees"
                " (catalogue size or index.train_sample); choose fewer clusters"
            )
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, clusters, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = iterations
        index.cp.seed = seed
        # The sample is ours and seeded: faiss neither draws another nor warns about small catalogues.
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = num_sampled
        rows = np.sort(np.random.default_rng(seed).choice(num_items, num_sampled, replace=False))
        index.train(np.ascontiguousarray(vectors[rows], dtype=np.float32))
        _add(index, vectors)
        return cls(index)

    def search(self, queries: Vectors, k: int, num_probes: int) -> tuple[Vectors, Items]:
        """As ``VectorIndex.search``; safe to call from several threads with different ``num_probes``."""
        if num_probes < 1:
            raise ValueError(f"num_probes is {num_probes}, expected at least 1")
        # Parameters of the call, not of the index: concurrent requests share no state.
        params = faiss.SearchParametersIVF()
        params.nprobe = min(num_probes, self.num_clusters)
        return self._search(queries, k, params)


def default_num_clusters(num_items: int, num_sampled: int) -> int:
    """About ``4 * sqrt(num_items)``, with at least 8 training vectors a cluster."""
    return max(1, min(round(4 * math.sqrt(num_items)), num_sampled // 8))


def load_index(path: Path) -> IvfIndex | ExactIndex:
    """Opens a file that ``save`` wrote.

    Raises:
        ValueError: no such file, not a faiss index, or a kind that this package does not write.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no index file here")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: not a readable faiss index: {str(error).splitlines()[-1]}") from None
    if isinstance(index, faiss.IndexIVFFlat):
        return IvfIndex(index)
    if isinstance(index, faiss.IndexFlat):
        return ExactIndex(index)
    raise ValueError(f"{path}: a {type(index).__name__}, expected an IndexIVFFlat or an IndexFlat")


def _add(index: Any, vectors: Vectors) -> None:
    for start in range(0, len(vectors), _ADD_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + _ADD_ROWS], dtype=np.float32))
