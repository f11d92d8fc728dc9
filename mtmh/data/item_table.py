"""The item table: the model's inputs of every catalogue item, memory-mapped and shared by the processes of a host."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.data.arrays import open_array
from mtmh.data.schema import ITEM_ID, ITEM_TABLE, RAW_IDS, FeatureSchema

_SCAN_ROWS = 1 << 22  # bounds the memory of the checks at opening


@dataclass(frozen=True)
class IdColumn:
    """One id feature of all items.

    Attributes:
        values: [N] int32 vocabulary rows, item after item.
        offsets: [I + 1] int64, or ``None`` when every item has exactly one value.
    """

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64] | None

    def gather(self, indices: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Values of the items, one item after another, and the number of values of each.

        Args:
            indices: [U] item indices.

        Returns:
            values [sum of lengths] int32, lengths [U] int64.
        """
        if self.offsets is None:
            return self.values[indices], np.ones(len(indices), np.int64)
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        ends = np.cumsum(lengths)
        positions = np.repeat(starts - (ends - lengths), lengths)
        positions += np.arange(len(positions))
        return self.values[positions], lengths


class ItemTable:
    """Features of all items.

    Attributes:
        schema: id features and float features, in the order of the batch.
        columns: id features by name.
        float_features: [I, F] float32.
        train_count: [I] int64 events of the training period.
    """

    def __init__(self, dataset_folder: Path, schema: FeatureSchema, num_items: int) -> None:
        """Maps the files and checks them in one pass.

        Raises:
            ValueError: a file is missing, of the wrong dtype or size, or holds rows outside the vocabulary.
        """
        folder = dataset_folder / ITEM_TABLE
        self._raw_path = dataset_folder / RAW_IDS
        self._num_items = num_items
        if ITEM_ID not in [feature.name for feature in schema.id_features]:
            raise ValueError(f"{folder}: the schema lacks the id feature {ITEM_ID}")
        self.schema = schema
        self.columns: dict[str, IdColumn] = {}
        for feature in schema.id_features:
            values_path = folder / f"{feature.name}.values.npy"
            offsets_path = folder / f"{feature.name}.offsets.npy"
            values = open_array(values_path, np.int32, (None,))
            offsets = open_array(offsets_path, np.int64, (num_items + 1,))
            _check_rows(values, feature.num_rows, values_path)
            single = _check_offsets(offsets, len(values), offsets_path)
            self.columns[feature.name] = IdColumn(values, None if single else offsets)
        if self.columns[ITEM_ID].offsets is not None:
            raise ValueError(f"{folder}: {ITEM_ID} must have exactly one value an item")
        floats_path = folder / "float_features.npy"
        self.float_features = open_array(floats_path, np.float32, (num_items, len(schema.float_features)))
        _check_finite(self.float_features, floats_path)
        self.train_count = open_array(folder / "train_count.npy", np.int64, (num_items,))

    @cached_property
    def raw_ids(self) -> npt.NDArray[np.int64]:
        """[I] the items' raw ids (`mtmh.data.ids`), memory-mapped.

        Raises:
            ValueError: the file is missing, as in datasets that were prepared before there were raw ids, or damaged.
        """
        if not self._raw_path.is_file():
            raise ValueError(f"{self._raw_path}: missing; prepare the dataset again for model.id_tables (mtmh prepare)")
        return open_array(self._raw_path, np.int64, (self._num_items,))

    def gather(
        self,
        indices: npt.NDArray[np.integer[Any]],
        hide_id: npt.NDArray[np.bool_] | None = None,
        *,
        raw: Collection[str] = (),
    ) -> tuple[KeyedJaggedTensor, Tensor]:
        """Inputs of the item tower.

        Args:
            indices: [U] item indices.
            hide_id: [U] items whose ``item_id`` is replaced by row 0, or left out if it is raw, as if they were never
                seen.
            raw: features whose raw ids are wanted instead of rows; only ``item_id`` has such.

        Returns:
            all id features in schema order, ``U`` bags each (int64 values and lengths); dense [U, F] float32.
        """
        assert not set(raw) - {ITEM_ID}
        parts: dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.int64]]] = {
            name: self._raw_bags(indices, hide_id) if name in raw else column.gather(indices)
            for name, column in self.columns.items()
        }
        if hide_id is not None and ITEM_ID not in raw:
            parts[ITEM_ID][0][hide_id] = 0
        # int64 throughout: nn.EmbeddingBag wants indices and offsets of one type.
        sparse = KeyedJaggedTensor(
            keys=list(parts),
            values=torch.from_numpy(np.concatenate([values for values, _ in parts.values()], dtype=np.int64)),
            lengths=torch.from_numpy(np.concatenate([lengths for _, lengths in parts.values()])),
        )
        return sparse, torch.from_numpy(np.take(self.float_features, indices, axis=0))

    def _raw_bags(
        self, indices: npt.NDArray[np.integer[Any]], hide: npt.NDArray[np.bool_] | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Raw ids of the items that are not hidden, and how many each item has."""
        ids = self.raw_ids[indices]
        return (ids, np.ones(len(ids), np.int64)) if hide is None else (ids[~hide], (~hide).astype(np.int64))


def _check_rows(values: npt.NDArray[np.int32], num_rows: int, path: Path) -> None:
    for start in range(0, len(values), _SCAN_ROWS):
        part = values[start : start + _SCAN_ROWS]
        if part.min() < 0 or part.max() >= num_rows:
            raise ValueError(f"{path}: rows must lie in 0 to {num_rows - 1}, found {part.min()} to {part.max()}")


def _check_finite(features: npt.NDArray[np.float32], path: Path) -> None:
    for start in range(0, len(features), _SCAN_ROWS):
        good = np.isfinite(features[start : start + _SCAN_ROWS]).all(axis=1)
        if not good.all():
            raise ValueError(f"{path}: item {start + int(good.argmin())}: NaN or infinite")


def _check_offsets(offsets: npt.NDArray[np.int64], num_values: int, path: Path) -> bool:
    """True if every item has exactly one value."""
    if offsets[0] != 0 or offsets[-1] != num_values:
        raise ValueError(f"{path}: must run from 0 to {num_values}, runs from {offsets[0]} to {offsets[-1]}")
    single = True
    for start in range(0, len(offsets) - 1, _SCAN_ROWS):
        lengths = np.diff(offsets[start : start + _SCAN_ROWS + 1])
        if lengths.min() < 0:
            raise ValueError(f"{path}: offsets must not decrease")
        single = single and bool((lengths == 1).all())
    return single
