"""Fills inverted lists shard by shard and merges them into one file; any number of processes share the work.

A shard is a fixed run of items, filed by one process: its codes sorted by list. The merge lays, list by list, the
shards' codes and item indices one after another, so the file is the same however many processes there are, and each
holds one shard or one run of lists at a time. A run opens every shard, so large indexes want large shards and have
large runs: at two billion items of fp16, shards of four million and runs of a gigabyte take a million opens of files,
where shards of 131,072 and runs of 64 MB would take half a billion.

faiss has a merge of its own, ``faiss.contrib.ondisk.merge_ondisk``, which writes the same bytes in less CPU time
(``python -m benchmarks.index_lists``). It is one process, though, whatever the number of ranks; it maps all shards and
the merged file, so its memory is that of the whole index; and where the disk is full, a write into a map ends the
process without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import open_array
from mtmh.data.row_file import RowFile, preallocate, write_at
from mtmh.index.storage import on_gpu

Sizes = npt.NDArray[np.int64]

ITEM_BYTES = 8

_ENCODE_ROWS = 16_384
# Of a run: a 512th of the lists, within these bounds. Merging holds about three times that.
_LEAST_RUN_BYTES = 64 << 20
_MOST_RUN_BYTES = 1 << 30


@dataclass(frozen=True)
class ListShards:
    """The shards of one head on disk while its lists are built.

    Attributes:
        folder: of the files.
        head: its name.
        num_items: of the catalogue.
        shard_items: of a shard; the last one may be smaller.
    """

    folder: Path
    head: str
    num_items: int
    shard_items: int

    @property
    def count(self) -> int:
        """Shards of the catalogue."""
        return -(-self.num_items // self.shard_items)

    def items(self, shard: int) -> range:
        """Item indices of a shard."""
        return range(shard * self.shard_items, min((shard + 1) * self.shard_items, self.num_items))

    def write(self, shard: int, codes: npt.NDArray[np.uint8], items: Sizes, sizes: Sizes) -> None:
        """Stores a shard: codes [n, code_size] and items [n], both sorted by list, and its lists' sizes [L]."""
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        for part, rows in (("codes", codes), ("items", items), ("offsets", offsets)):
            np.save(self._file(shard, part), rows)

    def codes(self, shard: int) -> RowFile:
        """[n, code_size] uint8."""
        return RowFile(self._file(shard, "codes"))

    def filed(self, shard: int) -> RowFile:
        """[n] int64 item indices."""
        return RowFile(self._file(shard, "items"))

    def offsets(self) -> list[Sizes]:
        """[L + 1] of each shard, mapped: the first vector of each list in the shard, and the number of all."""
        return [open_array(self._file(shard, "offsets"), np.int64, (None,)) for shard in range(self.count)]

    def _file(self, shard: int, part: str) -> Path:
        return self.folder / f"{self.head}.{shard:06d}.{part}.npy"


class ShardFiler:
    """Files vectors under the clusters of a trained, empty index.

    Args:
        index: a ``faiss.IndexIVF``.
    """

    def __init__(self, index: Any) -> None:
        self._index = index
        self._quantizer = on_gpu(index.quantizer)

    def file(self, vectors: RowFile, shards: ListShards, shard: int, near: RowFile | None = None) -> None:
        """Encodes the items of one shard and stores them sorted by list.

        Args:
            vectors: [I, D] float32 of the whole catalogue; the shard's rows are read in blocks.
            shards: where to.
            shard: which.
            near: takes the clusters nearest to each item of the shard, as many as its rows hold.
        """
        own = shards.items(shard)
        codes = np.empty((len(own), self._index.code_size), np.uint8)
        lists = np.empty(len(own), np.int64)
        for start in range(0, len(own), _ENCODE_ROWS):
            part = slice(start, min(start + _ENCODE_ROWS, len(own)))
            rows = vectors.read(own.start + part.start, own.start + part.stop)
            nearest = self._quantizer.search(rows, 1 if near is None else near.shape[1])[1]
            lists[part] = nearest[:, 0]
            if near is not None:
                near.write(own.start + part.start, nearest)
            self._index.encode_vectors(
                len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(lists[part]), faiss.swig_ptr(codes[part]), False
            )
        assert lists.min() >= 0
        order = np.argsort(lists, kind="stable")
        sizes = np.bincount(lists, minlength=self._index.nlist).astype(np.int64)
        shards.write(shard, codes[order], own.start + order, sizes)


def list_sizes(offsets: Sequence[Sizes]) -> Sizes:
    """Sizes of all lists [L] over all shards."""
    return sum((np.diff(of_shard) for of_shard in offsets[1:]), np.diff(offsets[0]))


