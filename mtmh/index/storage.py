"""The faiss index behind each ``index.storage``: how it is made, trained and given vectors to refine from."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt

from mtmh.config import IndexConfig
from mtmh.data.arrays import Vectors
from mtmh.data.row_file import preallocate, write_at

Storage = Literal["flat", "fp16", "sq8", "pq", "fastscan"]
VectorPrecision = Literal["fp16", "fp32"]

PRECISIONS: dict[VectorPrecision, type[np.floating[Any]]] = {"fp16": np.float16, "fp32": np.float32}
# Lists of these hold the vectors themselves, so nothing is kept beside them.
WHOLE: dict[Storage, VectorPrecision] = {"flat": "fp32", "fp16": "fp16"}
# Fast scan looks codes of 4 bits up in registers. A number for every two dimensions keeps nearly all of the order.
_FAST_BITS, _FAST_WIDTH = 4, 2
_FAST_BLOCK = 32  # codes that are compared at once

_COUNT_BYTES = 8


@dataclass(frozen=True)
class IvfSettings:
    """Settings by which the lists of one head are made.

    Attributes:
        num_clusters: None takes ``default_num_clusters``.
        train_sample: vectors that k-means and the quantizers see, at most.
        iterations: of k-means.
        seed: of the sample and of k-means.
        storage: what the lists hold of a vector.
        pq_m: numbers a vector, for ``pq``.
        pq_bits: of each, likewise.
    """

    num_clusters: int | None = None
    train_sample: int = 262_144
    iterations: int = 20
    seed: int = 0
    storage: Storage = "flat"
    pq_m: int = 16
    pq_bits: int = 8

    @staticmethod
    def of(config: IndexConfig, seed: int) -> IvfSettings:
        """Those of a recipe."""
        return IvfSettings(
            config.num_clusters,
            config.train_sample,
            config.iterations,
            seed,
            config.storage,
            config.pq.m,
            config.pq.bits,
        )

    def sample(self, num_items: int) -> npt.NDArray[np.int64]:
        """The items to train on, ascending; the same for the same seed and catalogue size."""
        sampled = min(num_items, self.train_sample)
        return np.sort(np.random.default_rng(self.seed).choice(num_items, sampled, replace=False))

    def clusters(self, num_items: int) -> int:
        """Number of clusters for a catalogue.

        Raises:
            ValueError: no items, or more clusters than vectors to train them on.
        """
        if num_items == 0:
            raise ValueError("no vectors to index: the catalogue is empty")
        sampled = min(num_items, self.train_sample)
        clusters = self.num_clusters or default_num_clusters(num_items, sampled)
        if clusters > sampled:
            raise ValueError(
                f"index.num_clusters is {clusters}, more than the {sampled} vectors k-means sees"
                " (catalogue size or index.train_sample); choose fewer clusters"
            )
        return clusters

    def check(self, num_items: int, dim: int) -> None:
        """Raises ValueError if these settings do not fit the catalogue."""
        self.clusters(num_items)
        if self.storage == "fastscan" and dim % _FAST_WIDTH:
            raise ValueError(f"index.storage is fastscan: the width of the embeddings is {dim}, and must be even")
        if self.storage not in ("pq", "fastscan"):
            return
        numbers, bits = self.quantizer(dim)
        if dim % numbers:
            fitting = ", ".join(str(m) for m in range(1, dim + 1) if dim % m == 0)
            raise ValueError(
                f"index.pq.m is {self.pq_m}, which does not divide the width {dim} of the embeddings;"
                f" one of {fitting} does"
            )
        sampled = min(num_items, self.train_sample)
        if sampled < 2**bits:
            setting = f" (index.pq.bits = {bits})" if self.storage == "pq" else ""
            raise ValueError(
                f"index.storage is {self.storage}: {2**bits} centroids a number{setting} need at"
                f" least as many training vectors, and there are {sampled} (catalogue size or index.train_sample)"
            )

    def quantizer(self, dim: int) -> tuple[int, int]:
        """Numbers a vector of width ``dim``, and bits of each, of ``pq`` and ``fastscan``."""
        return (dim // _FAST_WIDTH, _FAST_BITS) if self.storage == "fastscan" else (self.pq_m, self.pq_bits)


def default_num_clusters(num_items: int, num_sampled: int) -> int:
    """About ``4 * sqrt(num_items)``, with at least 8 training vectors a cluster."""
    return max(1, min(round(4 * math.sqrt(num_items)), num_sampled // 8))


def train_ivf(sample: Vectors, num_items: int, settings: IvfSettings, centroids: Vectors | None = None) -> Any:
    """An empty index whose clusters and quantizers are trained; k-means runs on GPUs where faiss sees some.

    Args:
        sample: [S, D] float32 unit-length vectors of ``settings.sample(num_items)``.
        num_items: size of the catalogue.
        settings: storage, clusters and seed.
        centroids: [clusters, D] float32, where they are known already.

    Returns:
        A ``faiss.IndexIVF`` by inner product.

    Raises:
        ValueError: settings that do not fit the catalogue.
    """
    dim = sample.shape[1]
    settings.check(num_items, dim)
    index = empty_ivf(dim, settings.clusters(num_items), settings)
    # The sample is ours and seeded: faiss neither draws another nor warns about small catalogues.
    parameters = [index.cp] + ([index.pq.cp] if settings.storage in ("pq", "fastscan") else [])
    for training in parameters:
        training.seed = settings.seed
        training.min_points_per_centroid = 1
        training.max_points_per_centroid = len(sample)
    index.cp.niter = settings.iterations
    if centroids is not None:  # with as many as there are clusters, faiss leaves k-means out
        index.quantizer.add(centroids)
    elif faiss.get_num_gpus():
        index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dim))
    index.train(np.ascontiguousarray(sample, dtype=np.float32))
    index.clustering_index = None
    return index


def empty_ivf(dim: int, clusters: int, settings: IvfSettings) -> Any:
    """An index without clusters or vectors, to be trained."""
    quantizer, metric = faiss.IndexFlatIP(dim), faiss.METRIC_INNER_PRODUCT
    if settings.storage == "flat":
        return faiss.IndexIVFFlat(quantizer, dim, clusters, metric)
    if settings.storage in ("pq", "fastscan"):
        return faiss.IndexIVFPQ(quantizer, dim, clusters, *settings.quantizer(dim), metric)
    kind = faiss.ScalarQuantizer.QT_fp16 if settings.storage == "fp16" else faiss.ScalarQuantizer.QT_8bit
    # fp16 codes are the vectors themselves, so that they can be read back; sq8 is finer on what the cluster leaves.
    return faiss.IndexIVFScalarQuantizer(quantizer, dim, clusters, kind, metric, settings.storage == "sq8")


def packed(index: Any) -> Any:
    """The ``faiss.IndexIVFPQFastScan`` of a ``faiss.IndexIVFPQ``: its codes in memory, in the order of registers.

    It points to the clusters of the other, which must live as long. On disk the codes stay as a plain product quantizer
    has them, so that lists are filled, merged and checked like all others.
    """
    return faiss.IndexIVFPQFastScan(index, _FAST_BLOCK)


def on_gpu(index: Any) -> Any:
    """A copy on this rank's GPU where faiss sees one, else the index itself."""
    num_gpus = faiss.get_num_gpus()
    if not num_gpus:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), int(os.environ.get("LOCAL_RANK", 0)) % num_gpus, index)


