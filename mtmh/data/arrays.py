"""Types of the arrays that travel between files and models; and memory-mapped NumPy files, opened and checked."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

ItemId = int | str
Items = npt.NDArray[np.int64]  # rows of the catalogue; -1: none
Indices = npt.NDArray[np.integer[Any]]  # the same, of any width; or other row numbers
Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]  # [..., D]
Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]  # [I], by row of the catalogue

NARROW_ROWS = 2**31
_SHORTEST_NORM = 1e-12


def row_type(num_rows: int) -> type[np.int32] | type[np.int64]:
    """The type of the numbers of so many rows in files and arrays as long as the data: int32 as far as it goes."""
    return np.int32 if num_rows <= NARROW_ROWS else np.int64


def narrowed(rows: npt.NDArray[np.int64], num_rows: int) -> Indices:
    """Numbers of so many rows in their type (`row_type`)."""
    return rows.astype(np.int32) if row_type(num_rows) is np.int32 else rows


def widened(items: Indices, width: int) -> Indices:
    """Items [N, C] with -1 behind them up to a width. [N, C] -> [N, width]."""
    return np.pad(items, ((0, 0), (0, width - items.shape[1])), constant_values=-1)


def falling(scores: Scores) -> npt.NDArray[np.uint64]:
    """Numbers of 32 bits that rise as finite scores fall: packed with others into one, they sort many times faster."""
    bits = (scores + np.float32(0.0)).view(np.uint32)  # the sum makes -0 and 0 one number
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (~rising).astype(np.uint64)


def unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of unit length; a row of zeros stays one. [N, D] -> [N, D] float32."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.where(norms > _SHORTEST_NORM, vectors / np.maximum(norms, _SHORTEST_NORM), 0).astype(np.float32)


# What NumPy raises of headers that are no headers: it parses them as Python, some after Python's tokenizer.
_UNREADABLE = (ValueError, EOFError, OverflowError, SyntaxError, TypeError, TokenError)


def open_array(
    path: Path, dtypes: type | tuple[type, ...] | None = None, shape: tuple[int | None, ...] | None = None
) -> npt.NDArray[Any]:
    """Memory-maps a ``.npy`` file, read only.

    Args:
        path: the file.
        dtypes: what it must hold, or any of several; ``None``, without a shape: anything.
        shape: what it must measure; ``None``: any size.

    Raises:
        ValueError: missing, not a plain NumPy file, another dtype or shape; the message names the file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable NumPy file: {error}") from None
    if dtypes is None or shape is None:
        return np.asarray(array)
    fits = len(array.shape) == len(shape) and all(
        want is None or want == size for want, size in zip(shape, array.shape, strict=True)
    )
    allowed = [np.dtype(dtype) for dtype in (dtypes if isinstance(dtypes, tuple) else (dtypes,))]
    if array.dtype not in allowed or not fits:
        kinds = " or ".join(map(str, allowed))
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{path}: expected {kinds} [{sizes}], found {array.dtype} {list(array.shape)}")
    # A plain view: np.memmap makes every slice of itself a memmap again, which costs more than the slice.
    return np.asarray(array)
