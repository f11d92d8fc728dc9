"""The vector of an item, wherever it is stored: in a file, once in the inverted lists, or added since the build."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from mtmh.data.arrays import Indices, Vectors


class ItemVectors(Protocol):
    """Unit-length vectors of all items under one head; a float32 array [I, D] is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(I, D)."""

    def __len__(self) -> int:
        """I."""

    def __getitem__(self, items: Any, /) -> Vectors:
        """Vectors of items: [..., D] float32 for item indices [...], or a slice of them."""


class StoredVectors:
    """Vectors in an array, memory-mapped as a rule; what is asked for is copied and becomes float32.

    Args:
        rows: [I, D] float32 or float16; or, with ``places``, a view whose row ``places[i]`` is the vector of item i.
        places: [I] int64 rows of the items; None: item i is row i.
        owner: what the memory of ``rows`` belongs to, kept as long as this object.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.floating[Any]],
        places: npt.NDArray[np.int64] | None = None,
        owner: object = None,
    ) -> None:
        self._rows = rows
        # A row as one value of some bytes: rows copied whole take half the time of fancy indexing.
        self._whole = None
        if len(rows) and rows.strides[1] == rows.itemsize:
            row = np.asarray(rows)[0].view((np.void, rows.shape[1] * rows.itemsize))
            self._whole = as_strided(row, rows.shape[:1], rows.strides[:1])
        self._places = places
        self._owner = owner
        self.shape = (len(rows) if places is None else len(places), rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, items: slice | Indices, /) -> Vectors:
        """As ``ItemVectors``."""
        places = items if self._places is None else self._places[items]
        if self._whole is None or isinstance(places, slice) or not np.ndim(places):
            return np.asarray(self._rows[places], np.float32)
        found = self._whole[places]
        return np.asarray(found.view(self._rows.dtype).reshape(*found.shape, self.shape[1]), np.float32)


class StackedVectors:
    """Vectors of I items of a version and of F items added since, by item index; an ``ItemVectors``.

    Attributes:
        base: [I, D].
        added: [F, D] float32.
    """

    def __init__(self, base: ItemVectors, added: Vectors | None = None) -> None:
        self.base = StoredVectors(base) if isinstance(base, np.ndarray) else base
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
