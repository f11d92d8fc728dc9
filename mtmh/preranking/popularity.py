"""Counts of the engagements of items, in all and lately."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mtmh.data.histories import HistoryReader

_LATE = 0.2  # of each history, at its end


def item_popularity(reader: HistoryReader, num_items: int) -> npt.NDArray[np.float32]:
    """Logarithms of 1 + the events of each item, and of 1 + those in the last fifth of the users' histories, [I, 2]."""
    counts = np.zeros((2, num_items), np.int64)
    for group in range(reader.num_groups):
        histories = reader.read(group)
        lengths = np.diff(histories.offsets)
        last = np.ceil(_LATE * lengths).astype(np.int64)
        counts[0] += np.bincount(histories.items, minlength=num_items)
        counts[1] += np.bincount(histories.before(histories.offsets[1:], last).items, minlength=num_items)
    return np.log1p(counts.T).astype(np.float32)
