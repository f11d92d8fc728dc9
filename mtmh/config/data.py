"""Settings of the way from raw logs to pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mtmh.config.base import Decides, Fraction, Positive, Settings
from mtmh.places import PathOrUrl, TablePlace

_HELD_BACK = 2000  # events that tell enough to choose by


class SplitConfig(Settings):
    """The cut of events into the training period T1 and the test period T2.

    ``time``: one global cut, at ``cutoff`` (same unit as the events' timestamp) or, without it, where
    ``test_fraction`` of the events lie behind. ``user``: the last ``test_fraction`` of each user's events, or its last
    ``test_events``.
    """

    kind: Literal["time", "user"] = "time"
    test_fraction: Fraction = 0.2
    test_events: Positive | None = None
    cutoff: float | str | None = None

    @model_validator(mode="after")
    def _cut_is_of_this_kind(self) -> Self:
        if self.cutoff is not None and self.kind != "time":
            raise ValueError("split.cutoff is a point in time: it needs split.kind = time")
        if self.test_events is not None and self.kind != "user":
            raise ValueError("split.test_events counts events of each user: it needs split.kind = user")
        return self


class ValidationConfig(Settings):
    """The end of T1 that is held back to choose by; nothing of T2 is read.

    ``fraction``: of T1's events where the dataset is cut at one instant; of the events of each of ``num_users`` users
    where it is cut by user. ``auto``: a tenth; of less than 20,000 events before one instant, up to three tenths.
    Figures come from at most ``num_users`` users.
    """

    fraction: Annotated[float, Field(gt=0.0, le=0.5)] | Literal["auto"] = "auto"
    num_users: Positive = 2000

    def share(self, num_events: int | None = None) -> float:
        """``fraction`` as a number: of the events of each user, or of so many before one instant."""
        if self.fraction != "auto":
            return self.fraction
        return 0.1 if num_events is None else min(0.3, max(0.1, _HELD_BACK / max(1, num_events)))


class TableColumns(Settings):
    """Names of the columns in the user's own tables (source ``tables``); ``None``: the column is absent."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    event: str | None = None  # kind of event
    value: str | None = None  # rating, share watched, ...
    text: list[str] = []  # what the content encoder reads
    image: str | None = None  # name of the item's picture
    topic_l1: str | None = None  # coarse label of the evaluation
    topic_l2: str | None = None  # fine label of the evaluation
    content_embedding: str | None = None  # list of floats, for content.kind: column
    separators: dict[str, str] = {}  # id feature -> what stands between its values in one text: {tags: "|"}


class SparkConfig(Settings):
    """The cluster of ``data.engine: spark``. Its workers need mtmh, and the dataset's folder under the same path."""

    master: str | None = None  # spark://HOST:7077, yarn, k8s://..., local[4]; null: that of spark-submit
    options: dict[str, str] = {}  # settings of Spark: {spark.executor.memory: 8g}


class DataConfig(Settings):
    """From raw logs to a dataset artifact."""

    source: Literal["synthetic", "movielens", "complete-journey", "online-retail", "amazon", "tables"]
    input: PathOrUrl | None = None  # folder of the files: a path, or s3://, gs://, abfs://, hdfs://
    # source ``tables``: event files (Parquet or CSV), relative to ``input``, or delta:TABLE, iceberg:TABLE
    events: list[TablePlace] = []
    items: list[TablePlace] = []  # source ``tables``: item files; without any the columns of the events describe items
    columns: TableColumns = TableColumns()
    partitions: list[str] = []  # columns of the events that stand in names of folders: day=2024-01-31/
    # First and last value of a partition that are read, {day: [2024-01-01, 2024-01-31]}; other folders are not opened.
    partition_range: dict[str, tuple[str | int, str | int]] = {}
    # Where ids, categories, numbers and times are read, these stand for no value.
    missing_words: list[str] = [
        "NULL",
        "Null",
        "null",
        "None",
        "NaN",
        "nan",
        "NaT",
        "<NA>",
        "N/A",
        "n/a",
        "#N/A",
        "\\N",
    ]
    options: dict[str, Any] = {}  # checked by the source's own settings class
    split: SplitConfig = SplitConfig()
    min_user_events: Positive = 2  # in T1; users with fewer have no history
    min_item_events: Positive = 1  # in T1; rarer items are left out of histories
    max_history: Positive = 1000  # a user's last events kept for training
    id_features: list[str] | None = None  # None: all that the source offers
    float_features: list[str] | None = None  # null: all that the source offers
    min_feature_count: Positive = 1  # rarer values of an id feature share row 0 (unknown)
    popularity_features: bool = True  # adds log training count and item age at the cut, both from T1 only
    # Where training reads features: a table of the catalogue that each host maps, or also beside each event, in the
    # order in which events are read, and likewise the content embeddings (docs/scaling.md).
    item_features: Literal["mapped", "ride_along"] = "mapped"
    # One machine, or a cluster where it does not suffice; the dataset is the same.
    engine: Annotated[Literal["duckdb", "spark"], Decides()] = "duckdb"
    spark: Annotated[SparkConfig, Decides()] = SparkConfig()
    memory_limit_gb: Annotated[float, Field(gt=0.0), Decides()] = 2.0  # of DuckDB; with spark, in each task too
    threads: Annotated[Positive, Decides()] = 2  # of DuckDB

    @model_validator(mode="after")
    def _ranges_of_partitions(self) -> Self:
        for name in self.partition_range:
            if name not in self.partitions:
                raise ValueError(f"partition_range.{name}: no partition; expected one of data.partitions")
        return self


class SimWeightConfig(Settings):
    """More weight for positives that are semantically close (the search-based interest model of the paper, 3.1).

    ``feature``: the two items share a value of the id feature ``feature``. ``content``: their teacher cosine is
    at least ``threshold``. Such pairs weigh ``boost``, all others 1. Topics are evaluation labels, never used here.
    """

    kind: Literal["none", "feature", "content"] = "none"
    feature: str | None = None
    threshold: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.5
    boost: Annotated[float, Field(ge=1.0)] = 2.0

    @model_validator(mode="after")
    def _feature_named(self) -> Self:
        if (self.kind == "feature") != (self.feature is not None):
            raise ValueError(
                "pairs.sim.feature names the shared id feature: give it with kind = feature, and only then"
            )
        return self


class PairsConfig(Settings):
    """Positives from histories: item T of a user's history is paired with each of the ``window`` items before it.

    ``forward``: the earlier item is the trigger, the later one the candidate. ``both``: each pair in both directions.
    """

    window: Positive = 20
    direction: Literal["forward", "both"] = "forward"
    sim: SimWeightConfig = SimWeightConfig()
