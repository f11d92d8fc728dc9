"""What an adapter hands to prepare, and how it reads a user's files: names, types and errors in one place.

An adapter turns files into two queries, one for the events and one for the items, in the columns of the data
contract. It drops no row by itself: a row it does not want carries a ``drop_reason``, and prepare counts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb
from pydantic import BaseModel, ValidationError

from mtmh.config import Config

OptionsT = TypeVar("OptionsT", bound=BaseModel)

INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
ID_TYPES = (*INTEGER_TYPES, "VARCHAR")
NUMBER_TYPES = (*INTEGER_TYPES, "UBIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN")
TIME_TYPES = (*INTEGER_TYPES, "UBIGINT", "FLOAT", "DOUBLE", "DECIMAL", "DATE", "TIMESTAMP")
EMBEDDING_TYPES = ("FLOAT[]", "DOUBLE[]", "DECIMAL[]")


@dataclass(frozen=True)
class SourceTables:
    """Two queries over a source's files.

    Attributes:
        events: SELECT of ``user_id``, ``item_id`` (BIGINT or VARCHAR), ``timestamp`` BIGINT and ``drop_reason``
            VARCHAR (NULL: keep).
        items: SELECT of ``item_id``, ``text``, ``image``, ``topic_l1``, ``topic_l2`` VARCHAR, ``content_embedding``
            FLOAT[], ``drop_reason`` and one column a feature; ``None``: the catalogue is what the events name.
        id_features: names of the id features that ``items`` offers; a column is single-valued or a list.
        float_features: names of the float features that ``items`` offers.
        has_clock: whether timestamps of different users can be compared.
        files: the files behind the queries, for messages.
        timestamp_is_date: whether ``timestamp`` came from dates, as seconds since 1970.
    """

    events: str
    items: str | None
    id_features: tuple[str, ...] = ()
    float_features: tuple[str, ...] = ()
    has_clock: bool = True
    files: tuple[Path, ...] = ()
    timestamp_is_date: bool = False


@dataclass(frozen=True)
class SourceContext:
    """What an adapter may use.

    Attributes:
        config: the whole recipe.
        connection: DuckDB, to look at files and to hold tables of the adapter's own.
        scratch: a folder that is gone when prepare ends.
        progress: takes a line about what goes on.
    """

    config: Config
    connection: Any
    scratch: Path
    progress: Callable[[str], None]

    def options(self, model: type[OptionsT]) -> OptionsT:
        """Checks ``data.options`` against the adapter's settings class.

        Raises:
            ValueError: an unknown option or a value that does not fit; the message names it.
        """
        try:
            return model.model_validate(self.config.data.options)
        except ValidationError as error:
            problems = "; ".join(
                f"data.options.{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else f"data.options: {e['msg']}"
                for e in error.errors()
            )
            raise ValueError(problems) from None

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
    """

    files: tuple[Path, ...]
    sql: str
    types: Mapping[str, str]

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
            raise ValueError(f"{self.name}: column {column!r} holds {found}, expected {expected}")
        return quoted(column)

    def id_column(self, column: str) -> str:
        """SQL of an id column, as BIGINT or VARCHAR; an empty string is NULL.

        Raises:
            ValueError: no such column, or neither integers nor strings.
        """
        name = self.require(column, ID_TYPES, "integers or strings")
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
            return f"floor(epoch({name}))::BIGINT"
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
        types: types of CSV columns by name; the others are inferred.

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
    names = "[" + ", ".join(literal(str(file)) for file in files) + "]"
    with readable(files):
        if formats == {"parquet"}:
            sql = f"read_parquet({names})"
        else:
            delimiter = "'\\t'" if formats == {"tsv"} else "','"
            common = f"{names}, header = true, delim = {delimiter}, quote = '\"', escape = '\"'"
            header = _describe(connection, f"read_csv({common}, all_varchar = true)")
            for column in types or {}:
                if column not in header:
                    raise ValueError(f"{files[0]}: no column {column!r}; found {', '.join(map(repr, header))}")
            typed = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in (types or {}).items())
            sql = f"read_csv({common}" + (f", types = {{{typed}}})" if typed else ")")
        return TableFile(tuple(files), sql, _describe(connection, sql))


@contextmanager
def readable(files: Sequence[Path]) -> Iterator[None]:
    """Turns DuckDB's errors while it reads a user's files into a ``ValueError`` that names them."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        # The first lines name file, line and column; what follows is advice about DuckDB's own options.
        reason = " ".join(line.strip() for line in str(error).split("Possible solutions")[0].splitlines()).strip()
        reason = re.sub(r"\s*Column \w+ is being converted as .*$", "", reason)
        named = any(str(file) in reason for file in files)
        # CSV errors name their file at the very end.
        match = re.search(r"^\s*file = (.*)$", str(error), re.MULTILINE)
        where = match.group(1).strip() if match else ", ".join(map(str, files))
        raise ValueError(reason if named else f"{where}: {reason}") from None


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


def _describe(connection: Any, sql: str) -> dict[str, str]:
    rows = connection.sql(f"DESCRIBE SELECT * FROM {sql}").fetchall()
    return {str(row[0]): str(row[1]) for row in rows}


def _format(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    known = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".txt": "csv", ".tsv": "tsv"}
    if kind not in known:
        raise ValueError(f"{file}: unknown format; expected .parquet, .csv or .tsv (also .gz, .zst)")
    return known[kind]
