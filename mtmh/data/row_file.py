"""Rows of a ``.npy`` file that many processes write and read in pieces, without mapping the file.

A memory map counts as memory of the process for every page that was touched; plain reads do not.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import open_array

AnyArray = npt.NDArray[Any]


class RowFile:
    """A ``.npy`` file of equal rows.

    Args:
        path: the file; ``create`` makes one.
        dtype: and ``expected``: what it must hold, as `open_array` takes them.

    Attributes:
        shape: (rows, ...).
        dtype: of the values.

    Raises:
        ValueError: as `open_array`.
    """

    def __init__(self, path: Path, dtype: type | None = None, expected: tuple[int | None, ...] | None = None) -> None:
        mapped = open_array(path, dtype, expected)
        self.path = path
        self.shape: tuple[int, ...] = mapped.shape
        self.dtype: np.dtype[Any] = mapped.dtype
        self._row_values = math.prod(self.shape[1:])
        self._offset = path.stat().st_size - mapped.nbytes

    @classmethod
    def create(cls, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> RowFile:
        """Makes a file of zeros, as `create_array`."""
        create_array(path, dtype, shape)
        return cls(path)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop - 1``."""
        count = (stop - start) * self._row_values
        values = np.fromfile(self.path, self.dtype, count, offset=self._place(start))
        assert len(values) == count, f"{self.path}: shorter than its header says"
        return values.reshape(stop - start, *self.shape[1:])

    def write(self, start: int, rows: AnyArray) -> None:
        """Overwrites rows from ``start`` on; other processes may write other rows meanwhile."""
        assert start + len(rows) <= len(self)
        assert rows.shape[1:] == self.shape[1:]
        write_at(self.path, self._place(start), np.ascontiguousarray(rows, dtype=self.dtype))

    def __getitem__(self, rows: slice | npt.NDArray[np.integer[Any]], /) -> AnyArray:
        """Rows by a slice, or by an array of numbers [N] (each is a read of its own)."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            assert step == 1
            return self.read(start, max(start, stop))
        return np.concatenate([self.read(row, row + 1) for row in rows.tolist()] or [self.read(0, 0)])

    def _place(self, row: int) -> int:
        place: int = self._offset + row * self._row_values * self.dtype.itemsize
        return place


def create_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Any]]:
    """Makes a ``.npy`` file of zeros and memory-maps it for writing.

    Raises:
        OSError: as `preallocate`.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    preallocate(path, path.stat().st_size)
    return array


def preallocate(path: Path, size: int) -> None:
    """Gives a file its size, and takes the room for it on the disk: a map into a file without room ends the process.

    Raises:
        OSError: there is not so much room; its note says how much was needed.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.ftruncate(descriptor, size)
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        error.filename = str(path)
        error.add_note(f"{size:,} bytes are needed for it")
        raise
    finally:
        os.close(descriptor)


def write_at(path: Path, offset: int, values: AnyArray) -> None:
    """Writes the bytes of an array into an existing file from ``offset`` on."""
    view = values.reshape(-1).view(np.uint8).data
    descriptor = os.open(path, os.O_WRONLY)
    try:
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(descriptor)