class VectorFile:
    """A flat faiss index on disk, filled in pieces by any number of processes and memory-mapped by readers.

    faiss maps such a file as it is and refines from it; the rows are its tail. The file is put together here, because
    faiss (1.15) writes a flat index as a whole only, from memory, and from Python it takes no view of rows that are
    mapped already: ``MaybeOwnedVector.create_view`` asks for an owner that only C++ can make.

    Args:
        path: the file.
        precision: of the values.
        num_items: rows.
        dim: D.

    Attributes:
        header: faiss's bytes in front of the rows.
        num_bytes: of the file.
    """

    def __init__(self, path: Path, precision: VectorPrecision, num_items: int, dim: int) -> None:
        self.path = path
        self._dtype = np.dtype(PRECISIONS[precision])
        self._num_items = num_items
        self._row_bytes = dim * self._dtype.itemsize
        self.header = self._header(precision, dim)
        self.num_bytes = len(self.header) + num_items * self._row_bytes

    def create(self) -> None:
        """Writes the header, and zeros for all rows."""
        self.path.write_bytes(self.header)
        preallocate(self.path, self.num_bytes)

    def write(self, start: int, vectors: Vectors) -> None:
        """Writes rows [n, D] from ``start`` on."""
        assert start + len(vectors) <= self._num_items
        write_at(
            self.path, len(self.header) + start * self._row_bytes, np.ascontiguousarray(vectors, dtype=self._dtype)
        )

    def _header(self, precision: VectorPrecision, dim: int) -> bytes:
        """Faiss's bytes in front of the rows: taken from an index of one row, whose last field is their count."""
        index = empty_flat(precision, dim)
        index.add(np.zeros((1, dim), np.float32))
        index.ntotal = self._num_items
        written = faiss.serialize_index(index).tobytes()
        before, count = written[: -self._row_bytes - _COUNT_BYTES], written[-self._row_bytes - _COUNT_BYTES :]
        in_one_row = int.from_bytes(count[:_COUNT_BYTES], "little")
        return before + (in_one_row * self._num_items).to_bytes(_COUNT_BYTES, "little")


def empty_flat(precision: VectorPrecision, dim: int) -> Any:
    """A flat index by inner product without vectors."""
    if precision == "fp32":
        return faiss.IndexFlatIP(dim)
    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True  # halves need no ranges
    return index
