"""The steps of prepare, in the order of the story: what each counts, checks and hands on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from math import floor

import numpy as np
from numpy.typing import NDArray

from mtmh.data.schema import DatasetSummary
from mtmh.prepare import statements
from mtmh.prepare.ranges import bounded_ranges
from mtmh.prepare.scratch import Workspace
from mtmh.prepare.sources import SOURCES
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.statements import Instant
from mtmh.prepare.table_file import readable
from mtmh.prepare.write_histories import HistoryFacts, write_histories
from mtmh.prepare.write_items import (
    check_embeddings,
    choose_features,
    item_facts,
    write_item_features,
    write_item_rows,
    write_item_table,
)

MAX_EVENT_KINDS = 31  # bits of an int32 that is never negative
FAULTS = ("no_user", "no_item", "no_timestamp", "unknown_item")  # reasons that nobody asked for
MANY = 0.03  # of the events
UNIQUE = 0.9  # values of an id feature for each item
NUM_TELLING = 100  # items from which on that tells something
LARGE_USER = 0.1  # of the events
RANGE_EVENTS = 2_000_000  # events of a range of users that are sorted together


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
    id_features = choose_features("id_features", data.id_features, source.id_features)
    float_features = choose_features("float_features", data.float_features, source.float_features)
    return replace(source, id_features=id_features, float_features=float_features)


def load_items(work: Workspace, source: SourceTables) -> int | None:
    """Tables ``source_items`` and ``catalogue``; returns the width of the content embeddings."""
    work.step("load items")
    with readable(source.files):
        if source.items is None:
            work.run(statements.source_items_from_events(source.events))
        else:
            work.run(statements.source_items(source.items))
    for reason, rows in work.rows(statements.drop_counts("source_items")):
        if reason is not None:
            work.dropped_items[reason] = rows
    for item_id, rows in work.rows(statements.duplicate_item()):
        raise ValueError(f"{_names(source)}: item_id {item_id!r} stands in {rows} rows; expected one")
    work.run(statements.catalogue(work.seed))
    num_items = work.number("SELECT count(*) FROM catalogue")
    work.note(f"{num_items:,} items")
    if num_items == 0:
        raise ValueError(f"{_names(source)}: no item is left{_because(work.dropped_items)}")
    return check_embeddings(work.connection)


def load_events(work: Workspace, source: SourceTables) -> None:
    """Tables ``users`` and ``events``."""
    work.step("load events")
    with readable(source.files):
        types = [work.rows(f"DESCRIBE {query}") for query in (source.events, "FROM catalogue")]
        in_events, in_items = (next(row[1] for row in rows if row[0] == "item_id") for rows in types)
        if in_events != in_items:
            raise ValueError(
                f"{_names(source)}: item_id is {in_events} in the events and {in_items} in the items; expected one type"
            )
        work.run(statements.staged(source.events, source.event_columns, has_fractions=source.has_fractions))
    for reason, rows in work.rows(statements.drop_counts("staged")):
        work.num_events_read += rows
        if reason is not None:
            work.drop_events(reason, rows)
    work.run(statements.users(work.seed))
    if source.event_columns:
        work.run(statements.event_kinds())
    work.run(statements.events(bool(source.event_columns)))
    work.run("DROP TABLE staged")
    num_events = work.number("SELECT count(*) FROM events")
    work.note(f"{num_events:,} of {work.num_events_read:,} events")
    if num_events == 0:
        raise ValueError(f"{_names(source)}: no event is left of {work.num_events_read}{_because(work.dropped_events)}")
    _warn_of_events(work, num_events)


def find_cutoff(work: Workspace, source: SourceTables) -> Instant | None:
    """The first instant of T2: as set, or the earliest timestamp with at most ``test_fraction`` of the events."""
    split = work.data.split
    if split.kind != "time":
        return None
    low, high, total = work.rows("SELECT min(timestamp), max(timestamp), count(*) FROM events")[0]
    if split.cutoff is not None:
        cutoff = _instant(split.cutoff, source)
        before, behind = work.rows(
            f"SELECT count(*) FILTER (WHERE {cutoff.before}), count(*) FILTER (WHERE {cutoff.since}) FROM events"
        )[0]
        if not (before and behind):
            raise ValueError(
                f"data.split.cutoff: {split.cutoff} leaves T1 or T2 empty; events run from {low} to {high}"
            )
        return cutoff
    # Bisection needs no memory, whatever the number of distinct timestamps.
    allowed = split.test_fraction * total
    first, last = low, high
    while first < last:
        middle = (first + last) // 2
        if work.number(statements.events_since(middle)) <= allowed:
            last = middle
        else:
            first = middle + 1
    cutoff = work.rows(statements.events_since(first))[0][1]
    if cutoff == low or work.number(statements.events_since(cutoff)) > allowed:
        raise ValueError(
            f"data.split.test_fraction: no point in time leaves at most {split.test_fraction:.0%} of the {total} "
            f"events behind it (timestamps {low} to {high}); set split.cutoff or split.kind: user"
        )
    return Instant(cutoff)


def split_events(work: Workspace, source: SourceTables, cutoff: Instant | None) -> list[tuple[int, int]]:
    """Table ``split``, and the ranges of users over which the next steps go.

    Raises:
        ValueError: more kinds of events than can be kept.
    """
    users = work.connection.sql(
        "SELECT user_code, count(*) FROM events GROUP BY user_code ORDER BY user_code"
    ).to_arrow_table()
    ranges = bounded_ranges(users.column(1).to_numpy(), RANGE_EVENTS)
    work.step("split into T1 and T2", total=len(users))
    num_events = work.number("SELECT count(*) FROM events")
    labels = bool(source.event_columns)
    if labels:
        _choose_kinds(work, source, cutoff)
    work.run(statements.empty_split(labels))
    for first, last in ranges:
        work.run(statements.split(work.data.split, cutoff, first, last, labels))
        work.advance(last)
    num_train = work.number("SELECT count(*) FROM split WHERE NOT is_test")
    num_test = work.number("SELECT count(*) FROM split WHERE is_test")
    work.note(f"{num_train:,} and {num_test:,} events")
    work.drop_events("consecutive_repeat", num_events - num_train - num_test)
    work.run("DROP TABLE events")
    return ranges


def index_items(work: Workspace, source: SourceTables) -> NDArray[np.int32]:
    """[I] item code -> item index, and the table ``rare``.

    The order is that of the codes, but for items that nothing before the cut knows: these come last, so that they
    do not move the others.
    """
    counts = work.connection.sql(statements.train_item_counts()).to_arrow_table()
    known = np.zeros(work.number("SELECT count(*) FROM catalogue"), np.bool_)
    known[counts["item_code"].to_numpy()] = True
    if source.items is not None and not source.items_from_events:
        known[:] = True
    work.run(statements.rare_items(work.data.min_item_events))
    work.drop_events(
        "rare_item",
        work.number("SELECT count(*) FROM split WHERE NOT is_test AND item_code IN (SELECT item_code FROM rare)"),
    )
    return np.where(known, np.cumsum(known), known.sum() + np.cumsum(~known)).astype(np.int32) - 1


def write_user_files(
    work: Workspace, source: SourceTables, ranges: list[tuple[int, int]], item_index: NDArray[np.int32]
) -> HistoryFacts:
    """Histories, test lists and users.

    Raises:
        ValueError: no history or no test user is left.
    """
    data = work.data
    work.step("write histories", total=ranges[-1][1])
    facts = write_histories(
        work.connection,
        work.folder,
        ranges,
        item_index,
        data.min_user_events,
        data.max_history,
        work.advance,
        _train_kinds(work) if source.event_columns else None,
    )
    for reason, rows in facts.dropped.items():
        work.drop_events(reason, rows)
    work.note(f"{facts.num_users:,} users")
    if facts.num_users == 0:
        raise ValueError(
            f"source {data.source}: no history is left with min_user_events {data.min_user_events} and "
            f"min_item_events {data.min_item_events}{_because(work.dropped_events)}"
        )
    if facts.num_test_users == 0:
        raise ValueError(
            f"source {data.source}: no user has events both before and after the cut{_because(work.dropped_events)}"
        )
    return facts


def write_item_files(
    work: Workspace,
    source: SourceTables,
    facts: HistoryFacts,
    item_index: NDArray[np.int32],
    cutoff: Instant | None,
    embedding_dim: int | None,
) -> DatasetSummary:
    """Items and the item table; returns the summary of the whole."""
    data = work.data
    work.step("write items")
    rows = item_facts(item_index, facts)
    work.connection.register("item_fact_rows", rows)
    work.run("CREATE TABLE item_facts AS SELECT * FROM item_fact_rows")
    work.connection.unregister("item_fact_rows")

    has_topics = write_item_rows(work.connection, work.folder, embedding_dim)
    write_item_features(work.connection, work.folder, source.id_features, source.float_features)
    seen = facts.train_count > 0
    # Without a common cut, ages run to the end of T1; standardising removes the difference.
    now = int(facts.first_seen[seen].max()) if cutoff is None else cutoff.timestamp
    features = write_item_table(
        work.connection,
        work.folder,
        facts,
        source.id_features,
        source.float_features,
        now=now if source.has_clock else None,
        popularity=data.popularity_features,
        min_feature_count=data.min_feature_count,
        seed=work.seed,
    )
    for feature in features.id_features[1:]:
        if int(seen.sum()) >= NUM_TELLING and feature.num_rows - 1 >= UNIQUE * int(seen.sum()):
            work.warn(
                f"id feature {feature.name}: {feature.num_rows - 1:,} values for {int(seen.sum()):,} items of the "
                "training period: nearly every item has its own, as item_id has"
            )
    train_end = test_begin = None
    if cutoff is not None:
        train_end, test_begin = cutoff.timestamp + (cutoff.fraction > 0.0), cutoff.timestamp
    elif source.has_clock:
        train_end, test_begin = work.rows(statements.period_bounds())[0]
    id_type = work.rows("SELECT typeof(item_id) FROM catalogue LIMIT 1")[0][0]
    work.end_step()
    return DatasetSummary(
        source=data.source,
        id_type="int64" if id_type == "BIGINT" else "string",
        num_items=len(item_index),
        num_fresh_items=int((~seen).sum()),
        num_users=facts.num_users,
        num_train_events=int(facts.train_count.sum()),
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
        lake_tables=dict(source.lake_tables),
        user_test_fraction=data.split.test_fraction if data.split.kind == "user" else None,
    )


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


def _choose_kinds(work: Workspace, source: SourceTables, cutoff: Instant | None) -> None:
    """Table ``kept_kinds``."""
    work.run(statements.kept_kinds(cutoff))
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
