"""The vectors of a built version with those of items added since, as one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, Vectors
from mtmh.data.item_vectors import ItemVectors


class StackedVectors:
    """Vectors of I items of a version and of F items added since, by item index; an ``ItemVectors``.

    Attributes:
        base: [I, D].
        added: [F, D] float32.
    """

    def __init__(self, base: ItemVectors, added: Vectors | None = None) -> None:
        self.base = base
        self.added = np.empty((0, base.shape[1]), np.float32) if added is None else added

    @property
    def num_added(self) -> int:
        """F."""
        return len(self.added)

    @property
    def shape(self) -> tuple[int, ...]:
        """(I + F, D)."""
        return (len(self), self.base.shape[1])

    def __len__(self) -> int:
        """I + F."""
        return len(self.base) + len(self.added)

    def __getitem__(self, items: slice | Indices) -> Vectors:
        """Vectors of items: [..., D] float32 for item indices [...]; -1 gives some vector, as in an array."""
        if not len(self.added):
            return self.base[items]
        if isinstance(items, slice):
            items = np.arange(*items.indices(len(self)))
        items = np.asarray(items)
        is_added = items >= len(self.base)
        if not is_added.any():
            return self.base[items]
        found = np.array(self.base[np.where(is_added, 0, items)])
        found[is_added] = self.added[items[is_added] - len(self.base)]
        return found

    def with_added(self, vectors: npt.NDArray[np.float32]) -> StackedVectors:
        """These and more."""
        return StackedVectors(self.base, np.concatenate([self.added, vectors]))
