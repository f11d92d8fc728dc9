"""The interface of the engines that run prepare's statements, and of what writes their rows as files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from mtmh.prepare.statements import Dialect, Users
from mtmh.prepare.table_file import Scan

T = TypeVar("T")
Rows: TypeAlias = Iterable[pa.Table]  # some at a time, in order
# Writes files from named streams of rows into a folder, and returns a few facts. It may run on another machine: it
# consists of a function of a module and plain values.
Writer: TypeAlias = Callable[[Mapping[str, Rows], Path], T]


@dataclass(frozen=True)
class Reading:
    """A query over a user's files, in DuckDB's SQL whatever the engine: one reader of files, with one idea of a value.

    Attributes:
        query: over the names of ``scans``.
        scans: the files that it reads.
        by_file: that of ``scans`` whose rows the query takes one by one, so that each file can be read by itself;
            ``None``: there is none.
    """

    query: str
    scans: tuple[Scan, ...]
    by_file: Scan | None = None


class Engine(Protocol):
    """Runs statements over working tables that it holds.

    Attributes:
        dialect: its own words.
    """

    dialect: Dialect

    def read(self, name: str, reading: Reading, *, copied: bool) -> None:
        """Makes a working table of a user's files; unless it is ``copied``, an engine may read them at each use."""
        ...

    def table(self, name: str, query: str) -> None:
        """Makes a working table, in place of an older one of that name."""
        ...

    def view(self, name: str, query: str) -> None:
        """Names a query of which every use makes the rows anew."""
        ...

    def append(self, name: str, query: str) -> None:
        """Adds rows to a working table."""
        ...

    def drop(self, name: str) -> None:
        """Drops a working table that no later statement reads."""
        ...

    def kind(self, table: str, column: str) -> str:
        """The type of a column: int64, string, these as ``[]``, or another word."""
        ...

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The few rows that a query gives."""
        ...

    def ranges(self, query: str) -> list[Users]:
        """Ranges of users that are sorted together, from their events (`statements.events_a_user`)."""
        ...

    def write(self, writer: Writer[T], streams: Mapping[str, Iterable[str]]) -> T:
        """Runs a writer over the rows of queries: of each stream, one query after another."""
        ...


def rechunked(rows: Rows, size: int) -> Iterator[pa.Table]:
    """The same rows, ``size`` at a time, each table of one chunk."""
    pending: list[pa.Table] = []
    waiting = 0
    for table in rows:
        while table.num_rows:
            part = table.slice(0, size - waiting)
            table = table.slice(part.num_rows)
            pending.append(part)
            waiting += part.num_rows
            if waiting == size:
                yield pa.concat_tables(pending).combine_chunks()
                pending, waiting = [], 0
    if waiting:
        yield pa.concat_tables(pending).combine_chunks()
