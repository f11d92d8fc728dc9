"""Anyone's events and items, in Parquet or CSV: ``data.columns`` says what their columns are called.

``data.id_features`` and ``data.float_features`` name the columns of the items files that become features; a list column
(Parquet) is a multi-valued id feature. Without items files the catalogue is what the events name, and columns of the
events describe it: each with the item's first value that is known, so that later events change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import pyarrow.parquet as pq

from mtmh.config import DataConfig, Settings
from mtmh.data.lake import open_lake, read_columns
from mtmh.data.schema import ITEM_ID
from mtmh.places import AnyPath, LakeTable, RemotePath, find_files
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.sql import literals, quoted, reasons
from mtmh.prepare.table_file import IdExpression, TableFile, partition_of, table_file


class TablesOptions(Settings):
    """``data.options`` of the source ``tables``.

    Attributes:
        keep_events: kinds of events (column ``columns.event``) that are engagements; others count as ``other_event``.
        min_value: events whose ``columns.value`` is lower or missing count as ``low_value``.
    """

    keep_events: list[str] | None = None
    min_value: float | None = None


def own_tables(context: SourceContext) -> SourceTables:
    """Reads the files of ``data.events`` and ``data.items``; patterns with ``*`` are expanded.

    Raises:
        ValueError: no file, a broken one, a missing column or one of the wrong type, or a topic used as model input.
    """
    data, columns = context.data, context.data.columns
    options = context.options(TablesOptions)
    if not data.events:
        raise ValueError("data.events: empty; expected the event files of source tables")
    id_features = tuple(name for name in data.id_features or [] if name != ITEM_ID)
    float_features = tuple(data.float_features or [])
    times_and_ids = [columns.user_id, columns.item_id, columns.timestamp, columns.value]
    typed = [columns.item_id, *id_features, *float_features, columns.content_embedding]
    others = [*columns.text, columns.image, columns.topic_l1, columns.topic_l2]
    described = any(typed[1:]) or any(others)
    if data.items:
        events = _open(context, "events", times_and_ids, [columns.event])
        items = _open(context, "items", typed, others)
    else:
        events = _open(context, "events", [*times_and_ids, *typed], [columns.event, *others])
        items = None
    in_events = events.id_column(columns.item_id)
    in_items = in_events if items is None else items.id_column(columns.item_id)
    of_event = _event_columns(events, context, options, _id_like(in_events, in_items))
    of_item = _item_columns(items or events, context, id_features, float_features)
    items_query: str | None = None
    if items is not None:
        items_query = _items_query(items, _id_like(in_items, in_events), of_item)
    elif described:
        items_query = _first_known(events, of_event, of_item)
    return SourceTables(
        events=f"SELECT {of_event} FROM {events.sql}",
        items=items_query,
        items_from_events=items is None,
        id_features=id_features,
        float_features=float_features,
        tables=(events, items) if items else (events,),
        events_by_file=events,
        items_by_file=items,
        timestamp_is_date=events.is_date(columns.timestamp),
        event_columns=tuple(name for name in ("event", "value") if getattr(columns, name) is not None),
        has_fractions=events.has_fractions(columns.timestamp),
        lake_tables={
            name: file.title for name, file in (("events", events), ("items", items)) if file is not None and file.title
        },
    )


def _open(
    context: SourceContext, table: Literal["events", "items"], typed: Iterable[str | None], others: Iterable[str | None]
) -> TableFile:
    """The files of a table.

    Args:
        context: with the settings.
        table: of the two.
        typed: columns whose types matter.
        others: further ones that are read.
    """
    data = context.data
    places = data.events if table == "events" else data.items
    known = [name for name in typed if name is not None]
    lake = [place for place in places if isinstance(place, LakeTable)]
    if lake:
        if len(places) > 1 or (data.partitions and table == "events"):
            raise ValueError(f"data.{table}: {lake[0]} is a whole table; expected it alone, without data.partitions")
        return _from_lake(context, lake[0], table, dict.fromkeys([*known, *filter(None, others)]))
    files = _expand(data.input, [place for place in places if not isinstance(place, LakeTable)], f"data.{table}")
    if table == "events":
        files = _in_range(files, data)
    return table_file(
        context.connection,
        files,
        typed=known,
        partitions=data.partitions if table == "events" else (),
        missing_words=data.missing_words,
    )


def _from_lake(context: SourceContext, lake: LakeTable, table: str, columns: Iterable[str]) -> TableFile:
    """The columns of a lake's table as a file, at the version that there is now: it may be another by the next look."""
    context.note(f"reading {lake}")
    found = open_lake(lake)
    path = context.scratch / f"{table}.parquet"
    batches = read_columns(found, list(columns))
    try:
        first = next(batches)
    except StopIteration:
        raise ValueError(f"{found.table}: no rows") from None
    with pq.ParquetWriter(path, first.schema, compression="lz4") as writer:
        for batch in (first, *batches):
            writer.write_batch(batch)
    file = table_file(context.connection, [path], missing_words=context.data.missing_words)
    return replace(file, title=str(found.table))


