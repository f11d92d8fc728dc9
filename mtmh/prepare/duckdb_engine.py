"""DuckDB on one machine: working tables in a file, memory bounded by spilling and by ranges of users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from mtmh.data.table_rows import numbers
from mtmh.prepare.engine import Reading, Writer
from mtmh.prepare.ranges import bounded_ranges
from mtmh.prepare.statements import Dialect, Users
from mtmh.prepare.table_file import readable

T = TypeVar("T")

RANGE_EVENTS = 1_000_000  # of a range of users that are sorted together, for each GB that DuckDB may use
BATCH_ROWS = 1 << 18
DIALECT = Dialect(
    unnest="unnest",
    floats="FLOAT[]",
    hex_number=lambda digits: f"CAST('0x' || {digits} AS BIGINT)",
    list_of=lambda value: f"[{value}]",
    sorted_set=lambda values: f"list_sort(list_distinct({values}))",
)
_KINDS = {"BIGINT": "int64", "VARCHAR": "string", "BIGINT[]": "int64[]", "VARCHAR[]": "string[]"}


class DuckDbEngine:
    """The engine of one machine.

    Args:
        connection: to the database of the working tables.
        folder: where files go.
        memory_gb: that DuckDB may use.
    """

    dialect = DIALECT

    def __init__(self, connection: Any, folder: Path, memory_gb: float) -> None:
        self._connection = connection
        self._range_events = max(1, int(RANGE_EVENTS * memory_gb))
        self._folder = folder

    def read(self, name: str, reading: Reading, *, copied: bool) -> None:
        """Makes a table, or a view."""
        kind = "TABLE" if copied else "TEMP VIEW"
        with readable([file for scan in reading.scans for file in scan.files]):
            self._connection.execute(f"CREATE {kind} {name} AS {reading.query}")

    def table(self, name: str, query: str) -> None:
        """Makes a working table."""
        self._connection.execute(f"CREATE OR REPLACE TABLE {name} AS {query}")

    def view(self, name: str, query: str) -> None:
        """Names a query."""
        self._connection.execute(f"CREATE TEMP VIEW {name} AS {query}")

    def append(self, name: str, query: str) -> None:
        """Adds rows."""
        self._connection.execute(f"INSERT INTO {name} {query}")

    def drop(self, name: str) -> None:
        """Drops a working table."""
        self._connection.execute(f"DROP TABLE {name}")

    def kind(self, table: str, column: str) -> str:
        """The type of a column."""
        types: dict[str, str] = dict(row[:2] for row in self._connection.sql(f"DESCRIBE {table}").fetchall())
        return _KINDS.get(types[column], types[column])

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The few rows that a query gives."""
        found: list[tuple[Any, ...]] = self._connection.sql(query).fetchall()
        return found

    def ranges(self, query: str) -> list[Users]:
        """Ranges that follow the memory: each is a scan of all events."""
        counts = numbers(self._connection.sql(query).to_arrow_table().column(1))
        return [*bounded_ranges(counts, self._range_events)]

    def write(self, writer: Writer[T], streams: Mapping[str, Iterable[str]]) -> T:
        """Runs the writer here."""
        return writer({name: self._tables(queries) for name, queries in streams.items()}, self._folder)

    def _tables(self, queries: Iterable[str]) -> Iterator[pa.Table]:
        for query in queries:
            for batch in self._connection.sql(query).to_arrow_reader(BATCH_ROWS):
                yield pa.Table.from_batches([batch])
