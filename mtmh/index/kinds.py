"""Time of a search by each kind of storage, on the lists of an index that is built: which kind answers fastest here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Vectors
from mtmh.data.item_vectors import ItemVectors
from mtmh.index.artifact import IndexSummary
from mtmh.index.storage import WHOLE, IvfSettings, Storage, empty_flat, packed, train_ivf
from mtmh.index.store import open_head
from mtmh.index.vector_index import IvfIndex

WORTH_ITEMS = 20_000  # a search of a smaller catalogue takes no time to speak of

_KINDS: tuple[Storage, ...] = ("flat", "fp16", "fastscan")
_QUERIES = 64
_K = 100
_VECTORS = 131_072  # of the lists that are compared, at most, unless one query alone visits more: bounds the memory
_TRAINED = 32_768  # vectors that the quantizers of codes see, at most
_TURNS = 3
_KEPT = 0.99  # of the answers of whole vectors, that a kind must find to be recommended


@dataclass(frozen=True)
class KindTime:
    """What a kind of storage takes and finds.

    Attributes:
        storage: the kind.
        milliseconds: of CPU time a query.
        kept: share of the answers of fp32 vectors in the same clusters that it finds.
    """

    storage: Storage
    milliseconds: float
    kept: float


def compare_kinds(folder: Path, summary: IndexSummary, settings: IvfSettings) -> list[KindTime]:
    """Searches the clusters near some items of an index with each kind of storage in turn.

    The clusters are those of the index, and so are the lists: as long as in service, but only those that are visited.

    Args:
        folder: of the index, whose backend is faiss.
        summary: of it.
        settings: by which it was built.

    Returns:
        of ``flat``, ``fp16``, ``fastscan`` and the kind of the index, those that the vectors allow.
    """
    index, vectors = open_head(folder, summary.heads[0], summary)
    assert isinstance(index, IvfIndex)
    queries, members, clusters = _visited(index, vectors, summary.num_probes, settings.seed)
    compared = vectors[members]
    sampled = settings.sample(index.num_items)  # of the catalogue: a few lists may hold fewer than a quantizer needs
    sample = vectors[sampled[:: -(-len(sampled) // _TRAINED)]]
    made: dict[Storage, IvfIndex] = {}
    for storage in dict.fromkeys([*_KINDS, summary.storage]):
        of_kind = replace(settings, storage=storage, num_clusters=index.num_clusters)
        try:
            of_kind.check(index.num_items, index.dim)
        except ValueError:  # an odd width, or too few vectors
            continue
        made[storage] = filled(of_kind, index, sample, compared, clusters, summary.refine_factor)
    width = min(_K, len(members))
    taken: dict[Storage, list[float]] = {storage: [] for storage in made}
    found: dict[Storage, npt.NDArray[np.int64]] = {}
    for _ in range(_TURNS):
        for storage, searched in made.items():
            begun = time.process_time()
            found[storage] = searched.search(queries, width, summary.num_probes)[1]
            taken[storage].append(time.process_time() - begun)
    return [
        KindTime(storage, 1000.0 * min(times) / len(queries), _share(found[storage], found["flat"]))
        for storage, times in taken.items()
    ]


def filled(
    settings: IvfSettings,
    index: IvfIndex,
    sample: Vectors,
    vectors: Vectors,
    clusters: npt.NDArray[np.int64],
    refine_factor: int,
) -> IvfIndex:
    """An index in memory with the clusters of another one, in which vectors lie by a kind of storage.

    Args:
        settings: with the kind.
        index: whose clusters are taken.
        sample: [S, D] float32, for the quantizers of codes.
        vectors: [N, D] float32.
        clusters: [N] of each.
        refine_factor: as for ``IvfIndex``.
    """
    made = train_ivf(sample, index.num_items, settings, index.centroids)
    made.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(clusters))
    if settings.storage in WHOLE:
        return IvfIndex(made)
    exact = empty_flat("fp16", index.dim)
    exact.add(vectors)
    return IvfIndex(packed(made) if settings.storage == "fastscan" else made, exact, refine_factor, owner=made)


def recommendation(times: Sequence[KindTime], summary: IndexSummary) -> str:
    """The comparison in words: figures of each kind, and the fastest of those that find what whole vectors find."""
    own = next(kind for kind in times if kind.storage == summary.storage)
    best = min((kind for kind in times if kind.kept >= _KEPT), key=lambda kind: kind.milliseconds)
    figures = ", ".join(f"{kind.storage} {kind.milliseconds:.3f} ms (finds {kind.kept:.3f})" for kind in times)
    said = f"CPU time of a query in {summary.num_probes} clusters by storage: {figures}; the index has {own.storage}"
    if best.milliseconds >= own.milliseconds:
        return said
    return f"{said}, index.storage={best.storage} is {own.milliseconds / best.milliseconds:.1f} times as fast"


def _visited(
    index: IvfIndex, vectors: ItemVectors, num_probes: int, seed: int
) -> tuple[Vectors, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sampled queries [Q, D], the items of all clusters that they visit [N], and the cluster of each."""
    rng = np.random.default_rng(seed)
    queries = vectors[rng.choice(len(vectors), min(_QUERIES, len(vectors)), replace=False)]
    near = index.nearest(queries, num_probes).clusters
    sizes = np.bincount(index.clusters_of_items, minlength=index.num_clusters)
    count = len(queries)
    while count > 1 and sizes[np.unique(near[:count])].sum() > _VECTORS:
        count //= 2
    is_visited = np.zeros(index.num_clusters, bool)
    is_visited[near[:count]] = True
    members = np.flatnonzero(is_visited[index.clusters_of_items])
    return queries[:count], members, index.clusters_of_items[members].astype(np.int64)


def _share(found: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> float:
    """Of the wanted items [Q, k] (-1: none) those that are found in the same row."""
    return float(np.mean([np.isin(row[row >= 0], own).mean() for own, row in zip(found, wanted, strict=True)]))
