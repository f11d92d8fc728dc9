"""Cuts a row of counted things into ranges of bounded total, so that memory does not grow with the data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bounded_ranges(counts: NDArray[np.int64], limit: int) -> list[tuple[int, int]]:
    """Consecutive ranges ``[start, stop)`` over ``counts``, each about ``limit`` in total.

    A range ends where the running total passes a multiple of ``limit``, so it exceeds ``limit`` by less than its
    largest single count.

    Example:
        >>> import numpy as np
        >>> bounded_ranges(np.array([3, 3, 3, 3]), 6)
        [(0, 2), (2, 4)]
    """
    if len(counts) == 0:
        return []
    before = np.concatenate(([0], np.cumsum(counts)[:-1]))
    starts = np.flatnonzero(np.diff(before // limit, prepend=-1))
    stops = np.append(starts[1:], len(counts))
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
