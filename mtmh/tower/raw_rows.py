"""Rows that raw ids have in the tables of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mtmh.distributed.state_files import stored_pieces, stored_shapes
from mtmh.modules.id_tables import NO_ROW, scrambled
from mtmh.training.checkpoint import MODEL

_IDENTITIES = "._hash_zch_identities"


class RawRows:
    """The ids of a table of raw ids, by row and the other way round.

    Args:
        folder: state of the checkpoint.
        feature: whose table.

    Raises:
        ValueError: the state has no ids of this table.
    """

    def __init__(self, folder: Path, feature: str) -> None:
        names = [name for name in stored_shapes(folder) if name.endswith(f".{feature}{_IDENTITIES}")]
        names = [name for name in names if name.startswith(MODEL)]
        if len(names) != 1:
            raise ValueError(f"{folder}: the ids of the table {feature}: expected one tensor, found {len(names)}")
        self._ids = np.full(stored_shapes(folder)[names[0]][0], NO_ROW, np.int64)
        for offsets, piece in stored_pieces(folder, names[0]):
            self._ids[offsets[0] : offsets[0] + len(piece)] = piece.view(-1).numpy()
        self._order = np.argsort(self._ids)

    def __len__(self) -> int:
        """Rows of the table."""
        return len(self._ids)

    def of_ids(self, raw_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ids, `NO_ROW` for those without one; both [n]."""
        return self._find(scrambled(torch.from_numpy(np.array(raw_ids))).numpy())

    def in_other(self, other: RawRows, first: int, last: int) -> NDArray[np.int64]:
        """The rows that the ids of the rows ``first`` to ``last - 1`` have in another table, `NO_ROW`: none."""
        ids = self._ids[first:last]
        return np.where(ids == NO_ROW, NO_ROW, other._find(ids))

    def _find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        place = np.searchsorted(self._ids, ids, sorter=self._order).clip(max=len(self._ids) - 1)
        rows = self._order[place]
        return np.where(self._ids[rows] == ids, rows, NO_ROW)
