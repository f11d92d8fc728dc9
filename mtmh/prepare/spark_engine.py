"""Spark on many machines: the statements are Spark's work, files are read and written by its executors.

Executors read a user's files with DuckDB, some files a task, so that a value means the same as on one machine; and a
task of an executor writes each file of the dataset, from rows that Spark has sorted. What comes to the driver are a few
counts. The dataset's folder must be on a file system that the driver and all workers see under one path.

What is lost with a worker is made again: working tables lie in files, and every statement gives the same rows again.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from mtmh.config import DataConfig
from mtmh.places import AnyPath, size_of
from mtmh.prepare.engine import Reading, Writer
from mtmh.prepare.remote_files import make_reachable
from mtmh.prepare.statements import Dialect, Users
from mtmh.prepare.table_file import readable

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

T = TypeVar("T")

FEW_ROWS = 10_000  # the most that a query may bring to the driver
TASK_BYTES = 256 << 20  # of a user's files that one task reads
BATCH_ROWS = 1 << 16
DIALECT = Dialect(
    unnest="explode",
    floats="ARRAY<FLOAT>",
    hex_number=lambda digits: f"CAST(conv({digits}, 16, 10) AS BIGINT)",
    list_of=lambda value: f"array({value})",
    sorted_set=lambda values: f"array_sort(array_distinct(array_compact({values})))",
)
# So that Spark reads the common dialect, and numbers that do not fit are errors.
SETTINGS = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.ansi.doubleQuotedIdentifiers": "true",
    "spark.sql.parser.escapedStringLiterals": "true",
    "spark.sql.session.timeZone": "UTC",
}
_KINDS = {"bigint": "int64", "string": "string", "array<bigint>": "int64[]", "array<string>": "string[]"}


class SparkEngine:
    """The engine of a cluster.

    Args:
        spark: a session of its own.
        data: the settings of a task's memory.
        folder: where files go.
        scratch: a folder for working tables.
    """

    dialect = DIALECT

    def __init__(self, spark: SparkSession, data: DataConfig, folder: Path, scratch: Path) -> None:
        self._spark = spark
        self._memory = data.memory_limit_gb
        self._folder = folder.absolute()
        self._scratch = scratch.absolute()
        self._place: dict[str, Path] = {}

    def read(self, name: str, reading: Reading, *, copied: bool) -> None:
        """Lets executors read the files, into files that Spark reads."""
        del copied
        target = self._new_folder(name)
        groups: list[Sequence[AnyPath] | None] = [None]
        if reading.by_file is not None:
            groups = [*_groups(reading.by_file.files)]
        task = partial(_read_part, reading=reading, target=target, memory_gb=self._memory)
        self._each([*enumerate(groups)], task)
        self._take(name, target)

    def table(self, name: str, query: str) -> None:
        """Makes a working table, as Parquet files."""
        target = self._new_folder(name)
        with _errors():
            rows = self._spark.sql(query)
            rows.write.parquet(str(target))
        old = self._place.get(name)
        self._take(name, target, rows.schema)
        if old is not None:
            shutil.rmtree(old)

    def view(self, name: str, query: str) -> None:
        """Names a query."""
        with _errors():
            self._spark.sql(query).createOrReplaceTempView(name)

    def append(self, name: str, query: str) -> None:
        """Never asked for: all users are one range."""
        raise AssertionError(name, query)

    def drop(self, name: str) -> None:
        """Drops a working table."""
        self._spark.catalog.dropTempView(name)
        shutil.rmtree(self._place.pop(name))

    def kind(self, table: str, column: str) -> str:
        """The type of a column."""
        found = str(self._spark.table(table).schema[column].dataType.simpleString())
        return _KINDS.get(found, found)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The few rows that a query gives."""
        with _errors():
            found = [tuple(row) for row in self._spark.sql(query).limit(FEW_ROWS + 1).collect()]
        assert len(found) <= FEW_ROWS, f"too many rows for the driver: {query}"
        return found

    def ranges(self, query: str) -> list[Users]:
        """One of all: Spark sorts what does not fit by itself."""
        del query
        return [None]

    def write(self, writer: Writer[T], streams: Mapping[str, Iterable[str]]) -> T:
        """Sorts the rows into files, and runs the writer over them on an executor."""
        target = self._new_folder("streams")
        for name, queries in streams.items():
            (query,) = queries
            with _errors():
                self._spark.sql(query).write.parquet(str(target / name))
        task = partial(_write_files, writer=writer, streams=target, names=[*streams], folder=self._folder)
        ((_, facts),) = self._each([(0, None)], task)
        shutil.rmtree(target)
        return facts

    def _each(self, tasks: list[tuple[int, Any]], run: Callable[[tuple[int, Any]], T]) -> list[tuple[int, T]]:
        context = self._spark.sparkContext
        with _errors():
            found: list[tuple[int, T]] = (
                context.parallelize(tasks, len(tasks)).map(partial(_numbered, run=run)).collect()
            )
        return found

    def _new_folder(self, name: str) -> Path:
        return self._scratch / f"{name}-{uuid4().hex[:8]}"

    def _take(self, name: str, folder: Path, schema: StructType | None = None) -> None:
        """Names the rows of a folder; to find out their types would be one more job."""
        reader = self._spark.read if schema is None else self._spark.read.schema(schema)
        reader.parquet(str(folder)).createOrReplaceTempView(name)
        self._place[name] = folder


