"""The order of the ids of items, by which an item is found: a binary search in two arrays, which may be mapped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, ItemId, narrowed
from mtmh.data.ids import raw_ids


@dataclass(frozen=True)
class IdOrder:
    """The order of the ids of I items. Texts go by their raw ids (`mtmh.data.ids`), of which two may be the same.

    They do not go by themselves, because `numpy.searchsorted` misses most strings of more than 15 bytes (NumPy 2.4).

    Attributes:
        keys: [I] int64 raw ids, ascending.
        items: [I] item index of each key.
    """

    keys: npt.NDArray[np.int64]
    items: Indices

    @classmethod
    def of(cls, raw: npt.NDArray[np.int64]) -> Self:
        """Sorts the raw ids of the items [I]; takes 28 bytes an item meanwhile."""
        order = np.argsort(raw, kind="stable")
        return cls(raw[order], narrowed(order, len(order)))

    def find(
        self, ids: npt.NDArray[np.generic], texts: Callable[[Indices], list[ItemId]] | None
    ) -> npt.NDArray[np.int64]:
        """Item indices of ids.

        Args:
            ids: [N] int64, or NumPy strings (StringDType).
            texts: ids of item indices; None: ids are numbers.

        Returns:
            [N], -1: not there.
        """
        if not len(ids) or not len(self.keys):
            return np.full(len(ids), -1, np.int64)
        wanted = raw_ids(ids)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        found = np.where(self.keys[places] == wanted, self.items[places], -1).astype(np.int64)
        if texts is None:
            return found
        hits = np.flatnonzero(found >= 0)
        for hit, meant, text in zip(hits.tolist(), ids[hits].tolist(), texts(found[hits]), strict=True):
            if text != meant:
                sharing = self.items[places[hit] : np.searchsorted(self.keys, wanted[hit], side="right")]
                others = zip(sharing.tolist(), texts(sharing), strict=True)
                found[hit] = next((item for item, other in others if other == meant), -1)
        return found
