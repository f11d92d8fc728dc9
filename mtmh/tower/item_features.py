"""Raw features of an item that is in no dataset, as inputs of the item tower: as prepare made them of the others."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from mtmh.data.ids import clean_text
from mtmh.data.parquet import read_whole
from mtmh.data.schema import (
    FLOAT_SCALES,
    ITEM_ID,
    TRAIN_AGE,
    TRAIN_COUNT,
    FeatureSchema,
    FloatScale,
    FloatScales,
    vocabulary_file,
)
from mtmh.errors import RequestError

if TYPE_CHECKING:  # which needs TorchRec
    from mtmh.data.dataset import Dataset

FEATURES = "features.json"
# Columns of a row that are no features: for display and for filters.
DISPLAY = {
    "text": pa.string(),
    "image": pa.string(),
    "topic_l1": pa.string(),
    "topic_l2": pa.string(),
    "first_seen": pa.int64(),
}

CONTENT = "content_embedding"  # the teacher's, of a row that has one

RawFeatures = Mapping[str, Any]


class IdFacts(BaseModel):
    """An id feature and the type of its values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value_type: Literal["int64", "string"]


class FeatureFacts(BaseModel):
    """The fields of a raw row and how they become inputs; the order is that of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id_type: Literal["int64", "string"]
    id_features: list[IdFacts]  # item_id not among them: no unseen item has a row of its own
    float_features: list[FloatScale]
    content_dim: int = 0  # width of the content embeddings that the tower takes in
    hidden_rows: int  # values of item_id that stand for an unseen item: row 0, or none where ids are hashed


class ItemFeatures:
    """Checks raw rows and turns them into inputs of the tower.

    Args:
        folder: that ``write_features`` wrote.

    Attributes:
        facts: what a row holds.

    Raises:
        ValueError: files are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self.facts = FeatureFacts.model_validate_json((folder / FEATURES).read_bytes())
        except FileNotFoundError:
            raise ValueError(
                f"{folder}: no tower here, so features cannot be embedded; build the index again"
            ) from None
        except ValidationError as error:
            raise ValueError(f"{folder / FEATURES}: not the features of a tower: {error.errors()[0]['msg']}") from None
        outside = [facts.name for facts in self.facts.id_features if Path(facts.name).name != facts.name]
        if outside:
            raise ValueError(f"{folder / FEATURES}: {outside[0]!r} names a file outside of the folder")

    def check(self, schema: FeatureSchema) -> None:
        """Compares the features with those that a tower was built for.

        Raises:
            ValueError: they are others, or in another order.
        """
        ids = [ITEM_ID, *(feature.name for feature in self.facts.id_features)]
        floats = [scale.name for scale in self.facts.float_features]
        found = (ids, floats, self.facts.content_dim)
        if found != ([feature.name for feature in schema.id_features], schema.float_features, schema.content_dim):
            raise ValueError(f"{self._folder / FEATURES}: not the features that the tower beside it takes in")

    @property
    def names(self) -> list[str]:
        """The features that a row must have; null stands for a missing value."""
        derived = (TRAIN_COUNT, TRAIN_AGE)
        return [feature.name for feature in self.facts.id_features] + [
            feature.name for feature in self.facts.float_features if feature.name not in derived
        ]

    @property
    def optional(self) -> list[str]:
        """The fields that a row may have."""
        return [*DISPLAY, CONTENT] if self.facts.content_dim else [*DISPLAY]

    @property
    def strings(self) -> list[str]:
        """The fields of a row that hold strings."""
        facts = [IdFacts(name=ITEM_ID, value_type=self.facts.id_type), *self.facts.id_features]
        shown = [name for name, kind in DISPLAY.items() if pa.types.is_string(kind)]
        return [feature.name for feature in facts if feature.value_type == "string"] + shown

    def table(self, rows: Sequence[RawFeatures]) -> pa.Table:
        """Checks new items and lays them out as columns: item_id, display columns, features.

        Raises:
            RequestError: a missing or unknown field, or a value of another type; the message names row and field.
        """
        for number, row in enumerate(rows):
            missing = [name for name in (ITEM_ID, *self.names) if name not in row]
            unknown = sorted(set(row) - {ITEM_ID, *self.names, *self.optional})
            if missing or unknown:
                problem = f"{', '.join(missing)} is missing (null: not known)" if missing else "unknown"
                raise RequestError(
                    f"item {row.get(ITEM_ID, f'in row {number}')!r}: {problem if missing else ', '.join(unknown)}"
                    f"{'' if missing else ' is no field of an item'}; expected {', '.join((ITEM_ID, *self.names))}"
                    f" and perhaps {', '.join(self.optional)}"
                )
        types = {ITEM_ID: arrow_type(self.facts.id_type)} | DISPLAY
        columns = {
            name: pa.array([_checked(row, name, str(kind), row.get(name)) for row in rows], kind)
            for name, kind in types.items()
        }
        for facts in self.facts.id_features:
            values = [_values(row, facts) for row in rows]
            columns[facts.name] = pa.array(values, pa.list_(arrow_type(facts.value_type)))
        for name in self.names[len(self.facts.id_features) :]:
            columns[name] = pa.array([_checked(row, name, "double", row[name]) for row in rows], pa.float64())
        if self.facts.content_dim:
            width = self.facts.content_dim
            columns[CONTENT] = pa.array([_embedding(row, width) for row in rows], pa.list_(pa.float32()))
        table = pa.table(columns)
        if table.column(ITEM_ID).null_count:
            raise RequestError(
                f"item in row {table.column(ITEM_ID).is_valid().to_pylist().index(False)}: item_id is null"
            )
        return table

    def encode(self, rows: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Inputs of the tower for N rows that ``table`` laid out.

        A column that the rows lack, as after a change of the features, counts as missing in all of them.

        Returns:
            Vocabulary rows of all id features, one feature after another; their number for each feature and item
            [num_features, N] (``item_id`` first); float features [N, num_floats].
        """
        lengths = [np.full(len(rows), self.facts.hidden_rows)]
        values = [np.zeros(len(rows) * self.facts.hidden_rows, np.int64)]
        for facts in self.facts.id_features:
            known = self._vocabularies[facts.name]
            is_given = facts.name in rows.column_names
            column = rows.column(facts.name).to_pylist() if is_given else [None] * len(rows)
            # As prepare has it: distinct rows, ascending; row 0 where no value is known.
            found = [sorted({known[value] for value in item or () if value in known}) or [0] for item in column]
            lengths.append(np.array([len(item) for item in found], np.int64))
            values.append(np.array([row for item in found for row in item], np.int64))
        dense = np.zeros((len(rows), len(self.facts.float_features)), np.float32)
        for place, scale in enumerate(self.facts.float_features):
            if scale.name in rows.column_names:
                dense[:, place] = scale.standardise(rows.column(scale.name).cast(pa.float64()).to_numpy())
        return np.concatenate(values), np.stack(lengths).astype(np.int64), dense

    def content(self, rows: pa.Table) -> npt.NDArray[np.float32]:
        """Content embeddings of N rows, [N, content_dim] of unit length, zeros where a row has none."""
        found = np.zeros((len(rows), self.facts.content_dim), np.float32)
        if self.facts.content_dim and CONTENT in rows.column_names:
            for number, values in enumerate(rows.column(CONTENT).to_pylist()):
                if values is not None:
                    found[number] = values
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.where(lengths > 0.0, lengths, 1.0)
        return found

    @cached_property
    def _vocabularies(self) -> dict[str, dict[Any, int]]:
        vocabularies = {}
        for facts in self.facts.id_features:
            table = read_whole(self._folder / f"{facts.name}.parquet", ["value", "row"])
            values, rows = (table.column(name).to_pylist() for name in ("value", "row"))
            vocabularies[facts.name] = dict(zip(values, rows, strict=True))
        return vocabularies


def write_features(folder: Path, dataset: Dataset, hidden_rows: int, content_dim: int = 0) -> None:
    """Copies what ``ItemFeatures`` needs out of a dataset.

    Args:
        folder: that is being written.
        dataset: whose features they are.
        hidden_rows: values of ``item_id`` that stand for an unseen item.
        content_dim: width of the content embeddings that the tower takes in.

    Raises:
        ValueError: the dataset was prepared before it held this; prepare it again.
    """
    schema: FeatureSchema = dataset.summary.features
    path = dataset.artifact.path
    if not (path / FLOAT_SCALES).is_file():
        raise ValueError(f"{path / FLOAT_SCALES}: missing; prepare the dataset again")
    scales = FloatScales.model_validate_json((path / FLOAT_SCALES).read_text())
    assert [scale.name for scale in scales.features] == schema.float_features
    facts = []
    assert schema.id_features[0].name == ITEM_ID
    for feature in schema.id_features[1:]:
        source = path / vocabulary_file(feature.name)
        numbers = pa.types.is_integer(pq.read_schema(source).field("value").type)
        facts.append(IdFacts(name=feature.name, value_type="int64" if numbers else "string"))
        shutil.copyfile(source, folder / f"{feature.name}.parquet")
    found = FeatureFacts(
        id_type=dataset.summary.id_type,
        id_features=facts,
        float_features=scales.features,
        content_dim=content_dim,
        hidden_rows=hidden_rows,
    )
    (folder / FEATURES).write_text(found.model_dump_json(indent=2))


def arrow_type(name: Literal["int64", "string"]) -> pa.DataType:
    """The Arrow type of ids and of values of id features."""
    return pa.int64() if name == "int64" else pa.string()


def _values(row: RawFeatures, facts: IdFacts) -> list[Any] | None:
    """The values of an id feature: one, several, or none."""
    value = row[facts.name]
    if value is None:
        return None
    several = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    return [_checked(row, facts.name, facts.value_type, element) for element in several]


def _checked(row: RawFeatures, name: str, kind: str, value: Any) -> Any:
    """The value, if it is of its column's type."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return None
    fits = {
        "string": isinstance(value, str) and _is_text(value),
        "int64": isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
        "double": isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value),
    }[kind]
    if not fits:
        expected = {"string": "a string", "int64": "a 64-bit integer", "double": "a finite number"}[kind]
        raise RequestError(f"item {row.get(ITEM_ID)!r}: {name} is {value!r}, expected {expected}")
    return clean_text(value) if kind == "string" else value


def _embedding(row: RawFeatures, width: int) -> list[float] | None:
    """The content embedding of a row, if it has one of this width."""
    values = row.get(CONTENT)
    if values is None:
        return None
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != width:
        raise RequestError(
            f"item {row.get(ITEM_ID)!r}: {CONTENT} is no list of {width} numbers, the width of the teacher's embeddings"
        )
    checked = [_checked(row, CONTENT, "double", value) for value in values]
    if any(value is None for value in checked):
        raise RequestError(f"item {row.get(ITEM_ID)!r}: {CONTENT} holds null, expected finite numbers")
    return checked


def _is_text(value: str) -> bool:
    """True if a string has a form in UTF-8; JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
