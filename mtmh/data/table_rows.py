"""Rows of an Arrow table by their numbers, whatever batches it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtmh.data.arrays import Indices


class TableRows:
    """A table of which rows are taken; pyarrow's own ``take`` copies all of a table that lies in several batches.

    Attributes:
        table: the whole of it, nothing copied.
    """

    def __init__(self, table: pa.Table, batches: Sequence[pa.RecordBatch] | None = None) -> None:
        self.table = table
        self._batches = table.to_batches() if batches is None else batches
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.table)

    def with_more(self, rows: pa.Table) -> TableRows:
        """This table and more rows of the same columns behind it."""
        return TableRows(pa.concat_tables([self.table, rows]), [*self._batches, *rows.to_batches()])

    def take(self, rows: Indices, names: Sequence[str]) -> pa.Table:
        """Columns of rows, in the order in which these are asked for.

        Args:
            rows: [N], each from 0 to the length of the table less 1.
            names: of the columns.

        Returns:
            N rows, in one batch.
        """
        if len(self._batches) == 1:
            return pa.Table.from_batches([self._batches[0].select(names).take(arrow(rows))])
        batch_of = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(batch_of, kind="stable")
        parts = []
        for batch, own in _groups(batch_of[order], order):
            begin = self._ends[batch] - len(self._batches[batch])
            parts.append(self._batches[batch].select(names).take(arrow(rows[own] - begin)))
        found = pa.Table.from_batches(parts, pa.schema([self.table.schema.field(name) for name in names]))
        if len(parts) < 2:
            return found
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return found.combine_chunks().take(arrow(back))


def numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Numbers without gaps; pyarrow's own conversion imports pandas first, where it is installed."""
    return np.from_dlpack(column.combine_chunks())


def with_nan(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Numbers as float64 [N], NULL as NaN."""
    missing = arrow(np.full(len(column), np.nan))
    return numbers(pc.coalesce(column.cast(pa.float64(), safe=False), missing))


def arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers [N] as Arrow holds them, not copied if they lie one behind another: the way back, likewise."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _groups(batches: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Numbers of batches, ascending, and for each the places of its rows."""
    starts = np.flatnonzero(np.diff(batches, prepend=-1))
    return list(zip(batches[starts].tolist(), np.split(order, starts[1:]), strict=True)) if len(starts) else []
