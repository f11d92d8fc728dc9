"""Opens one head of an index artifact: its index, and the vector of each item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from mtmh.config import MilvusConfig
from mtmh.data.arrays import open_array
from mtmh.data.item_vectors import ItemVectors, StoredVectors
from mtmh.index.artifact import IndexSummary, exact_file, index_file, lists_file, milvus_file, places_file
from mtmh.index.kept_clusters import open_kept
from mtmh.index.milvus import MilvusCollection, MilvusIndex
from mtmh.index.storage import PRECISIONS, WHOLE, VectorFile, empty_flat, packed
from mtmh.index.vector_index import IvfIndex, VectorIndex, mapped_lists, read_faiss, without_prefetch
from mtmh.index.written_form import check_flat, check_items_in_lists, check_ivf
from mtmh.tower.artifact import vectors_file


def open_head(
    folder: Path, head: str, summary: IndexSummary, milvus: MilvusConfig | None = None
) -> tuple[VectorIndex, ItemVectors]:
    """Opens one head; lists and vectors are memory-mapped read-only, so processes of a host share them.

    Args:
        folder: of the index artifact.
        head: its name.
        summary: of the artifact.
        milvus: ``index.milvus`` of the recipe that asks; an index on another Milvus is refused.

    Raises:
        ValueError: files are missing, damaged, do not belong together, or name another Milvus; the message names the
            file.
    """
    name = index_file(head)
    if summary.backend == "milvus":
        name = milvus_file(head)
        index: VectorIndex = MilvusIndex(MilvusCollection.trusted(folder / name, milvus))
    else:
        index = IvfIndex(open_lists(folder, head, summary), kept=open_kept(folder, head, summary))
    if (index.num_items, index.dim) != (summary.num_items, summary.dim):
        raise ValueError(
            f"{folder / name}: {index.num_items} vectors of width {index.dim},"
            f" the manifest says {summary.num_items} of width {summary.dim}"
        )
    if summary.vectors == "rows":
        path = folder / vectors_file(head)
        return index, open_array(path, np.float32, (summary.num_items, summary.dim))
    assert isinstance(index, IvfIndex)
    if summary.vectors == "lists":
        return index, _vectors_in_lists(folder, head, summary, index)
    exact, vectors = _vectors_beside(folder, head, summary)
    stored = index.faiss_index
    searched = packed(stored) if summary.storage == "fastscan" else stored
    return IvfIndex(searched, exact, summary.refine_factor, owner=stored), vectors


def open_lists(folder: Path, head: str, summary: IndexSummary) -> Any:
    """The ``faiss.IndexIVF`` of a head over its memory-mapped lists."""
    path, lists_path = folder / index_file(head), folder / lists_file(head)
    for file in (path, lists_path):
        if not file.is_file():
            raise ValueError(f"{file}: missing")
    check_ivf(path, lists_path, summary)
    # Without the data: faiss would map the lists at the path where they were written, not where they are.
    index = read_faiss(path, faiss.IO_FLAG_SKIP_IVF_DATA)
    lists = mapped_lists(index)
    lists.filename = str(lists_path)
    lists.read_only = True
    lists.do_mmap()
    check_items_in_lists(lists_path, lists, summary.num_items)
    without_prefetch(index)
    return index


def _vectors_in_lists(folder: Path, head: str, summary: IndexSummary, index: IvfIndex) -> StoredVectors:
    """Vectors are stored once, in the lists; a table tells where each item's is."""
    lists = mapped_lists(index.faiss_index)
    dtype = np.dtype(PRECISIONS[WHOLE[summary.storage]])
    expected = summary.dim * dtype.itemsize
    if index.code_bytes != expected:
        raise ValueError(
            f"{folder / index_file(head)}: {index.code_bytes} bytes a vector, expected {expected} ({summary.storage})"
        )
    values = faiss.rev_swig_ptr(lists.ptr, lists.totsize).view(dtype)
    # Row p of this view begins at value p: a list may begin at any value.
    rows = np.lib.stride_tricks.as_strided(
        values, (len(values) - summary.dim + 1, summary.dim), (dtype.itemsize, dtype.itemsize), writeable=False
    )
    path = folder / places_file(head)
    places = open_array(path, np.int64, (summary.num_items,))
    if places.min() < 0 or places.max() >= len(rows):
        raise ValueError(f"{path}: a place outside {lists_file(head)}")
    return StoredVectors(rows, places, owner=index)


def _vectors_beside(folder: Path, head: str, summary: IndexSummary) -> tuple[Any, StoredVectors]:
    """Vectors in a file of their own, as a mapped faiss index and by item."""
    path = folder / exact_file(head)
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    assert summary.vectors == "fp16" or summary.vectors == "fp32"
    check_flat(path, VectorFile(path, summary.vectors, summary.num_items, summary.dim))
    exact = read_faiss(path, faiss.IO_FLAG_MMAP_IFC)
    wanted = empty_flat(summary.vectors, summary.dim)
    shape = (summary.num_items, summary.dim)
    if type(exact) is not type(wanted) or (exact.ntotal, exact.d) != shape or exact.code_size != wanted.code_size:
        raise ValueError(
            f"{path}: a {type(exact).__name__} of {exact.ntotal} vectors of width {exact.d}, expected"
            f" {summary.num_items} of width {summary.dim} in {summary.vectors}"
        )
    rows = faiss.rev_swig_ptr(exact.codes.data(), exact.ntotal * exact.code_size)
    return exact, StoredVectors(rows.view(PRECISIONS[summary.vectors]).reshape(shape), owner=exact)
