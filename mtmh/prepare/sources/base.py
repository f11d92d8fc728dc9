"""What an adapter hands to prepare, and how it reads a user's files: names, types and errors in one place.

An adapter turns files into two queries, one for the events and one for the items, in the columns of the data
contract. It drops no row by itself: a row it does not want carries a ``drop_reason``, and prepare counts it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from mtmh.config import Config
from mtmh.config.messages import describe_problems

OptionsT = TypeVar("OptionsT", bound=BaseModel)

INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
ID_TYPES = (*INTEGER_TYPES, "VARCHAR")
NUMBER_TYPES = (*INTEGER_TYPES, "UBIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN")
TIME_TYPES = (*INTEGER_TYPES, "UBIGINT", "FLOAT", "DOUBLE", "DECIMAL", "DATE", "TIMESTAMP")
HEAD_BYTES = 1 << 20
EMBEDDING_TYPES = ("FLOAT[]", "DOUBLE[]", "DECIMAL[]")


@dataclass(frozen=True)
class SourceTables:
    """Two queries over a source's files.

    Attributes:
        events: SELECT of ``user_id``, ``item_id`` (BIGINT or VARCHAR), ``timestamp`` BIGINT and ``drop_reason``
            VARCHAR (NULL: keep), and the columns named in ``event_columns``.
        items: SELECT of ``item_id``, ``text``, ``image``, ``topic_l1``, ``topic_l2`` VARCHAR, ``content_embedding``
            FLOAT[], ``drop_reason`` and one column a feature; ``None``: the catalogue is what the events name.
        id_features: names of the id features that ``items`` offers; a column is single-valued or a list.
        float_features: names of the float features that ``items`` offers.
        items_from_events: whether ``items`` is drawn from the events, so that later events can add items.
        has_clock: whether timestamps of different users can be compared.
        files: the files behind the queries, for messages.
        timestamp_is_date: whether ``timestamp`` came from dates, as seconds since 1970.
        event_columns: which of ``event`` VARCHAR (its kind) and ``value`` FLOAT the ``events`` offer; NULL: none.
    """

    events: str
    items: str | None
    id_features: tuple[str, ...] = ()
    float_features: tuple[str, ...] = ()
    items_from_events: bool = False
    has_clock: bool = True
    files: tuple[Path, ...] = ()
    timestamp_is_date: bool = False
    event_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceContext:
    """What an adapter may use.

    Attributes:
        config: the whole recipe.
        connection: DuckDB, to look at files and to hold tables of the adapter's own.
        scratch: a folder that is gone when prepare ends.
        note: takes a line about what goes on.
    """

    config: Config
    connection: Any
    scratch: Path
    note: Callable[[str], None]

    def options(self, model: type[OptionsT]) -> OptionsT:
        """Checks ``data.options`` against the adapter's settings class.

        Raises:
            ValueError: an unknown option or a value that does not fit; the message names it.
        """
        try:
            return model.model_validate(self.config.data.options)
        except ValidationError as error:
            raise ValueError(describe_problems(error, model, "data.options")) from None

    def file(self, *names: str) -> Path:
        """The first of ``names`` that lies in ``data.input``.

        Raises:
            ValueError: ``data.input`` is not set or no folder, or holds none of them.
        """
        folder = self.config.data.input
        if folder is None:
            raise ValueError(f"data.input: not set; expected the folder with {names[0]}")
        if not folder.is_dir():
            raise ValueError(f"data.input: {folder} is no folder; expected the folder with {names[0]}")
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise ValueError(f"{folder}: no file {' or '.join(names)} here")


@dataclass(frozen=True)
class TableFile:
    """Files of one format that are read as one table.

    Attributes:
        files: the files.
        sql: what stands behind FROM.
        types: column name -> DuckDB type.
        is_csv: whether the types were inferred.
        odd_values: column name -> a value that is neither a number nor a date, for messages.
    """

    files: tuple[Path, ...]
    sql: str
    types: Mapping[str, str]
    is_csv: bool = False
    odd_values: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The files in a message."""
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more"

    def require(self, column: str, allowed: Sequence[str], expected: str) -> str:
        """The quoted name of a column that must be there in one of the ``allowed`` types.

        Raises:
            ValueError: no such column, or another type; the message names file, column and what was expected.
        """
        if column not in self.types:
            raise ValueError(f"{self.name}: no column {column!r}; found {', '.join(map(repr, self.types))}")
        found = self.types[column]
        if base_type(found) not in allowed:
            odd = f" (for example {self.odd_values[column]!r})" if column in self.odd_values else ""
            raise ValueError(f"{self.name}: column {column!r} holds {found}{odd}, expected {expected}")
        return quoted(column)

    def id_column(self, column: str) -> str:
        """SQL of an id column, as BIGINT or VARCHAR; an empty string is NULL.

        Raises:
            ValueError: no such column, or neither integers nor strings.
        """
        name = self.require(column, ID_TYPES, "64-bit integers or strings")
        return f"nullif(trim({name}), '')" if self.types[column] == "VARCHAR" else f"{name}::BIGINT"

    def text_column(self, column: str) -> str:
        """SQL of a column taken as text; an empty string is NULL.

        Raises:
            ValueError: no such column.
        """
        if column not in self.types:
            self.require(column, (), "text")
        return f"nullif(trim({quoted(column)}::VARCHAR), '')"

    def number_column(self, column: str) -> str:
        """SQL of a numeric column, as DOUBLE; NaN and infinities are NULL.

        Raises:
            ValueError: no such column, or no numbers.
        """
        name = f"{self.require(column, NUMBER_TYPES, 'numbers')}::DOUBLE"
        return f"CASE WHEN isfinite({name}) THEN {name} END"

    def time_column(self, column: str) -> str:
        """SQL of a point in time, as BIGINT: numbers as they are (rounded down), dates as seconds since 1970.

        Raises:
            ValueError: no such column, or neither numbers nor dates.
        """
        name = self.require(column, TIME_TYPES, "numbers or dates")
        if self.is_date(column):
            # DuckDB's epoch() takes no nanoseconds with a time zone.
            zoned = "::TIMESTAMP WITH TIME ZONE" if self.types[column] == "TIMESTAMPTZ_NS" else ""
            return f"floor(epoch({name}{zoned}))::BIGINT"
        if base_type(self.types[column]) in ("FLOAT", "DOUBLE", "DECIMAL"):
            return f"CASE WHEN isfinite({name}::DOUBLE) THEN floor({name})::BIGINT END"
        return f"{name}::BIGINT"

    def is_date(self, column: str) -> bool:
        """Whether the column holds dates rather than numbers."""
        return base_type(self.types[column]) in ("DATE", "TIMESTAMP")


