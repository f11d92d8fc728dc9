"""Finds the distinct values of an array of indices, so that what follows is done once for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_TABLE_ROWS = 1 << 26  # up to here through a table (4 bytes a row), beyond by sorting


class Distinct:
    """Distinct indices and where each index went, many times over.

    Only the distinct values are sorted: each position writes its number into a table at its index, and the position
    whose number is still there stands for the index. The table is kept from call to call and never cleared.
    """

    def __init__(self) -> None:
        self._table = np.empty(0, np.int32)

    def __call__(
        self, indices: npt.NDArray[np.integer[Any]], bound: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Splits indices into distinct ones and rows.

        Args:
            indices: [n] each at least 0 and below ``bound``.
            bound: size of the index space.

        Returns:
            the distinct indices [U], ascending; the row among them of each index [n].
        """
        if bound > _TABLE_ROWS:
            values, rows = np.unique(indices, return_inverse=True)
            return values.astype(np.int64), rows
        if bound > len(self._table):
            self._table = np.zeros(bound, np.int32)
        numbers = np.arange(len(indices), dtype=np.int32)
        self._table[indices] = numbers
        values = indices[self._table[indices] == numbers]
        values.sort()
        self._table[values] = numbers[: len(values)]
        return values.astype(np.int64), self._table[indices].astype(np.int64)
