"""Items added since an index was built, in lists of the index's own clusters."""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Items, Mask, Vectors
from mtmh.index.vector_index import IvfIndex, Near, search_lists


class AddedLists:
    """Lists in memory; immutable.

    Args:
        index: whose clusters these are.
        vectors: [N, D] float32 of the added items.
        before: lists of the first of them, whose clusters are known already.

    Attributes:
        num_items: N.
    """

    def __init__(self, index: IvfIndex, vectors: Vectors, before: AddedLists | None = None) -> None:
        known = np.empty(0, np.int64) if before is None else before._clusters
        new = index.nearest(vectors[len(known) :], 1).clusters[:, 0]
        self._clusters: npt.NDArray[np.int64] = np.concatenate([known, new])
        self._index = index  # which owns the centroids
        self._lists = faiss.IndexIVFFlat(
            index.faiss_index.quantizer, index.dim, index.num_clusters, faiss.METRIC_INNER_PRODUCT
        )
        self._lists.is_trained = True
        vectors = np.ascontiguousarray(vectors, np.float32)
        self._lists.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(self._clusters))
        self.num_items = len(vectors)

    def search(self, queries: Vectors, k: int, near: Near, allowed: Mask | None) -> tuple[Vectors, Items]:
        """The nearest items in some clusters of each query.

        Args:
            queries: [Q, D] float32.
            k: answers a query.
            near: the clusters.
            allowed: [N]; None: all.

        Returns:
            Scores [Q, k] float32, descending, and places among the N [Q, k] int64, -1: none.
        """
        return search_lists(self._lists, queries, min(k, self.num_items), near, allowed)