def table_file(connection: Any, files: Sequence[Path], *, types: Mapping[str, str] | None = None) -> TableFile:
    """Looks at Parquet or CSV files (``.csv``, ``.tsv``, also ``.gz`` and ``.zst``), which are read as one table.

    Args:
        connection: DuckDB.
        files: at least one file, all of one format and with the same columns.
        types: types of CSV columns by name, the others are strings; ``None``: one scan finds the narrowest type that
            fits all values. ``007`` is a string, since it would not survive as a number.

    Raises:
        ValueError: a file is missing, empty, broken, of an unknown format, or lacks one of the typed columns.
    """
    formats = {_format(file) for file in files}
    if len(formats) != 1:
        raise ValueError(f"{', '.join(map(str, files))}: expected files of one format, found {sorted(formats)}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
        if file.stat().st_size == 0:
            raise ValueError(f"{file}: empty file")
    with readable(files):
        if formats == {"parquet"}:
            names = ", ".join(literal(str(file)) for file in files)
            sql = f"read_parquet([{names}])"
            described = connection.sql(f"DESCRIBE SELECT * FROM {sql}").fetchall()
            return TableFile(tuple(files), sql, {str(row[0]): str(row[1]) for row in described})
        delimiter = "\t" if formats == {"tsv"} else ","
        header, mixed_newlines = _csv_header(files[0], delimiter)
        for file in files[1:]:
            if _csv_header(file, delimiter)[0] != header:
                raise ValueError(f"{file}: expected the same columns as in {files[0]}: {', '.join(header)}")
        for column in types or {}:
            if column not in header:
                raise ValueError(f"{files[0]}: no column {column!r}; found {', '.join(map(repr, header))}")
        strings = dict.fromkeys(header, "VARCHAR")
        if types is not None:
            known = {**strings, **types}
            return TableFile(tuple(files), _read_csv(files, delimiter, known, mixed_newlines), known)
        sql = _read_csv(files, delimiter, strings, mixed_newlines)
        inferred, odd = _infer_types(connection, sql, header)
        return TableFile(
            tuple(files), _read_csv(files, delimiter, inferred, mixed_newlines), inferred, is_csv=True, odd_values=odd
        )


@contextmanager
def readable(files: Sequence[Path]) -> Iterator[None]:
    """Turns DuckDB's errors while it reads a user's files into a ``ValueError`` that names them."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        # The first lines name line and column; what follows is advice about DuckDB's own options.
        reason = " ".join(re.split("Possible (?i:fix|solution)", str(error))[0].split())
        reason = re.sub(r"^[A-Z][\w ]* Error: |\s*Column \w+ is being converted as .*$", "", reason)
        named = [file for file in files if str(file) in str(error)]
        where = named[0] if len(named) == 1 else _first_broken(files)
        raise ValueError(f"{where}: cannot be read: {reason}") from None


def _first_broken(files: Sequence[Path]) -> str:
    """The file to blame, where the error names none."""
    for file in files:
        if len(files) > 1 and _format(file) == "parquet":
            try:
                for _ in pq.ParquetFile(file).iter_batches():
                    pass
            except (OSError, pa.ArrowException):
                return str(file)
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def base_type(kind: str) -> str:
    """``DECIMAL(18,3)`` -> ``DECIMAL``, ``TIMESTAMP WITH TIME ZONE`` -> ``TIMESTAMP``, ``FLOAT[8]`` -> ``FLOAT[]``."""
    kind = re.sub(r"\[\d*\]$", "[]", re.sub(r"\(.*?\)", "", kind))
    return "TIMESTAMP" if kind.startswith("TIMESTAMP") else kind


def quoted(name: str) -> str:
    """A column name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def reasons(*cases: tuple[str, str]) -> str:
    """SQL of ``drop_reason``: the name of the first (condition, name) that holds, else NULL."""
    if not cases:
        return "NULL::VARCHAR"
    return "CASE " + " ".join(f"WHEN {condition} THEN {literal(name)}" for condition, name in cases) + " END"


def _csv_header(file: Path, delimiter: str) -> tuple[list[str], bool]:
    """Column names, and whether the first line ends in another way than the next ones (MovieLens ships such files).

    DuckDB's own detection is not used: with one odd line in its sample it may take another line for the header.
    """
    try:
        with pa.input_stream(str(file)) as stream:
            head = stream.read(HEAD_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    first, _, rest = head.partition("\n")
    names = next(csv.reader([first.rstrip("\r")], delimiter=delimiter), [])
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"{file}: expected distinct column names in the first line, found {first.strip()!r}")
    second = rest.partition("\n")[0]
    return names, bool(rest) and first.endswith("\r") != second.endswith("\r")


def _read_csv(files: Sequence[Path], delimiter: str, types: Mapping[str, str], mixed_newlines: bool) -> str:
    names = ", ".join(literal(str(file)) for file in files)
    columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in types.items())
    # Strict mode refuses lines with too many fields, but also line ends that change.
    strict = "false" if mixed_newlines else "true"
    return (
        f"read_csv([{names}], auto_detect = false, header = true, delim = {literal(delimiter)}, quote = '\"', "
        f"escape = '\"', strict_mode = {strict}, columns = {{{columns}}})"
    )