@contextmanager
def spark_session(data: DataConfig) -> Iterator[SparkSession]:
    """A session on the cluster that the settings name, or on that of ``spark-submit``; an application that runs stays.

    Raises:
        ValueError: pyspark is not installed, or there is no cluster.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise ValueError("data.engine: spark needs pyspark and Java: pip install 'mtmh[spark]'") from None
    running = SparkSession.getActiveSession()
    if running is None:
        builder = SparkSession.builder.appName("mtmh prepare").config("spark.ui.showConsoleProgress", "false")
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # of executors, as pyspark takes it
        if data.spark.master is not None:
            builder = builder.master(data.spark.master)
        for key, value in data.spark.options.items():
            builder = builder.config(key, value)
        try:
            started = builder.getOrCreate()
        except Exception as error:
            raise ValueError(f"data.spark: no session: {error}") from error
    try:
        session = (running or started).newSession()
        for key, value in {**data.spark.options, **SETTINGS}.items():
            if key.startswith("spark.sql."):
                session.conf.set(key, value)
        yield session
    finally:
        if running is None:
            started.stop()


def _groups(files: Sequence[AnyPath]) -> Iterator[list[AnyPath]]:
    """Files in their order, about ``TASK_BYTES`` together."""
    group: list[AnyPath] = []
    total = 0
    for file in files:
        size = size_of(file) or 0
        if group and total + size > TASK_BYTES:
            yield group
            group, total = [], 0
        group.append(file)
        total += size
    yield group


def _numbered(task: tuple[int, Any], run: Callable[[tuple[int, Any]], T]) -> tuple[int, T]:
    return task[0], run(task)


def _read_part(task: tuple[int, Sequence[AnyPath] | None], *, reading: Reading, target: Path, memory_gb: float) -> None:
    """Reads some of the files into one file of a working table; on an executor."""
    number, some = task
    target.mkdir(parents=True, exist_ok=True)
    aside = target / f".{number:05d}-{uuid4().hex}"
    settings = {"memory_limit": f"{memory_gb}GB", "threads": 1, "temp_directory": str(aside.with_suffix(".spill"))}
    connection = duckdb.connect(config=settings)
    try:
        connection.execute("SET TimeZone = 'UTC'")
        files = [file for scan in reading.scans for file in scan.files]
        make_reachable(connection, files)
        with readable(files if some is None else some):
            for scan in reading.scans:
                scan.make_view(connection, some if scan == reading.by_file else None)
            rows = connection.sql(reading.query).to_arrow_reader(BATCH_ROWS)
            with pq.ParquetWriter(aside, rows.schema, compression="snappy") as writer:
                for batch in rows:
                    writer.write_batch(batch)
    finally:
        connection.close()
        shutil.rmtree(aside.with_suffix(".spill"), ignore_errors=True)
    # Of two attempts at one part, either will do.
    aside.replace(target / f"part-{number:05d}.parquet")


def _write_files(task: tuple[int, None], *, writer: Writer[T], streams: Path, names: Sequence[str], folder: Path) -> T:
    """Runs a writer in a folder of this attempt's own, and moves what it wrote into place; on an executor."""
    del task
    aside = streams / f"attempt-{uuid4().hex}"
    aside.mkdir(parents=True)
    facts = writer({name: _sorted_rows(streams / name) for name in names}, aside)
    for file in [path for path in aside.rglob("*") if path.is_file()]:
        place = folder / file.relative_to(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    return facts


def _sorted_rows(folder: Path) -> Iterator[pa.Table]:
    """Rows that Spark has sorted: its parts are in the order of their names."""
    for part in sorted(folder.glob("part-*.parquet")):
        for batch in pq.ParquetFile(part).iter_batches(BATCH_ROWS):
            yield pa.Table.from_batches([batch])


@contextmanager
def _errors() -> Iterator[None]:
    """Says a user's mistake, found by an executor, as on one machine."""
    try:
        yield
    except Exception as error:
        found = re.search(r"^\s*(?:\w+\.)*ValueError: (.*)$", str(error), re.MULTILINE)
        if found is None:
            raise
        raise ValueError(found[1]) from error