def _id_like(own: IdExpression, other: IdExpression) -> str:
    """SQL of an id. Ids that only look like integers follow the other table, which holds text."""
    differ = own.is_string != other.is_string
    return own.as_text if differ and not (own.is_declared and other.is_declared) else own.sql


def _event_columns(events: TableFile, context: SourceContext, options: TablesOptions, item_id: str) -> str:
    columns = context.data.columns
    rules = []
    if options.keep_events is not None:
        if columns.event is None:
            raise ValueError("data.options.keep_events needs data.columns.event, the column with the kind of event")
        kinds = literals(options.keep_events)
        rules.append((f"coalesce({events.text_column(columns.event)} NOT IN ({kinds}), true)", "other_event"))
    if options.min_value is not None:
        if columns.value is None:
            raise ValueError("data.options.min_value needs data.columns.value, the column with the value")
        value = events.number_column(columns.value)
        rules.append((f"coalesce({value} < {options.min_value}, true)", "low_value"))
    labels = ""
    if columns.event is not None:
        labels += f"{events.text_column(columns.event)} AS event, "
    if columns.value is not None:
        labels += f"({events.number_column(columns.value)})::FLOAT AS value, "
    return f"""{events.id_column(columns.user_id).sql} AS user_id, {item_id} AS item_id,
            {events.time_columns(columns.timestamp)}, {labels}{reasons(*rules)} AS drop_reason"""


def _item_columns(
    items: TableFile, context: SourceContext, id_features: Iterable[str], float_features: Iterable[str]
) -> dict[str, str]:
    """SQL of what describes an item, by name."""
    columns = context.data.columns
    labels = {columns.topic_l1, columns.topic_l2} - {None}
    for name in (*id_features, *float_features, *columns.text):
        if name in labels:
            raise ValueError(
                f"{items.name}: column {name!r} is a topic, a label for evaluation; it cannot be a feature or text too"
            )

    def text(column: str | None) -> str:
        return "NULL::VARCHAR" if column is None else items.text_column(column)

    embedding = "NULL::FLOAT[]"
    if columns.content_embedding is not None:
        embedding = items.vector_column(columns.content_embedding)
    titles = ", ".join(items.text_column(column) for column in columns.text)
    return {
        "text": f"nullif(concat_ws(' ', {titles}), '')" if titles else "NULL::VARCHAR",
        "image": text(columns.image),
        "topic_l1": text(columns.topic_l1),
        "topic_l2": text(columns.topic_l2),
        "content_embedding": embedding,
        **{name: items.category_column(name, columns.separators.get(name)) for name in id_features},
        **{name: items.number_column(name) for name in float_features},
    }


def _items_query(items: TableFile, item_id: str, of_item: Mapping[str, str]) -> str:
    selected = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in of_item.items())
    return f"SELECT {item_id} AS item_id, {selected}, NULL::VARCHAR AS drop_reason FROM {items.sql}"


def _first_known(events: TableFile, of_event: str, of_item: Mapping[str, str]) -> str:
    """Items as their events describe them; of values of one instant the smallest, whatever the order of the rows."""
    cells = {f"cell_{place}": (name, sql) for place, (name, sql) in enumerate(of_item.items())}
    first = ", ".join(
        f"arg_min({cell}, (timestamp, fraction, {cell})) AS {quoted(name)}" for cell, (name, _) in cells.items()
    )
    return f"""
        SELECT item_id, {first}, NULL::VARCHAR AS drop_reason
        FROM (SELECT {of_event}, {", ".join(f"{sql} AS {cell}" for cell, (_, sql) in cells.items())} FROM {events.sql})
        WHERE drop_reason IS NULL AND user_id IS NOT NULL AND item_id IS NOT NULL AND timestamp IS NOT NULL
        GROUP BY item_id"""


def _expand(folder: AnyPath | None, patterns: Sequence[AnyPath], setting: str) -> list[AnyPath]:
    """Files of the patterns."""
    files: list[AnyPath] = []
    for pattern in patterns:
        place = pattern if folder is None or isinstance(pattern, RemotePath) else folder / str(pattern)
        try:
            found = find_files(folder, pattern)
        except OSError as error:
            raise ValueError(f"{setting}: {place} cannot be reached: {error}") from None
        if not found:
            raise ValueError(f"{setting}: no file {place}")
        files += found
    return files


def _in_range(files: list[AnyPath], data: DataConfig) -> list[AnyPath]:
    """Files whose folders are in ``data.partition_range``; integers are compared as such where both ends are some."""
    for name, (first, last) in data.partition_range.items():
        numbers = all(re.fullmatch(r"-?\d+", str(end)) for end in (first, last))
        kept = []
        for file in files:
            value = partition_of(file, name)
            if value is None:
                continue
            if numbers and not re.fullmatch(r"-?\d+", value):
                raise ValueError(
                    f"{file}: {name}={value} is no integer, as the ends of data.partition_range.{name} are"
                )
            if int(first) <= int(value) <= int(last) if numbers else str(first) <= value <= str(last):
                kept.append(file)
        if not kept:
            raise ValueError(f"data.partition_range.{name}: no file of {len(files)} lies between {first} and {last}")
        files = kept
    return files