def _infer_types(connection: Any, sql: str, header: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The narrowest of BIGINT, DOUBLE, TIMESTAMP, VARCHAR that holds all values, and for VARCHAR one that needs it."""
    queries = []
    for name in header:
        column = quoted(name)
        odd = f"try_cast({column} AS DOUBLE) IS NULL AND try_cast({column} AS TIMESTAMP) IS NULL"
        queries += [
            f"count({column})",
            f"count(*) FILTER (WHERE try_cast({column} AS BIGINT)::VARCHAR = {column})",
            f"count(try_cast({column} AS DOUBLE))",
            f"count(try_cast({column} AS TIMESTAMP))",
            f"min({column}) FILTER (WHERE {odd})",
        ]
    facts = connection.sql(f"SELECT {', '.join(queries)} FROM {sql}").fetchall()[0]
    types, odd_values = {}, {}
    for i, name in enumerate(header):
        known, *fitting, example = facts[5 * i : 5 * i + 5]
        kinds = [kind for kind, fits in zip(("BIGINT", "DOUBLE", "TIMESTAMP"), fitting, strict=True) if fits == known]
        types[name] = kinds[0] if kinds and known else "VARCHAR"
        if example is not None:
            odd_values[name] = example
    return types, odd_values


def _format(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    known = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".txt": "csv", ".tsv": "tsv"}
    if kind not in known:
        raise ValueError(f"{file}: unknown format; expected .parquet, .csv or .tsv (also .gz, .zst)")
    return known[kind]
