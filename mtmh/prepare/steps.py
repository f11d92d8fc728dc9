"""The steps of prepare, in the order of the story: what each counts, checks and hands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import floor
from typing import Any

import pyarrow as pa

from mtmh.data.schema import ITEM_ID, TRAIN_AGE, TRAIN_COUNT, DatasetSummary, FeatureSchema, IdFeature
from mtmh.prepare import statements, write_histories, write_items
from mtmh.prepare.engine import Reading
from mtmh.prepare.ride_along import write_ride_along
from mtmh.prepare.scratch import Workspace
from mtmh.prepare.sources import SOURCES
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.statements import Columns, Instant, Users
from mtmh.prepare.table_file import readable

MAX_EVENT_KINDS = 31  # bits of an int32 that is never negative
FAULTS = ("no_user", "no_item", "no_timestamp", "unknown_item")  # reasons that nobody asked for
MANY = 0.03  # of the events
UNIQUE = 0.9  # values of an id feature for each item
NUM_TELLING = 100  # items from which on that tells something
LARGE_USER = 0.1  # of the events
STEPS_OF_TIME = 1024  # into which the time is divided to find the cut
ARROW_TYPES = {"int64": pa.int64(), "string": pa.string()}


@dataclass(frozen=True)
class Split:
    """Facts of the table ``split``.

    Attributes:
        users: the ranges of users, one after another, in which it was made.
        columns: of its events.
        num_train: events of T1.
        num_test: events of T2.
    """

    users: Sequence[Users]
    columns: Columns
    num_train: int
    num_test: int


@dataclass(frozen=True)
class HistoryFacts:
    """Facts of the written histories.

    Attributes:
        num_users: rows of histories.parquet.
        num_events: of the histories.
        num_test_users: rows of test.parquet.
        num_test_events: items in test.parquet.
        event_kinds: names of the bits of ``events``.
    """

    num_users: int
    num_events: int
    num_test_users: int
    num_test_events: int
    event_kinds: list[str]


def open_source(work: Workspace) -> SourceTables:
    """The adapter's two queries, with the features that the dataset will hold.

    Raises:
        ValueError: the source does not fit the settings.
    """
    data = work.data
    work.step(f"open source {data.source}")
    source = SOURCES[data.source](SourceContext(data, work.seed, work.connection, work.scratch, work.note))
    if data.split.kind == "time" and not source.has_clock:
        raise ValueError(
            f"data.split.kind: source {data.source} knows only the order within a user, no clock; expected kind: user"
        )
    # A feature that does not exist should stop the run before the long part of it.
    id_features = write_items.choose_features("id_features", data.id_features, source.id_features)
    float_features = write_items.choose_features("float_features", data.float_features, source.float_features)
    return replace(source, id_features=id_features, float_features=float_features)


def load_items(work: Workspace, source: SourceTables) -> int | None:
    """Tables ``source_events``, ``source_items`` and ``catalogue``; returns the width of the content embeddings."""
    work.step("load items")
    _check_ids(work, source)
    _read(work, source)
    num_items = 0
    for reason, rows in work.rows(statements.drop_counts("source_items")):
        if reason is None:
            num_items = rows
        else:
            work.dropped_items[reason] = rows
    for item_id, rows in work.rows(statements.duplicate_item()):
        raise ValueError(f"{_names(source)}: item_id {item_id!r} stands in {rows} rows; expected one")
    work.engine.table("catalogue", statements.catalogue(work.seed, num_items))
    work.note(f"{num_items:,} items")
    if num_items == 0:
        raise ValueError(f"{_names(source)}: no item is left{_because(work.dropped_items)}")
    return _embedding_width(work)


def load_events(work: Workspace, source: SourceTables) -> Columns:
    """Tables ``users`` and ``events``; returns the columns of these."""
    work.step("load events")
    columns = _columns(source)
    with readable(source.files):
        work.engine.table("staged", statements.staged(columns))
    num_events = 0
    for reason, rows in work.rows(statements.drop_counts("staged")):
        work.num_events_read += rows
        if reason is None:
            num_events = rows
        else:
            work.drop_events(reason, rows)
    work.note(f"{num_events:,} of {work.num_events_read:,} events")
    if num_events == 0:
        raise ValueError(f"{_names(source)}: no event is left of {work.num_events_read}{_because(work.dropped_events)}")
    if columns.fractions:
        columns = columns._replace(fractions=bool(work.rows(statements.has_fractions())[0][0]))
    work.engine.table("users", statements.users(work.seed, num_events))
    if columns.labels:
        work.engine.table("event_kinds", statements.event_kinds())
    work.engine.table("events", statements.events(columns))
    work.engine.drop("staged")
    _warn_of_events(work, num_events)
    return columns


def find_cutoff(work: Workspace, source: SourceTables, columns: Columns) -> Instant | None:
    """The first instant of T2: as set, or the earliest timestamp with at most ``test_fraction`` of the events."""
    split = work.data.split
    if split.kind != "time":
        return None
    low, high, total = work.rows("SELECT min(timestamp), max(timestamp), count(*) FROM events")[0]
    if split.cutoff is not None:
        cutoff = _instant(split.cutoff, source)
        before, behind = work.rows(statements.around(columns, cutoff))[0]
        if not (before and behind):
            raise ValueError(
                f"data.split.cutoff: {split.cutoff} leaves T1 or T2 empty; events run from {low} to {high}"
            )
        return cutoff
    allowed = split.test_fraction * total
    since = _first_with(work, low, high, allowed)
    ((behind, found),) = work.rows(f"SELECT count(*), min(timestamp) FROM events WHERE timestamp >= {since}")
    if behind == 0 or found == low:
        raise ValueError(
            f"data.split.test_fraction: no point in time leaves at most {split.test_fraction:.0%} of the {total} "
            f"events behind it (timestamps {low} to {high}); set split.cutoff or split.kind: user"
        )
    return Instant(found)


def _first_with(work: Workspace, low: int, high: int, allowed: float) -> int:
    """The first instant from which on there are at most ``allowed`` events; needs no memory for distinct times."""
    first, stop, behind = low, high + 1, 0
    while True:
        width = max(1, -(-(stop - first) // STEPS_OF_TIME))
        too_many = first
        for step, num_events in work.rows(statements.steps_of_time(first, stop, width)):
            if behind + num_events > allowed:
                too_many = int(step)
                break
            behind += num_events
        if width == 1:
            return too_many + 1
        first, stop = too_many, min(too_many + width, stop)


def split_events(work: Workspace, source: SourceTables, columns: Columns, cutoff: Instant | None) -> Split:
    """Table ``split``, in ranges of users that the next steps go over, too.

    Raises:
        ValueError: more kinds of events than can be kept.
    """
    users = work.engine.ranges(statements.events_a_user())
    completed = [last for _, last in filter(None, users)]
    work.step("split into T1 and T2", completed[-1] if completed else None)
    num_events = work.number("SELECT count(*) FROM events")
    if columns.labels:
        _choose_kinds(work, source, columns, cutoff)
    queries = [statements.split(columns, work.data.split, cutoff, some) for some in users]
    work.tables("split", queries, completed)
    num_train, num_test = work.rows(statements.split_counts())[0]
    work.note(f"{num_train:,} and {num_test:,} events")
    work.drop_events("consecutive_repeat", num_events - num_train - num_test)
    work.engine.drop("events")
    return Split(users, columns, num_train, num_test)


def write_user_files(work: Workspace, source: SourceTables, split: Split) -> HistoryFacts:
    """Tables ``history_users`` and ``history``; histories, test lists and users.

    Raises:
        ValueError: no history or no test user is left.
    """
    data, engine, columns = work.data, work.engine, split.columns
    completed = [last for _, last in filter(None, split.users)]
    work.step("write histories", completed[-1] if completed else None)
    num_items = work.number("SELECT count(*) FROM catalogue")
    rare, num_rare = data.min_item_events > 1, 0
    if rare:
        engine.table("rare", statements.rare_items(data.min_item_events))
        num_rare = work.number(statements.rare_events())
        work.drop_events("rare_item", num_rare)
    # Items that nothing before the cut knows come last, so that they do not move the others.
    ordered = _is_ordered(source)
    if ordered:
        engine.table("item_order", statements.item_order(num_items))
    engine.table("history_users", statements.history_users(data.min_user_events, split.num_train, rare=rare))
    in_history, beyond, with_history = map(int, work.rows(statements.history_counts(data.max_history))[0])
    work.drop_events("short_history", split.num_train - num_rare - in_history)
    work.drop_events("beyond_max_history", beyond)
    if beyond:
        queries = [statements.long_history(columns, data.max_history, some, rare=rare) for some in split.users]
        work.tables("long_history", queries)
    engine.view("history", statements.history(columns, data.max_history, rare=rare, beyond=beyond > 0))

    kinds = _train_kinds(work) if columns.labels else None
    form: dict[str, Any] = {
        "num_items": num_items,
        "bits": None if kinds is None else sorted(kinds),
        "row_group_events": write_histories.ROW_GROUP_EVENTS,
    }
    rows = [statements.history_rows(columns, some, ordered=ordered) for some in split.users]
    advancing = work.advancing(rows, completed)
    num_users, num_events = engine.write(partial(write_histories.write_histories, **form), {"rows": advancing})
    rows = [statements.test_rows(columns, some, ordered=ordered) for some in split.users]
    num_test_users, num_test_events = engine.write(partial(write_histories.write_test, **form), {"rows": rows})
    id_type = ARROW_TYPES[engine.kind("users", "user_id")]
    user_rows = [statements.user_rows(some) for some in split.users]
    engine.write(partial(write_histories.write_users, id_type=id_type), {"rows": user_rows})

    work.drop_events("test_without_history", split.num_test - with_history)
    work.drop_events("repeated_in_test", with_history - num_test_events)
    work.note(f"{num_users:,} users")
    if num_users == 0:
        raise ValueError(
            f"source {data.source}: no history is left with min_user_events {data.min_user_events} and "
            f"min_item_events {data.min_item_events}{_because(work.dropped_events)}"
        )
    if num_test_users == 0:
        raise ValueError(
            f"source {data.source}: no user has events both before and after the cut{_because(work.dropped_events)}"
        )
    names = [] if kinds is None else [kinds[bit] for bit in sorted(kinds)]
    return HistoryFacts(num_users, num_events, num_test_users, num_test_events, names)


def write_item_files(
    work: Workspace, source: SourceTables, facts: HistoryFacts, cutoff: Instant | None, embedding_dim: int | None
) -> DatasetSummary:
    """Table ``item_facts``; items and the item table; returns the summary of the whole."""
    data, engine = work.data, work.engine
    work.step("write items")
    engine.table("item_facts", statements.item_facts(ordered=_is_ordered(source)))
    id_kind = engine.kind("item_facts", "item_id")
    write_rows = partial(write_items.write_item_rows, id_type=ARROW_TYPES[id_kind], embedding_dim=embedding_dim)
    has_topics = engine.write(write_rows, {"rows": [statements.items()]})
    if source.id_features or source.float_features:
        _write_raw_features(work, source)
    num_items = work.number("SELECT count(*) FROM item_facts")
    features, num_seen = _write_features(work, source, cutoff, num_items)
    if data.item_features == "ride_along":
        ride = partial(write_ride_along, dataset=work.folder.absolute(), schema=features, num_items=num_items)
        engine.write(ride, {})
    for feature in features.id_features[1:]:
        if num_seen >= NUM_TELLING and feature.num_rows - 1 >= UNIQUE * num_seen:
            work.warn(
                f"id feature {feature.name}: {feature.num_rows - 1:,} values for {num_seen:,} items of the "
                "training period: nearly every item has its own, as item_id has"
            )
    train_end = test_begin = None
    if cutoff is not None:
        train_end, test_begin = cutoff.timestamp + (cutoff.fraction > 0.0), cutoff.timestamp
    elif source.has_clock:
        train_end, test_begin = work.rows(statements.period_bounds())[0]
    work.end_step()
    return DatasetSummary(
        source=data.source,
        id_type="int64" if id_kind == "int64" else "string",
        num_items=num_items,
        num_fresh_items=num_items - num_seen,
        num_users=facts.num_users,
        num_train_events=facts.num_events,
        num_test_users=facts.num_test_users,
        num_test_events=facts.num_test_events,
        num_events_read=work.num_events_read,
        dropped_events=work.dropped_events,
        dropped_items=work.dropped_items,
        cutoff=None if cutoff is None else cutoff.timestamp + cutoff.fraction,
        features=features,
        has_topics=has_topics,
        topic_separator=source.topic_separator,
        content_embedding_dim=embedding_dim,
        event_kinds=facts.event_kinds,
        has_values="value" in source.event_columns,
        train_end=train_end,
        test_begin=test_begin,
        timestamp_is_date=source.timestamp_is_date,
        rides_along=data.item_features == "ride_along",
        lake_tables=dict(source.lake_tables),
        user_test_fraction=data.split.test_fraction if data.split.kind == "user" else None,
    )


def _write_raw_features(work: Workspace, source: SourceTables) -> None:
    kinds = {name: work.engine.kind("source_items", name) for name in source.id_features}
    id_types = {name: ARROW_TYPES[kind.removesuffix("[]")] for name, kind in kinds.items()}
    lists = {name: kind.endswith("[]") for name, kind in kinds.items()}
    work.engine.write(
        partial(write_items.write_item_features, id_types=id_types, float_features=source.float_features),
        {"rows": [statements.item_features(work.engine.dialect, lists, source.float_features)]},
    )


def _write_features(
    work: Workspace, source: SourceTables, cutoff: Instant | None, num_items: int
) -> tuple[FeatureSchema, int]:
    """Folders ``item_table`` and ``vocabulary``; returns the features and the number of items with a T1 event."""
    data, engine, dialect = work.data, work.engine, work.engine.dialect
    id_kind = engine.kind("item_facts", "item_id")
    counts = [statements.item_counts()]
    num_seen = engine.write(
        partial(write_items.write_item_ids, id_type=ARROW_TYPES[id_kind]),
        {
            "counts": counts,
            "values": [statements.item_vocabulary()],
            "raw_ids": [statements.raw_ids(dialect, id_kind == "string")],
        },
    )
    ids = [IdFeature(name=ITEM_ID, num_rows=num_seen + 1)]
    for name in source.id_features:
        kind = engine.kind("source_items", name)
        is_list = kind.endswith("[]")
        engine.table("vocabulary", statements.vocabulary(dialect, name, is_list, data.min_feature_count, work.seed))
        num_rows = 1 + work.number("SELECT count(*) FROM vocabulary")
        write = partial(
            write_items.write_id_feature,
            name=name,
            value_type=ARROW_TYPES[kind.removesuffix("[]")],
            num_items=num_items,
            num_rows=num_rows,
        )
        rows = [statements.feature_rows(dialect, name, is_list)]
        engine.write(write, {"rows": rows, "values": [statements.rows_of_vocabulary()]})
        ids.append(IdFeature(name=name, num_rows=num_rows))

    now, popularity = None, []
    if data.popularity_features:
        popularity = [TRAIN_COUNT, *([TRAIN_AGE] if source.has_clock else [])]
        # Without a common cut, ages run to the end of T1; standardising removes the difference.
        now = work.number("SELECT max(first_seen) FROM item_facts") if cutoff is None else cutoff.timestamp
    engine.write(
        partial(write_items.write_float_features, names=source.float_features, popularity=popularity, now=now),
        {"counts": counts, **{f"feature_{name}": [statements.float_feature(name)] for name in source.float_features}},
    )
    return FeatureSchema(id_features=ids, float_features=[*source.float_features, *popularity]), num_seen


def _check_ids(work: Workspace, source: SourceTables) -> None:
    """Refuses ids of two types."""
    if source.items is None:
        return
    with readable(source.files):
        types = [
            dict(row[:2] for row in work.connection.sql(f"DESCRIBE {query}").fetchall())
            for query in (source.events, source.items)
        ]
    in_events, in_items = (columns[ITEM_ID] for columns in types)
    if in_events != in_items:
        raise ValueError(
            f"{_names(source)}: item_id is {in_events} in the events and {in_items} in the items; expected one type"
        )


def _columns(source: SourceTables) -> Columns:
    return Columns(source.has_fractions, labels=bool(source.event_columns))


def _read(work: Workspace, source: SourceTables) -> None:
    """Tables ``source_events`` and ``source_items``."""
    scans = tuple(table.scan for table in source.tables)
    events = statements.read_events(source.events, source.event_columns, _columns(source))
    by_file = source.events_by_file
    work.engine.read("source_events", Reading(events, scans, by_file.scan if by_file else None), copied=False)
    if source.items is None:
        with readable(source.files):
            work.engine.table("source_items", statements.source_items_from_events(work.engine.dialect))
        return
    items = statements.read_items(source.items, source.float_features)
    by_file = source.items_by_file
    work.engine.read("source_items", Reading(items, scans, by_file.scan if by_file else None), copied=True)


def _is_ordered(source: SourceTables) -> bool:
    """Whether there may be items that only the test period knows."""
    return source.items is None or source.items_from_events


def _embedding_width(work: Workspace) -> int | None:
    """The one width of all content embeddings; ``None``: there are none.

    Raises:
        ValueError: widths differ, or an embedding holds something that is no finite number; names an item.
    """
    widths = work.rows(statements.embedding_widths())
    if not widths:
        return None
    if len(widths) > 1:
        (width, _, num_items), (other, item_id, _) = widths
        raise ValueError(
            f"content_embedding: item {item_id!r} has {other} numbers, but {num_items} items have {width}: "
            "expected one width"
        )
    ((broken,),) = work.rows(statements.broken_embedding())
    if broken is not None:
        raise ValueError(f"content_embedding: item {broken!r} holds NaN, infinity or a missing number")
    return int(widths[0][0]) or None


def _warn_of_events(work: Workspace, num_events: int) -> None:
    """Says what is rarely meant: many events that cannot be used, or a user who is none."""
    for reason in FAULTS:
        rows = work.dropped_events.get(reason, 0)
        if rows > MANY * work.num_events_read:
            work.warn(f"{rows:,} of {work.num_events_read:,} events are left out: {reason.replace('_', ' ')}")
    ((user, rows, users),) = work.rows(statements.largest_user())
    if rows > LARGE_USER * num_events and rows * users > 10 * num_events:
        work.warn(
            f"user {user!r} has {rows:,} of {num_events:,} events: a word for nobody, a robot, a shared account? "
            "data.missing_words names words that stand for no user"
        )


def _choose_kinds(work: Workspace, source: SourceTables, columns: Columns, cutoff: Instant | None) -> None:
    """Table ``kept_kinds``."""
    work.engine.table("kept_kinds", statements.kept_kinds(columns, cutoff))
    num_kinds = work.number("SELECT count(*) FROM kept_kinds")
    if num_kinds > MAX_EVENT_KINDS:
        where = "" if cutoff is None else " before the cut"
        raise ValueError(
            f"{_names(source)}: {num_kinds} kinds of events{where}, at most {MAX_EVENT_KINDS} can be kept; choose some "
            "(source tables: data.options.keep_events) or leave the column out (data.columns.event)"
        )


def _train_kinds(work: Workspace) -> dict[int, str]:
    """Bit and name of the kinds of events that T1 has."""
    mask = work.number(statements.train_kinds())
    kinds = work.rows("SELECT bit, event FROM kept_kinds ORDER BY bit")
    return {bit: name for bit, name in kinds if mask >> bit & 1}


def _instant(cutoff: float | str, source: SourceTables) -> Instant:
    """``split.cutoff`` as a point in time of the events."""
    if not isinstance(cutoff, str):
        return Instant(floor(cutoff), cutoff - floor(cutoff))
    if not source.timestamp_is_date:
        raise ValueError(
            f"data.split.cutoff: {cutoff!r} is a string, but the timestamps are numbers; expected a number"
        )
    try:
        when = datetime.fromisoformat(cutoff)
    except ValueError:
        raise ValueError(
            f"data.split.cutoff: {cutoff!r} is no date; expected for example 2011-11-01 or 2011-11-01T08:30:00"
        ) from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return Instant(floor(when.replace(microsecond=0).timestamp()), when.microsecond / 10**6)


def _names(source: SourceTables) -> str:
    return ", ".join(map(str, source.files)) or "source"


def _because(dropped: dict[str, int]) -> str:
    return "; dropped: " + ", ".join(f"{reason} {rows}" for reason, rows in dropped.items()) if dropped else ""
