"""Nearest neighbours by inner product over the catalogue of one head: inverted lists (ANN) and exact search."""

from __future__ import annotations

import ctypes
import math
import mmap
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import faiss
import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, Items, Mask, Vectors
from mtmh.data.item_vectors import ItemVectors

_ADD_ROWS = 65_536  # rows copied out of a memory map at a time
_NEAR_SCORES = 16_777_216  # of queries and centroids at a time (64 MiB)
_HEAP = 128  # so many largest scores are found faster by a heap than by dividing all
_REFINED = 100  # answers for which codes are compared again, at least: those that recall is measured by


class VectorIndex(Protocol):
    """The interface of an index to retrieval; positions in the index are item indices of the catalogue."""

    @property
    def num_items(self) -> int:
        """Vectors in the index."""

    @property
    def dim(self) -> int:
        """Width D of the vectors."""

    @property
    def num_clusters(self) -> int:
        """Clusters of the index; probing all of them compares a query with every vector."""

    def search(self, queries: Vectors, k: int, num_probes: int, allowed: Mask | None = None) -> tuple[Vectors, Items]:
        """Finds the ``k`` items with the largest inner product.

        Args:
            queries: [Q, D] float32.
            k: answers a query; may exceed ``num_items``.
            num_probes: clusters searched (exact search ignores it).
            allowed: [I] bool by item index: the items that may be answered. The search goes past the others, so
                ``k`` answers come back where the searched clusters hold that many.

        Returns:
            Scores [Q, k] float32, descending, and items [Q, k] int64; a missing answer is item -1 with score -inf.

        Raises:
            ValueError: an argument out of range.
        """


class Near(NamedTuple):
    """The P clusters nearest to each of Q queries.

    Attributes:
        scores: [Q, P] float32 inner products with their centroids; 0 where they were not asked for.
        clusters: [Q, P] int64, the nearest first.
    """

    scores: Vectors
    clusters: npt.NDArray[np.int64]


