"""Anyone's events and items, in Parquet or CSV: ``data.columns`` says what their columns are called.

``data.id_features`` and ``data.float_features`` name the columns of the items files that become features; a list column
(Parquet) is a multi-valued id feature. Without items files the catalogue is what the events name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mtmh.config import Settings
from mtmh.data.schema import ITEM_ID
from mtmh.prepare.sources.base import (
    EMBEDDING_TYPES,
    ID_TYPES,
    INTEGER_TYPES,
    NUMBER_TYPES,
    SourceContext,
    SourceTables,
    TableFile,
    literal,
    quoted,
    reasons,
    table_file,
)

LIST_TYPES = tuple(f"{kind}[]" for kind in ID_TYPES)


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
    data, columns = context.config.data, context.config.data.columns
    options = context.options(TablesOptions)
    if not data.events:
        raise ValueError("data.events: empty; expected the event files of source tables")
    events = table_file(context.connection, _expand(data.input, data.events, "data.events"))
    items = None
    if data.items:
        items = table_file(context.connection, _expand(data.input, data.items, "data.items"))
    id_features = tuple(name for name in data.id_features or [] if name != ITEM_ID)
    float_features = tuple(data.float_features or [])
    if items is None and (id_features or float_features):
        raise ValueError("data.items: empty, but data.id_features or data.float_features name columns of items files")
    item_id = events.id_column(columns.item_id)
    catalogue_id = item_id if items is None else items.id_column(columns.item_id)
    if items is not None and (events.is_csv or items.is_csv) and _is_string(item_id) != _is_string(catalogue_id):
        # CSV knows no types: an id column that happens to hold digits only follows the other file.
        item_id, catalogue_id = f"({item_id})::VARCHAR", f"({catalogue_id})::VARCHAR"
    return SourceTables(
        events=_events_query(events, context, options, item_id),
        items=None if items is None else _items_query(items, context, catalogue_id, id_features, float_features),
        id_features=id_features,
        float_features=float_features,
        files=events.files + (items.files if items else ()),
        timestamp_is_date=events.is_date(columns.timestamp),
        event_columns=tuple(name for name in ("event", "value") if getattr(columns, name) is not None),
    )


def _is_string(id_column: str) -> bool:
    return not id_column.endswith("::BIGINT")


def _events_query(events: TableFile, context: SourceContext, options: TablesOptions, item_id: str) -> str:
    columns = context.config.data.columns
    rules = []
    if options.keep_events is not None:
        if columns.event is None:
            raise ValueError("data.options.keep_events needs data.columns.event, the column with the kind of event")
        kinds = ", ".join(literal(kind) for kind in options.keep_events)
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
    return f"""
        SELECT {events.id_column(columns.user_id)} AS user_id, {item_id} AS item_id,
            {events.time_column(columns.timestamp)} AS timestamp, {labels}{reasons(*rules)} AS drop_reason
        FROM {events.sql}"""


def _items_query(
    items: TableFile,
    context: SourceContext,
    item_id: str,
    id_features: Iterable[str],
    float_features: Iterable[str],
) -> str:
    columns = context.config.data.columns
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
        name = items.require(columns.content_embedding, EMBEDDING_TYPES, "lists of numbers")
        embedding = f"{name}::FLOAT[]"
    titles = ", ".join(items.text_column(column) for column in columns.text)
    selected = [
        f"{item_id} AS item_id",
        (f"nullif(concat_ws(' ', {titles}), '')" if titles else "NULL::VARCHAR") + " AS text",
        f"{text(columns.image)} AS image",
        f"{text(columns.topic_l1)} AS topic_l1",
        f"{text(columns.topic_l2)} AS topic_l2",
        f"{embedding} AS content_embedding",
        *(f"{_id_feature(items, name)} AS {quoted(name)}" for name in id_features),
        *(f"{_float_feature(items, name)} AS {quoted(name)}" for name in float_features),
        "NULL::VARCHAR AS drop_reason",
    ]
    return f"SELECT {', '.join(selected)} FROM {items.sql}"


def _id_feature(items: TableFile, name: str) -> str:
    column = items.require(name, (*ID_TYPES, *LIST_TYPES, "BOOLEAN"), "integers, strings, or lists of these")
    kind = items.types[name]
    if kind.endswith("[]"):
        return f"{column}::BIGINT[]" if kind.removesuffix("[]") in INTEGER_TYPES else column
    return items.text_column(name) if kind in ("VARCHAR", "BOOLEAN") else f"{column}::BIGINT"


def _float_feature(items: TableFile, name: str) -> str:
    items.require(name, NUMBER_TYPES, "numbers")
    return items.number_column(name)


def _expand(folder: Path | None, patterns: list[Path], setting: str) -> list[Path]:
    """Files of the patterns, those of one pattern in the order of their names."""
    files: list[Path] = []
    for pattern in patterns:
        path = pattern if folder is None else folder / pattern
        root = Path(path.anchor)
        found = [path] if path.is_file() else sorted(root.glob(str(path.relative_to(root))))
        if not found:
            raise ValueError(f"{setting}: no file {path}")
        files += found
    return files
