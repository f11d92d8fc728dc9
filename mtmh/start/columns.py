"""Facts about the columns of a table, and the names by which people call users, items and times."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtmh.prepare.sql import quoted
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
    "topic_l1 topic_l2 department category_l1 category_l2 main_category category subcategory sub_category product_group"
    " product_type genre section topic"
)
# Numbers that somebody counted up to today, T2 included.
LATE = re.compile(r"(rating|review|rank|popular|count|views|clicks|likes|sales|sold|orders|purchases|votes|trend)")

_SAMPLE = 50_000  # rows whose values are looked at
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


def facts_of(connection: Any, table: TableFile) -> dict[str, ColumnFacts]:
    """The facts of all columns, by name, from the first rows.

    Raises:
        ValueError: a file cannot be read.
    """
    queries = []
    for name, column in table.columns.items():
        kind, cell = base_type(column.kind), quoted(name)
        lists, texts = kind.endswith("[]"), kind in TEXT_TYPES
        value = table.known(f"{cell}::VARCHAR") if texts else cell
        queries += [
            f"count({value})",
            "0" if lists else f"count(DISTINCT {value})",
            f"avg(len(string_split(trim({cell}::VARCHAR), ' ')))" if texts else "0",
        ]
    with readable(table.files):
        row = connection.sql(
            f"SELECT {', '.join(queries)} FROM (SELECT * FROM {table.sql} LIMIT {_SAMPLE})"
        ).fetchall()[0]
    facts = {}
    for place, (name, column) in enumerate(table.columns.items()):
        known, distinct, words = row[3 * place : 3 * place + 3]
        if column.kind != NOTHING:
            facts[name] = ColumnFacts(name, base_type(column.kind), known, distinct, words or 0.0)
    return facts


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


def files_of(path: Path, setting: str) -> tuple[Path, list[Path]]:
    """The pattern of a table in a recipe, and its files: a file, a folder of Parquet or CSV files, or a pattern.

    Raises:
        ValueError: there is no such file.
    """
    if path.is_file():
        return path, [path]
    patterns = [path / "**" / f"*.{ending}" for ending in ("parquet", "csv", "csv.gz")] if path.is_dir() else [path]
    for pattern in patterns:
        start = Path(pattern.anchor)
        found = sorted(file for file in start.glob(str(pattern.relative_to(start))) if file.is_file())
        if found:
            return pattern, found
    raise ValueError(f"{setting}: no file {path}; expected a Parquet or CSV file, a folder of them or a pattern")
