"""The clusters nearest to each item: a build, which finds them anyway, keeps them for searches by items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import open_array
from mtmh.data.row_file import RowFile
from mtmh.index.artifact import IndexSummary, near_file
from mtmh.index.storage import PRECISIONS, WHOLE, Storage

_MOST = 16  # where a search visits more, to find them is a small part of it
_PART = 4  # of an item's vector: what is kept takes a quarter of its bytes at most
_NARROW_CLUSTERS = 2**16
_READ_ROWS = 65_536


def cluster_type(num_clusters: int) -> type[np.uint16] | type[np.int32]:
    """The type of the numbers of so many clusters in the file."""
    return np.uint16 if num_clusters <= _NARROW_CLUSTERS else np.int32


def most_kept(storage: Storage, dim: int, num_clusters: int) -> int:
    """Clusters that may be kept of an item; 0 of codes, whose clusters faiss finds while it compares them again."""
    if storage not in WHOLE:
        return 0
    vector_bytes = dim * np.dtype(PRECISIONS[WHOLE[storage]]).itemsize
    return min(_MOST, num_clusters, vector_bytes // (_PART * np.dtype(cluster_type(num_clusters)).itemsize))


def cut_to(path: Path, num_probes: int) -> None:
    """Leaves in a file of `near_file` as many clusters an item as a search visits; no file, where it has fewer."""
    found = RowFile(path)
    if num_probes > found.shape[1]:
        path.unlink()
    elif num_probes < found.shape[1]:
        narrower = RowFile.create(path.with_suffix(".cut"), found.dtype, (len(found), num_probes))
        for start in range(0, len(found), _READ_ROWS):
            rows = found.read(start, min(start + _READ_ROWS, len(found)))
            narrower.write(start, rows[:, :num_probes])
        narrower.path.replace(path)


def open_kept(folder: Path, head: str, summary: IndexSummary) -> npt.NDArray[np.integer[Any]] | None:
    """The clusters nearest to each item [I, P], memory-mapped, the nearest first; None: none are kept.

    Raises:
        ValueError: damaged, or of another index; the message names the file.
    """
    path = folder / near_file(head)
    if not path.is_file():
        return None
    clusters = open_array(path, cluster_type(summary.num_clusters), (summary.num_items, None))
    if not 1 <= clusters.shape[1] <= summary.num_clusters:
        raise ValueError(f"{path}: {clusters.shape[1]} clusters an item, and there are {summary.num_clusters}")
    if clusters.min() < 0 or clusters.max() >= summary.num_clusters:
        raise ValueError(f"{path}: a cluster that is none of the {summary.num_clusters}")
    return clusters
