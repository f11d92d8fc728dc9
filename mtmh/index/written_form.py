"""Comparison of a faiss file with the form in which this package writes it, before faiss parses it.

faiss trusts what it reads: a list that begins past the end of its file, or a count that does not fit, is a read
somewhere in memory. Of a file that passes here only numbers are its own, and each is in its range.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from mtmh.index.artifact import IndexSummary
from mtmh.index.lists import attach_lists
from mtmh.index.storage import IvfSettings, Storage, VectorFile, empty_ivf

_Bytes = npt.NDArray[np.uint8]

_ENTRY = 3  # int64 of a list: its size, its room, where it begins
_COUNT_BYTES = 8


def check_ivf(path: Path, lists: Path, summary: IndexSummary) -> None:
    """Compares the file of an IVF index, whose lists are in a file beside it.

    Raises:
        ValueError: not what this package writes for such an index.
    """
    found, list_bytes = np.fromfile(path, np.uint8), lists.stat().st_size
    code_bytes, rest = divmod(list_bytes, max(1, summary.num_items))
    if rest or summary.num_items < 1:
        raise ValueError(f"{lists}: {list_bytes} bytes, which are not the codes of {summary.num_items} vectors")
    # Behind the entries: the free places, none; the name; the size of the lists.
    after = 3 * _COUNT_BYTES + len(lists.name)
    begin = len(found) - after - summary.num_clusters * _ENTRY * _COUNT_BYTES
    if min(summary.num_clusters, summary.dim) > 0 and begin > summary.num_clusters * summary.dim * 4:
        entries = found[begin : len(found) - after].view(np.int64).reshape(-1, _ENTRY)
        sizes = entries[:, 0].copy()
        if sizes.min() >= 0 and sizes.max() <= summary.num_items and sizes.sum() == summary.num_items:
            code_size = code_bytes - _COUNT_BYTES
            for settings in _settings(summary.storage, summary.dim, code_size):
                index = empty_ivf(summary.dim, summary.num_clusters, settings)
                # Another size of codes: lists that were cut off between two vectors' shares.
                if index.code_size == code_size and _is_of_form(found, index, settings, summary, sizes, lists):
                    return
    raise ValueError(
        f"{path}: not an index of {summary.num_items} vectors of width {summary.dim} ({summary.storage}) with lists of"
        f" {list_bytes} bytes as this mtmh writes it; build it again"
    )


def check_flat(path: Path, file: VectorFile) -> None:
    """Compares a flat index with the one that a `VectorFile` of the same shape would make.

    Raises:
        ValueError: another header, or another size.
    """
    with path.open("rb") as opened:
        if opened.read(len(file.header)) != file.header or path.stat().st_size != file.num_bytes:
            raise ValueError(f"{path}: not a file of vectors of this index as this mtmh writes it; build it again")


def check_items_in_lists(path: Path, lists: Any, num_items: int) -> None:
    """Checks that the mapped lists name items of the catalogue only.

    Args:
        path: of the lists, for the message.
        lists: a ``faiss.OnDiskInvertedLists`` that is mapped.
        num_items: I.

    Raises:
        ValueError: another number is among them.
    """
    for place in range(lists.nlist):
        size = lists.list_size(place)
        if size:
            items = faiss.rev_swig_ptr(lists.get_ids(place), size)
            if items.min() < 0 or items.max() >= num_items:
                raise ValueError(f"{path}: list {place} names an item that is not in the catalogue of {num_items}")


def _is_of_form(
    found: _Bytes, index: Any, settings: IvfSettings, summary: IndexSummary, sizes: npt.NDArray[np.int64], lists: Path
) -> bool:
    index.is_trained = True
    attach_lists(index, sizes, lists)
    forms: list[_Bytes] = []
    for byte in (0, 255):

        def numbers(count: int, byte: int = byte) -> npt.NDArray[np.float32]:
            return np.full(4 * count, byte, np.uint8).view(np.float32)

        index.quantizer.reset()
        index.quantizer.add(numbers(summary.num_clusters * summary.dim).reshape(-1, summary.dim))
        if settings.storage in ("pq", "fastscan"):
            faiss.copy_array_to_vector(numbers(index.pq.ksub * summary.dim), index.pq.centroids)
        if settings.storage == "sq8":
            faiss.copy_array_to_vector(numbers(2 * summary.dim), index.sq.trained)
        forms.append(faiss.serialize_index(index))
    fixed = forms[0] == forms[1]
    return len(found) == len(fixed) and bool((found[fixed] == forms[0][fixed]).all())


def _settings(storage: Storage, dim: int, code_bytes: int) -> Iterator[IvfSettings]:
    """The settings of the lists that may have codes of this size."""
    if storage != "pq":
        yield IvfSettings(storage=storage)
        return
    for bits in range(1, 17):
        for numbers in range(1, dim + 1):
            if dim % numbers == 0 and -(-numbers * bits // 8) == code_bytes:
                yield IvfSettings(storage=storage, pq_m=numbers, pq_bits=bits)
