"""The item table: the model's inputs of every catalogue item, memory-mapped and shared by the processes of a host."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, open_array
from mtmh.data.schema import FLOAT_FEATURES, ITEM_ID, ITEM_TABLE, RAW_IDS, TRAIN_COUNTS, FeatureSchema

if TYPE_CHECKING:  # they take seconds to import, and prepare and the index make no batches
    from torch import Tensor
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_SCAN_ROWS = 1 << 22  # bounds the memory of the checks at opening


@dataclass(frozen=True)
class IdColumn:
    """One id feature of all items.

    Attributes:
        values: [N] vocabulary rows, item after item; int64 in a vocabulary of more than 2^31 rows, else int32.
        offsets: [I + 1] int64, or ``None`` when every item has exactly one value.
    """

    values: Indices
    offsets: npt.NDArray[np.int64] | None

    def lengths(self, indices: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """The number of values of each item, [U]."""
        if self.offsets is None:
            return np.ones(len(indices), np.int64)
        lengths: npt.NDArray[np.int64] = self.offsets[indices + 1] - self.offsets[indices]
        return lengths

    def gather(self, indices: npt.NDArray[np.integer[Any]]) -> tuple[Indices, npt.NDArray[np.int64]]:
        """Values of the items, one item after another, and the number of values of each.

        Args:
            indices: [U] item indices.

        Returns:
            values [sum of lengths], lengths [U] int64.
        """
        lengths = self.lengths(indices)
        if self.offsets is None:
            return self.values[indices], lengths
        starts = self.offsets[indices]
        ends = np.cumsum(lengths)
        positions = np.repeat(starts - (ends - lengths), lengths)
        positions += np.arange(len(positions))
        return self.values[positions], lengths


class ItemColumns:
    """Features of some items, by their number here.

    Attributes:
        schema: id features and float features, in the order of the batch.
        columns: id features by name.
        float_features: [I, F] float32.
        train_count: [I] int64 events of the training period.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        columns: dict[str, IdColumn],
        float_features: npt.NDArray[np.float32],
        train_count: npt.NDArray[np.int64],
        raw_ids: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.schema = schema
        self.columns = columns
        self.float_features = float_features
        self.train_count = train_count
        self._raw_ids = raw_ids

    @property
    def raw_ids(self) -> npt.NDArray[np.int64]:
        """[I] the items' raw ids (`mtmh.data.ids`)."""
        assert self._raw_ids is not None
        return self._raw_ids

    def taken(self, indices: npt.NDArray[np.integer[Any]], *, raw: bool) -> ItemColumns:
        """A copy of some items, numbered in the order of ``indices``; ``raw``: with raw ids."""
        columns, num_rows = {}, {feature.name: feature.num_rows for feature in self.schema.id_features}
        for name, column in self.columns.items():
            values, lengths = column.gather(indices)
            if len(values) and not 0 <= values.min() <= values.max() < num_rows[name]:
                raise ValueError(f"id feature {name}: rows {values.min()} to {values.max()} of {num_rows[name]}")
            offsets = None if column.offsets is None else np.concatenate([[0], np.cumsum(lengths)])
            columns[name] = IdColumn(values, offsets)
        raw_ids = self.raw_ids[indices] if raw else None
        floats = np.take(self.float_features, indices, axis=0)
        return ItemColumns(self.schema, columns, floats, self.train_count[indices], raw_ids)

    def followed_by(self, other: ItemColumns) -> ItemColumns:
        """These items and others behind them."""
        return ItemColumns(
            self.schema,
            {name: _joined(column, other.columns[name]) for name, column in self.columns.items()},
            np.concatenate([self.float_features, other.float_features]),
            np.concatenate([self.train_count, other.train_count]),
            None if self._raw_ids is None else np.concatenate([self._raw_ids, other.raw_ids]),
        )

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
        import torch
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

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


class ItemTable(ItemColumns):
    """Features of all items of the catalogue, or of the items of all events of the training period, from files."""

    def __init__(
        self,
        dataset_folder: Path,
        schema: FeatureSchema,
        num_items: int,
        *,
        folder: Path = ITEM_TABLE,
        checked: bool = True,
    ) -> None:
        """Maps the files, and checks them in one pass.

        Args:
            dataset_folder: the dataset artifact.
            schema: of the dataset.
            num_items: of the table.
            folder: inside the dataset.
            checked: with ``False`` nothing is read here; rows are checked as they are `taken`.

        Raises:
            ValueError: a file is missing, of the wrong dtype or size, or holds rows outside the vocabulary.
        """
        self._folder = dataset_folder / folder
        self._num_items = num_items
        if ITEM_ID not in [feature.name for feature in schema.id_features]:
            raise ValueError(f"{self._folder}: the schema lacks the id feature {ITEM_ID}")
        columns: dict[str, IdColumn] = {}
        for feature in schema.id_features:
            values_path = self._folder / f"{feature.name}.values.npy"
            offsets_path = self._folder / f"{feature.name}.offsets.npy"
            values = open_array(values_path, (np.int32, np.int64), (None,))
            if folder != ITEM_TABLE and not offsets_path.exists():
                columns[feature.name] = IdColumn(open_array(values_path, values.dtype.type, (num_items,)), None)
                continue
            offsets = open_array(offsets_path, np.int64, (num_items + 1,))
            single = feature.name == ITEM_ID and len(values) == num_items
            if checked:
                _check_rows(values, feature.num_rows, values_path)
                single = _check_offsets(offsets, len(values), offsets_path)
            columns[feature.name] = IdColumn(values, None if single else offsets)
        if columns[ITEM_ID].offsets is not None:
            raise ValueError(f"{self._folder}: {ITEM_ID} must have exactly one value an item")
        floats_path = self._folder / FLOAT_FEATURES
        floats = open_array(floats_path, np.float32, (num_items, len(schema.float_features)))
        if checked:
            _check_finite(floats, floats_path)
        super().__init__(schema, columns, floats, open_array(self._folder / TRAIN_COUNTS, np.int64, (num_items,)))

    @cached_property
    def raw_ids(self) -> npt.NDArray[np.int64]:
        """[I] the items' raw ids (`mtmh.data.ids`), memory-mapped.

        Raises:
            ValueError: the file is missing, as in datasets that were prepared before there were raw ids, or damaged.
        """
        path = self._folder / RAW_IDS.name
        if not path.is_file():
            raise ValueError(f"{path}: missing; prepare the dataset again for model.id_tables (mtmh prepare)")
        return open_array(path, np.int64, (self._num_items,))


def _joined(first: IdColumn, second: IdColumn) -> IdColumn:
    values = np.concatenate([first.values, second.values])
    if first.offsets is None and second.offsets is None:
        return IdColumn(values, None)
    starts = [
        np.arange(len(column.values) + 1) if column.offsets is None else column.offsets for column in (first, second)
    ]
    return IdColumn(values, np.concatenate([starts[0], starts[0][-1] + starts[1][1:]]))


def _check_rows(values: Indices, num_rows: int, path: Path) -> None:
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