def check_search(queries: Vectors, k: int, num_probes: int, dim: int) -> None:
    """Raises ValueError for arguments that no index can answer."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries of shape {queries.shape}, expected [Q, {dim}]")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}, expected at least 1")


def selector(allowed: Mask | None) -> Any:
    """The faiss selector of a mask; None for none."""
    if allowed is None:
        return None
    if allowed.dtype != np.bool_ or allowed.ndim != 1:
        raise ValueError(f"allowed is {allowed.dtype} {list(allowed.shape)}, expected bool [I]")
    return _made(faiss.IDSelectorBitmap, np.packbits(allowed, bitorder="little"))


class _FaissIndex:
    """Shapes and padding, which both kinds share."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @property
    def num_items(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def _search(self, index: Any, queries: Vectors, k: int, params: Any) -> tuple[Vectors, Items]:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        return self._padded(index.search(queries, self._width(k), params=params), k)

    def _width(self, k: int) -> int:
        return min(k, max(self.num_items, 1))

    def _padded(self, found: tuple[Vectors, Items], k: int) -> tuple[Vectors, Items]:
        scores, items = found
        if (none := items < 0).any():
            scores[none] = -np.inf
        if scores.shape[1] == k:
            return found
        missing = ((0, 0), (0, k - scores.shape[1]))
        return np.pad(scores, missing, constant_values=-np.inf), np.pad(items, missing, constant_values=-1)


class ExactIndex(_FaissIndex):
    """Every vector is compared with every query: the yardstick of the ANN index."""

    @classmethod
    def build(cls, vectors: ItemVectors) -> Self:
        """Indexes vectors [I, D] float32, which are read in chunks."""
        index = faiss.IndexFlatIP(vectors.shape[1])
        for start in range(0, len(vectors), _ADD_ROWS):
            index.add(np.ascontiguousarray(vectors[start : start + _ADD_ROWS], dtype=np.float32))
        return cls(index)

    @property
    def num_clusters(self) -> int:
        """One: there is nothing to leave out."""
        return 1

    def search(
        self, queries: Vectors, k: int, num_probes: int = 1, allowed: Mask | None = None
    ) -> tuple[Vectors, Items]:
        """As ``VectorIndex.search``; ``num_probes`` has no meaning here."""
        check_search(queries, k, num_probes, self.dim)
        params = None if allowed is None else _made(faiss.SearchParameters, sel=selector(allowed))
        return self._search(self._index, queries, k, params)


class IvfIndex(_FaissIndex):
    """k-means clusters, of which only the nearest are searched (paper, section 3.5: multi-ANN module).

    Args:
        index: a ``faiss.IndexIVF``.
        exact: a flat faiss index of the same vectors, to compare the best codes again; None: scores are those of the
            codes.
        refine_factor: codes an answer that are compared again; those of a hundred answers at least.
        owner: what ``index`` points into, kept as long as this object.
        kept: [I, P] the clusters nearest to each item, the nearest first, where a build has kept them.

    Attributes:
        refine_factor: 0 where nothing is compared again.
        refined_index: the ``faiss.IndexRefine`` over both, or None.
    """

    def __init__(
        self,
        index: Any,
        exact: Any = None,
        refine_factor: int = 0,
        owner: object = None,
        kept: npt.NDArray[np.integer[Any]] | None = None,
    ) -> None:
        super().__init__(index)
        self._owner = owner
        self._kept = kept
        self.refine_factor = refine_factor if exact is not None else 0
        self.refined_index = faiss.IndexRefine(index, exact) if self.refine_factor else None
        self._exact = exact  # faiss only points to it

    @property
    def num_clusters(self) -> int:
        """As ``VectorIndex.num_clusters``."""
        return int(self._index.nlist)

    @property
    def code_bytes(self) -> int:
        """Bytes of a vector in its list, the item index beside it not counted."""
        return int(self._index.code_size)

    @property
    def faiss_index(self) -> Any:
        """The ``faiss.IndexIVF`` itself, for a comparison with plain faiss."""
        return self._index

    def search(
        self, queries: Vectors, k: int, num_probes: int, allowed: Mask | None = None, near: Near | None = None
    ) -> tuple[Vectors, Items]:
        """As ``VectorIndex.search``; safe to call from several threads with different arguments.

        ``near`` are the clusters of so many probes (`nearest`), where they are known already.
        """
        check_search(queries, k, num_probes, self.dim)
        if self.refined_index is None:
            near = near or self.nearest(queries, num_probes)
            return self._padded(search_lists(self._index, queries, self._width(k), near, allowed), k)
        # Parameters of the call, not of the index: concurrent requests share no state.
        params = _made(faiss.SearchParametersIVF, sel=selector(allowed), nprobe=min(num_probes, self.num_clusters))
        wanted = max(self.refine_factor, math.ceil(_REFINED * self.refine_factor / k))
        factor = min(wanted, math.ceil(max(self.num_items, 1) / k))
        refining = _made(faiss.IndexRefineSearchParameters, k_factor=factor, base_index_params=params)
        return self._search(self.refined_index, queries, k, refining)

    def nearest(self, queries: Vectors, num_probes: int) -> Near:
        """The clusters that a search of so many visits for each query, in half the time of faiss's quantizer."""
        scores = np.empty((len(queries), probed := min(num_probes, self.num_clusters)), np.float32)
        clusters = np.empty(scores.shape, np.int64)
        block = max(1, _NEAR_SCORES // self.num_clusters)
        for start in range(0, len(queries), block):
            rows = slice(start, start + block)
            scores[rows], clusters[rows] = largest(queries[rows] @ self._centroids_by_value, probed)
        return Near(scores, clusters)

    def nearest_kept(self, items: Indices, vectors: Vectors, num_probes: int) -> Near | None:
        """As `nearest`, read from what the build has kept of items, without scores, for which whole vectors do not ask.

        Args:
            items: [Q]; the clusters of those added since the build are found anew.
            vectors: [Q, D] of these.
            num_probes: clusters of each.

        Returns:
            None: fewer are kept.
        """
        probed = min(num_probes, self.num_clusters)
        if self._kept is None or probed > self._kept.shape[1]:
            return None
        is_added = items >= len(self._kept)
        clusters = self._kept[np.where(is_added, 0, items), :probed].astype(np.int64)
        if is_added.any():
            clusters[is_added] = self.nearest(vectors[is_added], probed).clusters
        return Near(np.zeros(clusters.shape, np.float32), clusters)

    @property
    def centroids(self) -> Vectors:
        """[clusters, D] the centres."""
        return np.asarray(self._index.quantizer.reconstruct_n(0, self.num_clusters), np.float32)

    @cached_property
    def _centroids_by_value(self) -> Vectors:
        """[D, clusters]: a product of few queries with these takes 0.85 of the time of one with their transpose."""
        return np.ascontiguousarray(self.centroids.T)

    @cached_property
    def clusters_of_items(self) -> npt.NDArray[np.int32]:
        """[I] the cluster of each item; 4 bytes an item, made at the first use."""
        clusters = np.zeros(self.num_items, np.int32)
        lists = self._index.invlists
        for cluster in range(self.num_clusters):
            if size := lists.list_size(cluster):
                clusters[faiss.rev_swig_ptr(lists.get_ids(cluster), size)] = cluster
        return clusters

    def drop_pages(self) -> None:
        """Gives the pages of memory-mapped lists back to the system's cache; the next search maps what it needs."""
        lists = mapped_lists(self._index)
        if lists is None or not lists.totsize:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(int(lists.ptr))
        if libc.madvise(address, ctypes.c_size_t(lists.totsize), ctypes.c_int(mmap.MADV_DONTNEED)):
            raise OSError(ctypes.get_errno(), "madvise of the inverted lists")


def largest(scores: Vectors, k: int) -> tuple[Vectors, Items]:
    """The ``k`` largest scores of each row, 1 <= k <= N, descending, and their columns; [Q, N] -> [Q, k].

    With a product of NumPy before it, it takes a quarter of the time of ``faiss.knn``. Where fewer than ``k`` scores
    are above -inf, the others are -inf, of some columns.
    """
    if k < _HEAP:
        found, columns = np.empty((len(scores), k), np.float32), np.empty((len(scores), k), np.int64)
        heaps = faiss.float_minheap_array_t()
        heaps.k, heaps.nh = k, len(scores)
        heaps.val, heaps.ids = faiss.swig_ptr(found), faiss.swig_ptr(columns)
        heaps.heapify()
        heaps.addn(scores.shape[1], faiss.swig_ptr(np.ascontiguousarray(scores)))
        heaps.reorder()
        missing = columns < 0
        found[missing], columns[missing] = -np.inf, 0
        return found, columns
    columns = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
    found = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-found, axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(columns, order, axis=1)


def search_lists(index: Any, queries: Vectors, k: int, near: Near, allowed: Mask | None) -> tuple[Vectors, Items]:
    """Searches the lists of some clusters of a ``faiss.IndexIVF``; faiss's own Python layer takes no parameters here.

    Args:
        index: the index.
        queries: [Q, D] float32.
        k: answers a query.
        near: the clusters of each.
        allowed: by number of the vector; None: all.

    Returns:
        Scores [Q, k] float32 and numbers of vectors [Q, k] int64, -1: none.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores, items = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    params = _made(faiss.SearchParametersIVF, sel=selector(allowed), nprobe=near.clusters.shape[1])
    at = faiss.swig_ptr
    index.search_preassigned_c(
        len(queries), at(queries), k, at(near.clusters), at(near.scores), at(scores), at(items), False, params
    )
    return scores, items


def read_faiss(path: Path, flags: int) -> Any:
    """Reads a faiss index.

    Raises:
        ValueError: no such file, or not a faiss index.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no index file here")
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ValueError(f"{path}: not a readable faiss index: {str(error).splitlines()[-1]}") from None


def write_faiss(index: Any, path: Path) -> None:
    """Writes a faiss index whose lists are elsewhere; faiss's own writer ends the process where the disk is full."""
    path.write_bytes(faiss.serialize_index(index).tobytes())


def mapped_lists(index: Any) -> Any:
    """The ``faiss.OnDiskInvertedLists`` of an index; None if its lists are in memory."""
    lists = faiss.downcast_InvertedLists(index.invlists)
    return lists if isinstance(lists, faiss.OnDiskInvertedLists) else None


def without_prefetch(index: Any) -> None:
    """Stops faiss from starting 32 threads a search to read lists ahead: 17 times the time of a search in the cache."""
    lists = mapped_lists(index)
    if lists is not None:
        lists.prefetch_nthread = 0


def _made(kind: Any, *arguments: Any, **fields: Any) -> Any:
    """An object of faiss from the arguments that its Python layer takes; its type stubs tell those of C++."""
    return kind(*arguments, **fields)
