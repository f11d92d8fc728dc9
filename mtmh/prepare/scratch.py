"""The workspace of prepare: engine, scratch folder, the counts of dropped rows, and the progress shown."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mtmh.config import DataConfig
from mtmh.prepare.duckdb_engine import DuckDbEngine
from mtmh.prepare.engine import Engine
from mtmh.prepare.spark_engine import SparkEngine, spark_session
from mtmh.prepare.table_file import DATABASE

logger = logging.getLogger(__name__)


@dataclass
class Workspace:
    """The workspace that the steps of prepare share.

    Attributes:
        data: the settings.
        seed: of every random order.
        connection: DuckDB, which looks at a user's files.
        engine: holds the working tables.
        folder: where the dataset's files go.
        scratch: a folder that is gone in the end.
        progress: one line a step.
        num_events_read: rows of the source's events.
        dropped_events: reason -> rows.
        dropped_items: reason -> rows.
    """

    data: DataConfig
    seed: int
    connection: Any
    engine: Engine
    folder: Path
    scratch: Path
    progress: Progress
    num_events_read: int = 0
    dropped_events: dict[str, int] = field(default_factory=dict)
    dropped_items: dict[str, int] = field(default_factory=dict)

    def step(self, text: str, total: int | None = None) -> None:
        """Ends the line of the step before and begins another."""
        self.end_step()
        self.progress.add_task(text, total=total, note="")

    def note(self, text: str) -> None:
        """Writes beside the line of the running step."""
        self.progress.update(self.progress.task_ids[-1], note=text)

    def advance(self, completed: int) -> None:
        """Moves the bar of the running step."""
        self.progress.update(self.progress.task_ids[-1], completed=completed)

    def end_step(self) -> None:
        """Fills the line of the running step."""
        for task in self.progress.tasks:
            if not task.finished:
                self.progress.update(task.id, total=1, completed=1)

    def tables(self, name: str, queries: Sequence[str], completed: Sequence[int] = ()) -> None:
        """Makes a working table of the rows of queries; the bar moves to each of ``completed`` in turn."""
        for place, query in enumerate(self.advancing(queries, completed)):
            (self.engine.append if place else self.engine.table)(name, query)

    def advancing(self, queries: Sequence[str], completed: Sequence[int]) -> Iterator[str]:
        """The queries; the bar moves to each of ``completed`` in turn, once a query is done."""
        for query, done in zip_longest(queries, completed):
            yield query
            if done is not None:
                self.advance(done)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The few rows that a query gives."""
        return self.engine.rows(query)

    def number(self, query: str) -> int:
        """The first number that a query gives."""
        return int(self.rows(query)[0][0])

    def warn(self, text: str) -> None:
        """Says what a user should look at before going on."""
        logger.warning("%s", text)

    def drop_events(self, reason: str, rows: int) -> None:
        """Counts dropped events."""
        if rows:
            self.dropped_events[reason] = self.dropped_events.get(reason, 0) + rows


@contextmanager
def open_workspace(data: DataConfig, seed: int, folder: Path, scratch: Path) -> Iterator[Workspace]:
    """Opens the database and shows progress on the error stream.

    Raises:
        ValueError: ``data.memory_limit_gb`` does not suffice, or there is no cluster.
    """
    with (
        _progress() as progress,
        _without_question_mark(scratch) as path,
        _database(data, path) as connection,
        _engine(data, connection, folder, scratch) as engine,
    ):
        yield Workspace(data, seed, connection, engine, folder, scratch, progress)


@contextmanager
def _engine(data: DataConfig, connection: Any, folder: Path, scratch: Path) -> Iterator[Engine]:
    if data.engine == "duckdb":
        yield DuckDbEngine(connection, folder, data.memory_limit_gb)
        return
    with spark_session(data) as session:
        yield SparkEngine(session, data, folder, scratch)


@contextmanager
def _without_question_mark(folder: Path) -> Iterator[Path]:
    """A folder for the database: the scratch folder, or one as near as can be.

    In the path of a database DuckDB takes what is behind a ``?`` for options.
    """
    if "?" not in str(folder.absolute()):
        yield folder
        return
    near = next(above for above in folder.absolute().parents if "?" not in str(above))
    with TemporaryDirectory(prefix=".mtmh-prepare-", dir=near if os.access(near, os.W_OK) else None) as elsewhere:
        yield Path(elsewhere)


@contextmanager
def _database(data: DataConfig, scratch: Path) -> Iterator[Any]:
    settings = {
        "memory_limit": f"{data.memory_limit_gb}GB",
        "threads": data.threads,
        "temp_directory": str(scratch / "spill"),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }
    connection = duckdb.connect(str(scratch / DATABASE), config=settings)
    try:
        # In a notebook without ipywidgets there is none, and it cannot be set.
        if connection.sql("SELECT current_setting('enable_progress_bar')").fetchall()[0][0]:
            connection.execute("SET enable_progress_bar = false")
        connection.execute("SET TimeZone = 'UTC'")  # of times without a zone
        yield connection
    except duckdb.OutOfMemoryException as error:
        raise ValueError(f"data.memory_limit_gb: {data.memory_limit_gb} is too little for this data: {error}") from None
    finally:
        connection.close()


@contextmanager
def _progress() -> Iterator[Progress]:
    bar = BarColumn(bar_width=24)
    text, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    with Progress(SpinnerColumn(), text, bar, TimeElapsedColumn(), note, console=Console(stderr=True)) as progress:
        yield progress