def list_places(sizes: Sizes, code_size: int) -> Sizes:
    """The beginning of each list in the merged file, and the end of the last: [L + 1] bytes."""
    return np.concatenate([[0], np.cumsum(sizes * (code_size + ITEM_BYTES))])


def create_lists(path: Path, sizes: Sizes, code_size: int) -> None:
    """Makes the file that ``merge_lists`` fills."""
    preallocate(path, int(list_places(sizes, code_size)[-1]))


def run_bytes(num_bytes: int) -> int:
    """Bytes of a run, at most, where all lists together take so many."""
    return min(max(num_bytes // 512, _LEAST_RUN_BYTES), _MOST_RUN_BYTES)


def merge_runs(sizes: Sizes, code_size: int) -> Iterator[tuple[int, int]]:
    """Runs of lists, each small enough to be merged in memory: (first, last + 1).

    Args:
        sizes: [L].
        code_size: bytes a vector.
    """
    places = list_places(sizes, code_size)
    most = run_bytes(int(places[-1]))
    first, num_lists = 0, len(sizes)
    while first < num_lists:
        end = int(np.searchsorted(places, places[first] + most, side="right")) - 1
        end = min(max(end, first + 1), num_lists)
        yield first, end
        first = end


def merge_lists(
    shards: ListShards, offsets: Sequence[Sizes], run: tuple[int, int], place: int, code_size: int, path: Path
) -> None:
    """Writes one run of lists; other processes may write other runs meanwhile.

    Args:
        shards: all of them stored.
        offsets: of the shards.
        run: first list, and the one after the last.
        place: of the first list in the file.
        code_size: bytes a vector.
        path: made by ``create_lists``.
    """
    first, end = run
    codes, items, sizes = [], [], []
    for shard, of_shard in enumerate(offsets):
        begin, stop = int(of_shard[first]), int(of_shard[end])
        codes.append(shards.codes(shard).read(begin, stop))
        items.append(shards.filed(shard).read(begin, stop))
        sizes.append(np.diff(of_shard[first : end + 1]))
    lists = np.concatenate([np.repeat(np.arange(first, end), of_shard) for of_shard in sizes])
    order = np.argsort(lists, kind="stable")
    sorted_codes, sorted_items = np.concatenate(codes)[order], np.concatenate(items)[order]
    merged = np.empty(len(order) * (code_size + ITEM_BYTES), np.uint8)
    at = 0
    ends = np.cumsum(np.sum(sizes, axis=0)).tolist()
    for start, stop in zip([0, *ends], ends, strict=False):
        for part in (sorted_codes[start:stop], sorted_items[start:stop]):
            merged[at : at + part.nbytes] = part.reshape(-1).view(np.uint8)
            at += part.nbytes
    write_at(path, place, merged)


def vector_places(
    shards: ListShards, offsets: Sequence[Sizes], own: Sequence[int], code_size: int, value_bytes: int
) -> Iterator[tuple[int, Sizes]]:
    """At which value of the merged file each vector of some shards begins.

    Args:
        shards: all of them stored.
        offsets: of the shards.
        own: which of them, ascending.
        code_size: bytes a vector.
        value_bytes: of one value of a vector; divides ``code_size``.

    Yields:
        a shard, and [n] int64 in item order.
    """
    places = list_places(list_sizes(offsets), code_size)
    before = np.zeros(len(places) - 1, np.int64)  # vectors of each list in earlier shards
    for shard in range(own[-1] + 1 if own else 0):
        sizes = np.diff(offsets[shard])
        if shard in own:
            lists = np.repeat(np.arange(len(sizes)), sizes)
            within = np.arange(len(lists)) - offsets[shard][lists] + before[lists]
            begins = places[lists] + within * code_size
            filed, items = shards.filed(shard), shards.items(shard)
            found = np.empty(len(items), np.int64)
            found[filed.read(0, len(filed)) - items.start] = begins // value_bytes
            yield shard, found
        before += sizes


def attach_lists(index: Any, sizes: Sizes, path: Path) -> None:
    """Puts the merged lists into the trained index; ``write_faiss`` then records where each is.

    Args:
        index: a trained, empty ``faiss.IndexIVF``.
        sizes: [L].
        path: the merged file.
    """
    totals = sizes.astype(np.uint64)
    lists: Any = faiss.OnDiskInvertedLists(index.nlist, index.code_size, path.name)
    lists.set_all_lists_sizes(faiss.swig_ptr(totals))
    lists.totsize = int(list_places(sizes, index.code_size)[-1])
    index.replace_invlists(lists, True)
    lists.this.disown()  # the index's now
    index.ntotal = int(totals.sum())
