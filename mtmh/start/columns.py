"""Facts about the columns of a table, and the names by which people call users, items and times."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtmh.prepare.sql import literal, quoted
from mtmh.prepare.table_file import INTEGER_TYPES, NOTHING, TEXT_TYPES, WIDE_TYPES, TableFile, base_type, readable


def _names(words: str) -> tuple[str, ...]:
    return tuple(words.split())


# The likeliest first; compared without case, blanks and underscores.
USERS = _names(
    "user_id user customer_id customer visitor_id member_id account_id client_id reviewer_id household_key household_id"
    " shopper_id person_id reader_id listener_id viewer_id uid session_id session"
)
ITEMS = _names(
    "item_id item product_id product sku article_id article parent_asin asin movie_id video_id track_id song_id book_id"
    " isbn stock_code content_id listing_id post_id id"
)
TIMES = _names(
    "timestamp event_time time datetime date ts t created_at event_date unix_time unix_review_time review_time"
    " invoice_date order sequence seq position day"
)
EVENTS = _names("event event_type action interaction behavior behaviour kind type")
VALUES = _names("rating stars score value watch_ratio")
TEXTS = _names("title product_name item_name name text headline description summary")
TOPICS = _names(
    "topic_l1 topic_l2 department category_l1 category_l2 main_category category category_name category_code"
    " subcategory sub_category product_group product_type genre section topic"
)
# Numbers that somebody counted up to today, T2 included.
LATE = re.compile(r"(rating|review|rank|popular|count|views|clicks|likes|sales|sold|orders|purchases|votes|trend)")

_SAMPLE = 50_000  # rows whose values are looked at
_DESCRIBING = 0.3  # of the differences that chance would make, at most
_SEVERAL = 0.1  # of the texts hold a separator, at least
_FEWER = 0.5  # of the distinct texts are left as distinct parts, at most
_WORDS = 1.5  # on average, from which on a text is more than a label


@dataclass(frozen=True)
class ColumnFacts:
    """A column, as far as a guess needs to know it.

    Attributes:
        name: in the files.
        kind: as `TableFile` has it, without its parameters.
        known: values in the sample that are there.
        distinct: of them; of a list, 0.
        words: mean number of words of a text.
    """

    name: str
    kind: str
    known: int
    distinct: int
    words: float

    @property
    def is_integer(self) -> bool:
        """True if it holds whole numbers by its type."""
        return self.kind in (*INTEGER_TYPES, "UBIGINT", "HUGEINT")

    @property
    def is_number(self) -> bool:
        """True if it holds numbers."""
        return self.kind in (*INTEGER_TYPES, *WIDE_TYPES)

    @property
    def is_text(self) -> bool:
        """True if it holds text."""
        return self.kind in TEXT_TYPES

    @property
    def is_time(self) -> bool:
        """True if it holds dates or times."""
        return self.kind in ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")

    @property
    def is_vector(self) -> bool:
        """True if it holds lists of fractions, as embeddings are."""
        return self.kind in ("FLOAT[]", "DOUBLE[]")

    @property
    def is_list(self) -> bool:
        """True if it holds several categories a row."""
        return self.kind.endswith("[]") and not self.is_vector

    @property
    def is_prose(self) -> bool:
        """True if it is a text that says more than a label."""
        return self.is_text and self.words >= _WORDS and self.distinct > 0.5 * self.known


def facts_of(connection: Any, table: TableFile, item: str | None = None) -> dict[str, ColumnFacts]:
    """The facts of all columns, by name, from the first rows.

    Args:
        connection: DuckDB.
        table: the files.
        item: of events, the column of the item: then the facts of the columns that describe items, one value each.

    Raises:
        ValueError: a file cannot be read.
    """
    columns, rows = table.columns, f"SELECT * FROM {table.sql} LIMIT {_SAMPLE}"
    if item is not None:
        columns = {name: columns[name] for name in _describing(connection, table, item)}
        values = ", ".join(f"min({quoted(name)}) AS {quoted(name)}" for name in columns)
        rows = f"SELECT {values} FROM ({rows}) WHERE {quoted(item)} IS NOT NULL GROUP BY {quoted(item)}"
    if not columns:
        return {}
    queries = []
    for name, column in columns.items():
        kind, cell = base_type(column.kind), quoted(name)
        lists, texts = kind.endswith("[]"), kind in TEXT_TYPES
        value = table.known(f"{cell}::VARCHAR") if texts else cell
        queries += [
            f"count({value})",
            "0" if lists else f"count(DISTINCT {value})",
            f"avg(len(string_split(trim({cell}::VARCHAR), ' ')))" if texts else "0",
        ]
    with readable(table.files):
        row = connection.sql(f"SELECT {', '.join(queries)} FROM ({rows})").fetchall()[0]
    facts = {}
    for place, (name, column) in enumerate(columns.items()):
        known, distinct, words = row[3 * place : 3 * place + 3]
        if column.kind != NOTHING:
            facts[name] = ColumnFacts(name, base_type(column.kind), known, distinct, words or 0.0)
    return facts


def _describing(connection: Any, table: TableFile, item: str) -> list[str]:
    """Columns of events that differ far less among the events of an item than they would by chance."""
    names = [name for name, column in table.columns.items() if column.kind != NOTHING and name != item]
    cells = [f"{quoted(name)}::VARCHAR" for name in names]
    sample = f"(SELECT * FROM {table.sql} WHERE {quoted(item)} IS NOT NULL LIMIT {_SAMPLE})"
    # Each event beside the values of another one.
    moved = f"""(SELECT item, row FROM (SELECT {quoted(item)} AS item, row_number() OVER () AS place FROM {sample})
        JOIN (SELECT s AS row, row_number() OVER (ORDER BY hash(s)) AS place FROM {sample} AS s) USING (place))"""
    pairs = [f"count(DISTINCT hash({quoted(item)}, {cell})) FILTER ({cell} IS NOT NULL)" for cell in cells]
    items = [f"count(DISTINCT {quoted(item)}) FILTER ({cell} IS NOT NULL)" for cell in cells]
    by_chance = [f"count(DISTINCT hash(item, row.{cell})) FILTER (row.{cell} IS NOT NULL)" for cell in cells]
    with readable(table.files):
        here = connection.sql(f"SELECT {', '.join(pairs + items)} FROM {sample}").fetchall()[0]
        chance = connection.sql(f"SELECT {', '.join(by_chance)} FROM {moved}").fetchall()[0]
    found, known = here[: len(names)], here[len(names) :]
    return [
        name
        for name, some, other, few in zip(names, found, chance, known, strict=True)
        if some - few < _DESCRIBING * (other - few)
    ]


def separator_of(connection: Any, table: TableFile, name: str) -> str | None:
    """What stands between several values in the texts of a column, where that leaves far fewer distinct ones."""
    with readable(table.files):
        for separator in ("|", ";", ","):
            cell, mark = table.known(f"{quoted(name)}::VARCHAR"), literal(separator)
            several, whole, parts = connection.sql(
                f"""WITH cells AS (SELECT {cell} AS cell FROM {table.sql} LIMIT {_SAMPLE}),
                    parts AS (SELECT trim(unnest(string_split(cell, {mark}))) AS part FROM cells)
                SELECT avg((contains(cell, {mark}))::INTEGER), count(DISTINCT cell),
                    (SELECT count(DISTINCT part) FROM parts) FROM cells WHERE cell IS NOT NULL"""
            ).fetchall()[0]
            if several is not None and several >= _SEVERAL and parts <= _FEWER * whole:
                return separator
    return None


def first_named(names: Iterable[str], known: Collection[str]) -> str | None:
    """The first of ``names`` by the order of ``known``.

    Example:
        >>> first_named(["When", "Customer ID"], ["user_id", "customer_id"])
        'Customer ID'
    """
    by_plain = {plain(name): name for name in reversed(list(names))}
    return next((by_plain[plain(name)] for name in known if plain(name) in by_plain), None)


def plain(name: str) -> str:
    """A name without case, blanks and signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_ENDINGS = ("parquet", "csv", "csv.gz", "csv.zst", "tsv", "tsv.gz", "tsv.zst")  # of a folder the first that it has


def files_of(path: Path, setting: str) -> tuple[Path, list[Path]]:
    """The pattern of a table in a recipe, and its files: a file, a folder of Parquet or CSV files, or a pattern.

    Raises:
        ValueError: there is no such file.
    """
    if path.is_file():
        return path, [path]
    patterns = [path / "**" / f"*.{ending}" for ending in _ENDINGS] if path.is_dir() else [path]
    for pattern in patterns:
        start = Path(pattern.anchor)
        found = sorted(file for file in start.glob(str(pattern.relative_to(start))) if file.is_file())
        if found:
            return pattern, found
    raise ValueError(f"{setting}: no file {path}; expected a Parquet or CSV file, a folder of them or a pattern")
