"""The contract of the dataset artifact: which files it holds and what describes them.

    items.parquet             one row an item of the catalogue, in item-index order (the row number is the item index):
                              item_id (int64 or string), text, image, topic_l1, topic_l2 (string, null: none),
                              train_count int64 (events in T1), first_seen int64 (first of them, in the events' unit;
                              null: none), content_embedding fixed-size list<float32> (if any)
    item_features.parquet     the features as the source has them, in item-index order, for filters (if there are any):
                              id features list<int64 or string> (distinct, ascending; null: none), float features
                              double (null: none)
    item_table/               the model's inputs of every item, memory-mapped by the loader:
      float_features.npy        [I, num_floats] float32, standardised with T1 statistics, missing = 0
      <feature>.values.npy      [N] rows of the feature's vocabulary, items one after another; 0 = unknown
      <feature>.offsets.npy     [I + 1] int64; item i owns values[offsets[i]:offsets[i + 1]]
      item_id.raw.npy           [I] int64 raw ids (raw_ids.py), for tables that take such instead of rows
      float_features.json       mean and standard deviation of each float feature over the items of T1
      train_count.npy           [I] int64
    ride_along/               if asked for: the model's inputs of each event's item, in the order of histories.parquet:
      items.npy                 [H] item indices
      ...                       as in item_table, by event; a feature of one value an item has no offsets
      known_items.npy           [K] items with T1 events, ascending
    vocabulary/               which row stands for which value:
      <feature>.parquet         value (int64 or string, as in the source), row, ascending from 1
    histories.parquet         T1: one row a user, in a seeded random order: user_index int64,
                              items list of item indices, oldest first, timestamps list<int64>; if the source has
                              kinds or values of events also events list<int32> (bit mask over event_kinds of the
                              summary) and values list<float32> (NaN: none)
    histories.lengths.npy     [num_users] int32: the length of each row of histories.parquet, in file order
    test.parquet              T2, users with a T1 history only: user_index int64, items list (distinct,
                              in order of first engagement), timestamps list<int64>, events and values as above
    users.parquet             user_index int64, user_id (int64 or string)

Item indices and rows are int32, or int64 where there are more than 2^31 items or rows.

The id feature ``item_id`` is always there: one vocabulary row an item with T1 events, row 0 for all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

ITEM_ID = "item_id"

ITEMS = Path("items.parquet")
ITEM_FEATURES = Path("item_features.parquet")
ITEM_TABLE = Path("item_table")
RAW_IDS = ITEM_TABLE / f"{ITEM_ID}.raw.npy"
FLOAT_FEATURES = "float_features.npy"
TRAIN_COUNTS = "train_count.npy"
RIDE_ALONG = Path("ride_along")
KNOWN_ITEMS = RIDE_ALONG / "known_items.npy"
EVENT_ITEMS = RIDE_ALONG / "items.npy"
HISTORIES = Path("histories.parquet")
HISTORY_LENGTHS = Path("histories.lengths.npy")
TEST = Path("test.parquet")
USERS = Path("users.parquet")
VOCABULARY = Path("vocabulary")
FLOAT_SCALES = ITEM_TABLE / "float_features.json"
# Float features that prepare derives from T1 events; an item without such events has the mean of both.
TRAIN_COUNT = "log_train_count"
TRAIN_AGE = "train_age"

FARTHEST = 100.0  # deviations from the mean: an input beyond would drown all others
_ROUNDING = 1e-12  # of the largest value
_LARGE = 1e150


def vocabulary_file(feature: str) -> Path:
    """Values and rows of one id feature."""
    return VOCABULARY / f"{feature}.parquet"


class IdFeature(BaseModel):
    """An id feature of the item tower, single- or multi-valued.

    Attributes:
        name: its key in the batch and the name of its table.
        num_rows: rows of its vocabulary, row 0 (unknown) included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    num_rows: Annotated[int, Field(ge=1)]


class FloatScale(BaseModel):
    """The transformation of a float feature into an input of the tower.

    Attributes:
        name: of the feature.
        mean: over the items of T1 that have a value.
        deviation: standard deviation likewise; 0: the feature tells nothing, its input is always 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    mean: float
    deviation: Annotated[float, Field(ge=0.0)]

    @classmethod
    def measured(cls, name: str, values: npt.NDArray[np.float64]) -> Self:
        """The scale of some items' finite values, whatever their size; that of equal ones has no deviation."""
        known = values[np.isfinite(values)]
        if len(known) == 0:
            return cls(name=name, mean=0.0, deviation=0.0)
        largest = float(np.abs(known).max())
        # Squares of such numbers would leave the range of floats.
        unit = largest if largest > _LARGE else 1.0
        mean, deviation = float((known / unit).mean()), float((known / unit).std())
        # What rounding leaves of equal numbers is no deviation.
        equal = float(known.max() / unit - known.min() / unit) <= _ROUNDING * largest / unit
        return cls(name=name, mean=mean * unit, deviation=0.0 if equal else deviation * unit)

    def standardise(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """``(x - mean) / deviation``, at most `FARTHEST` from 0; what is missing or not finite becomes 0, the mean.

        The one way from a raw value to an input, in prepare and in requests.
        """
        finite = np.isfinite(values)
        if self.deviation == 0.0:
            return np.zeros(values.shape, np.float32)
        with np.errstate(over="ignore"):
            scaled = (np.where(finite, values, self.mean) - self.mean) / self.deviation
        return np.clip(scaled, -FARTHEST, FARTHEST).astype(np.float32)


class FloatScales(BaseModel):
    """The scales of all float features, in the order of the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: list[FloatScale]


class FeatureSchema(BaseModel):
    """Inputs of the item tower; recorded in the dataset's and in every checkpoint's manifest summary."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id_features: list[IdFeature]
    float_features: list[str]
    content_dim: int = 0  # width of the content embeddings among the inputs of a model; 0: none


class DatasetSummary(BaseModel):
    """The ``summary`` of a dataset manifest."""

    model_config = ConfigDict(extra="forbid")

    source: str
    id_type: Literal["int64", "string"]  # of item_id
    num_items: int
    num_fresh_items: int  # items without a T1 event
    num_users: int  # with a T1 history
    num_train_events: int
    num_test_users: int
    num_test_events: int
    num_events_read: int
    dropped_events: dict[str, int]  # reason -> rows
    dropped_items: dict[str, int]
    cutoff: float | None  # time split: first instant of T2
    features: FeatureSchema
    has_topics: bool
    content_embedding_dim: int | None  # width of the items' content_embedding column
    event_kinds: list[str] = []  # of T1; their places are the bits of ``events``
    has_values: bool = False  # whether the source has values of events
    train_end: int | None = None  # first instant after all events of T1; None: no clock
    test_begin: int | None = None  # first instant of T2; None: no clock
    user_test_fraction: float | None = None  # split by user: share of each user's events in T2
    topic_separator: str | None = None  # between the coarse topics in topic_l2, where items may have several
    timestamp_is_date: bool = False  # timestamps came from dates, as seconds since 1970
    rides_along: bool = False  # features joined to the rows of the histories
    lake_tables: dict[str, str] = {}  # events and items from a lake: the table at the version that was read
