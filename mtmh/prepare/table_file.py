"""Reads a user's tables: which columns there are, of which types, and the SQL that takes a value as it is.

A value is kept, or becomes NULL (which prepare counts), or its column is refused; it is never altered. So CSV is read
as text and takes the narrowest type that holds every value unchanged; files of one table may differ in type only where
one type holds all their values; and names of folders are no columns unless they are asked for.
"""

from __future__ import annotations

import csv
import glob
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from mtmh.data.ids import sql_clean_text
from mtmh.places import AnyPath, RemotePath, size_of
from mtmh.prepare.remote_files import make_reachable
from mtmh.prepare.sql import floor_divided, literal, literals, quoted, remainder

INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
TEXT_TYPES = ("VARCHAR", "UUID")
# Ids of these types are integers where all values are whole, which is looked up.
WIDE_TYPES = ("UBIGINT", "HUGEINT", "UHUGEINT", "DECIMAL", "FLOAT", "DOUBLE")
ID_TYPES = (*INTEGER_TYPES, *WIDE_TYPES, *TEXT_TYPES)
NUMBER_TYPES = (*INTEGER_TYPES, *WIDE_TYPES, "BOOLEAN")
TIME_TYPES = (*INTEGER_TYPES, "UBIGINT", "FLOAT", "DOUBLE", "DECIMAL", "DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")
EMBEDDING_TYPES = ("FLOAT[]", "DOUBLE[]", "DECIMAL[]", "JSON[]")
NOTHING = '"NULL"'  # the type of a column without a value
ZONED = "TIMESTAMP WITH TIME ZONE"
# Kinds of text that no type holds as it is.
MIXED_ZONES = "times with and without a zone"
BROKEN_LISTS = "lists that are not all JSON arrays"
NUMBERS = ("integer", "float", "decimal")  # families

DATABASE = "prepare.duckdb"  # in which the working tables are; it is not to be taken for a user's file
HEAD_BYTES = 1 << 20
FILE_NAME = "mtmh file name"  # column with the name of the file that a row is from
EXACT_BELOW = {"DOUBLE": 1 << 53, "FLOAT": 1 << 24}  # all integers below these
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_NUMBERS = itertools.count(1)
_ZONE = r":\d{2}(\.\d+)?\s*([zZ]|[+-]\d{2}(:?\d{2})?|[A-Za-z]+(/\w+)*)$"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        kind: DuckDB's name of the type; of text without a declared type: the narrowest that holds all values, with
            ``JSON[]`` for JSON arrays.
        is_text: whether the files hold text (CSV, folder names) and ``kind`` was inferred.
        odd: of such a column: a value that no narrower type holds, for messages.
        found_in: declared type -> the first file that has it.
    """

    kind: str
    is_text: bool = False
    odd: str | None = None
    found_in: Mapping[str, AnyPath] = field(default_factory=dict)


@dataclass(frozen=True)
class IdExpression:
    """An id as SQL.

    Attributes:
        sql: BIGINT or VARCHAR; NULL: none.
        is_string: which of the two.
        is_declared: whether the files say so; otherwise the values do, and it may follow another file's type.
    """

    sql: str
    is_string: bool
    is_declared: bool

    @property
    def as_text(self) -> str:
        """The id as VARCHAR."""
        return self.sql if self.is_string else f"({self.sql})::VARCHAR"


@dataclass(frozen=True)
class Read:
    """Files of one schema.

    Attributes:
        sql: SELECT with ``{files}`` in the place of their names.
        files: the files.
        names: of the columns.
    """

    sql: str
    files: tuple[AnyPath, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """A table's files as a view of DuckDB: of all of them, or of some as they are read among all.

    Attributes:
        name: of the view.
        reads: one a schema.
        kinds: types that hold the values of all files, by column, where schemas differ.
        around: SELECT with ``{rows}`` in the place of what is read.
    """

    name: str
    reads: tuple[Read, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)
    around: str = "SELECT * FROM {rows}"

    @property
    def files(self) -> tuple[AnyPath, ...]:
        """All files."""
        return tuple(file for read in self.reads for file in read.files)

    def sql(self, files: Collection[AnyPath] | None = None) -> str:
        """SELECT of the rows of some of the files; ``None``: of all."""
        some = [(read, [file for file in read.files if files is None or file in files]) for read in self.reads]
        rows = " UNION ALL BY NAME ".join(self._cast(read, _list(chosen)) for read, chosen in some if chosen)
        return self.around.replace("{rows}", f"({rows})")

    def _cast(self, read: Read, files: str) -> str:
        sql = read.sql.replace("{files}", files)
        casts = [f"{quoted(name)}::{kind} AS {quoted(name)}" for name, kind in self.kinds.items() if name in read.names]
        return f"SELECT * REPLACE ({', '.join(casts)}) FROM ({sql})" if casts else sql

    def make_view(self, connection: Any, files: Collection[AnyPath] | None = None) -> None:
        """Makes the view, of some of the files or of all."""
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {self.name} AS {self.sql(files)}")


@dataclass(frozen=True)
class TableFile:
    """Files of one format that are read as one table.

    Attributes:
        scan: how they are read.
        columns: by their names in the files.
        connection: DuckDB, to look at values where the type does not tell.
        absent: column -> a file that lacks it, while others have it.
        ambiguous: names that a file has twice, upper and lower case aside.
        missing_words: that stand for no value where ids, categories, numbers and times are read.
        title: its name in messages, where that is not the files'.
    """

    scan: Scan
    columns: Mapping[str, Column]
    connection: Any
    absent: Mapping[str, AnyPath]
    ambiguous: frozenset[str] = frozenset()
    missing_words: tuple[str, ...] = ()
    title: str = ""

    @property
    def files(self) -> tuple[AnyPath, ...]:
        """The files."""
        return self.scan.files

    @property
    def sql(self) -> str:
        """What stands behind FROM."""
        return self.scan.name

    @property
    def name(self) -> str:
        """The files in a message."""
        if self.title:
            return self.title
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more"

    def find(self, column: str) -> Column:
        """A column that every file must have.

        Raises:
            ValueError: no such column, or two of that name.
        """
        if column.lower() in self.ambiguous:
            raise ValueError(f"{self.name}: two columns are named {column!r}, upper and lower case aside; rename one")
        if column not in self.columns:
            raise ValueError(f"{self.name}: no column {column!r}; found {', '.join(map(repr, self.columns))}")
        if column in self.absent:
            raise ValueError(f"{self.absent[column]}: no column {column!r}, which others of these files have")
        return self.columns[column]

    def require(self, column: str, allowed: Collection[str], expected: str) -> str:
        """SQL of a column that must be there in one of the ``allowed`` types; text gets the type that was inferred.

        Raises:
            ValueError: no such column, or another type; the message names file, column and what was expected.
        """
        found = self.find(column)
        if found.kind != NOTHING and base_type(found.kind) not in allowed:
            odd = f" (for example {found.odd!r})" if found.odd is not None else ""
            kind = found.kind.replace("JSON[]", "JSON arrays")
            raise ValueError(f"{self.name}: column {column!r} holds {kind}{odd}, expected {expected}")
        if not found.is_text:
            return quoted(column)
        cell = self.known(quoted(column))
        if found.kind == "JSON[]":
            return f"json_extract_string({cell}, '$[*]')"
        return cell if found.kind == "VARCHAR" else f"({cell})::{'BIGINT' if found.kind == NOTHING else found.kind}"

    def id_column(self, column: str) -> IdExpression:
        """An id: integers where every value is one, else text; empty text and words for nothing are NULL.

        Raises:
            ValueError: no such column, or values that are neither.
        """
        found = self.find(column)
        if found.is_text:
            is_string, cell = found.kind not in ("BIGINT", NOTHING), self.known(quoted(column))
            return IdExpression(cell if is_string else f"({cell})::BIGINT", is_string, is_declared=False)
        name = self.require(column, ID_TYPES, "64-bit integers or strings")
        self._refuse_mixed(column, NUMBERS)
        if found.kind in TEXT_TYPES:
            return IdExpression(self.known(f"{name}::VARCHAR"), is_string=True, is_declared=True)
        if found.kind in INTEGER_TYPES or found.kind == NOTHING:
            return IdExpression(f"{name}::BIGINT", is_string=False, is_declared=found.kind != NOTHING)
        return self._whole(column, name)

    def text_column(self, column: str) -> str:
        """SQL of a column taken as text; an empty string is NULL.

        Raises:
            ValueError: no such column, or files that would write one value in two ways.
        """
        kinds = set(self.find(column).found_in) - {*INTEGER_TYPES, NOTHING}
        if len(kinds) > 1:
            self._refuse_mixed(column, force=True)
        return sql_clean_text(f"{quoted(column)}::VARCHAR")

    def category_column(self, column: str, separator: str | None = None) -> str:
        """SQL of an id feature: BIGINT, VARCHAR or a list of one of them; lists hold no NULL.

        Args:
            column: a list, or one value a row.
            separator: between the values of a text; ``None``: a text is one value, or a JSON array of several.

        Raises:
            ValueError: no such column, or another type.
        """
        expected = "integers, strings, or lists of these"
        kind = base_type(self.find(column).kind)
        if separator is not None:
            texts = self.require(column, TEXT_TYPES, f"strings with {separator!r} between the values")
            return self._list_of(f"string_split({texts}, {literal(separator)})")
        if kind == "BOOLEAN":
            return f"{quoted(column)}::VARCHAR"
        lists = [f"{inner}[]" for inner in (*INTEGER_TYPES, *TEXT_TYPES, "JSON")]
        if self.columns[column].is_text and kind in ("DOUBLE", "TIMESTAMP", ZONED, MIXED_ZONES):
            return self.id_column(column).sql
        name = self.require(column, (*INTEGER_TYPES, "UBIGINT", "HUGEINT", *TEXT_TYPES, *lists), expected)
        if not kind.endswith("[]"):
            return self.id_column(column).sql
        self._refuse_mixed(column)
        if kind.removesuffix("[]") in INTEGER_TYPES:
            return f"list_filter({name}::BIGINT[], lambda x: x IS NOT NULL)"
        return self._list_of(name, integers=kind == "JSON[]")

    def number_column(self, column: str) -> str:
        """SQL of a numeric column, as DOUBLE; NaN and infinities are NULL.

        Raises:
            ValueError: no such column, or no numbers.
        """
        name = f"{self.require(column, NUMBER_TYPES, 'numbers')}::DOUBLE"
        return f"CASE WHEN isfinite({name}) THEN {name} END"

    def vector_column(self, column: str) -> str:
        """SQL of a column of vectors, as FLOAT[].

        Raises:
            ValueError: no such column, or no lists of numbers.
        """
        return f"{self.require(column, EMBEDDING_TYPES, 'lists of numbers')}::FLOAT[]"

    def time_columns(self, column: str) -> str:
        """SQL of a point in time, as the columns ``timestamp`` BIGINT and ``fraction`` DOUBLE, from 0 to below 1.

        Numbers are in the unit that they have, dates in seconds since 1970; a time without a zone is one of UTC.

        Raises:
            ValueError: no such column, neither numbers nor dates, or some times with a zone and some without.
        """
        name = self.require(column, TIME_TYPES, "numbers or dates")
        self._refuse_mixed(column)
        if self.is_date(column):
            kind = self.columns[column].kind
            ticks, part = (f"epoch_ns({name})", 10**9) if kind.endswith("_NS") else (f"epoch_us({name})", 10**6)
            whole, fraction = floor_divided(ticks, part), f"{remainder(ticks, part)}::DOUBLE / {part}"
        elif base_type(self.columns[column].kind) in ("FLOAT", "DOUBLE", "DECIMAL"):
            finite = f"CASE WHEN isfinite({name}::DOUBLE) THEN {name} END"
            whole, fraction = f"floor({finite})::BIGINT", f"({finite} - floor({finite}))::DOUBLE"
        else:
            whole, fraction = f"{name}::BIGINT", "0::DOUBLE"
        return f"{whole} AS timestamp, {fraction} AS fraction"

    def has_fractions(self, column: str) -> bool:
        """False if no point in time of the column lies between two of its units."""
        return base_type(self.columns[column].kind) not in INTEGER_TYPES

    def is_date(self, column: str) -> bool:
        """True if the column holds dates rather than numbers."""
        return base_type(self.columns[column].kind) in ("DATE", "TIMESTAMP", ZONED)

    def known(self, text: str) -> str:
        """Text without the spaces around it; NULL for nothing and for words that mean nothing."""
        clean = sql_clean_text(text)
        if not self.missing_words:
            return clean
        return f"CASE WHEN {clean} NOT IN ({literals(self.missing_words)}) THEN {clean} END"

    def _refuse_mixed(self, column: str, together: Collection[str] = (), *, force: bool = False) -> None:
        """Refuses a column whose types in the files have no common one that holds every value as it is."""
        found = self.columns[column].found_in
        families = {_family(kind) for kind in found if kind != NOTHING}
        if force or (len(families) > 1 and not families <= set(together)):
            said = ", ".join(f"{kind} in {file}" for kind, file in found.items())
            raise ValueError(f"column {column!r} is {said}; expected one type, so that no value is altered")

    def _whole(self, column: str, name: str) -> IdExpression:
        """An id of a type that holds more than 64-bit integers, of which only those are taken."""
        kind = base_type(self.columns[column].kind)
        value, fits = name, "true"
        if kind in EXACT_BELOW:
            value = f"CASE WHEN isfinite({name}) THEN {name} END"
            fits = f"v = floor(v) AND abs(v) < {EXACT_BELOW[kind]}"
        elif kind == "DECIMAL":
            fits = "v = floor(v)"
        query = f"SELECT min(v) FILTER (WHERE NOT ({fits})), min(v), max(v) FROM (SELECT {value} AS v FROM {self.sql})"
        with readable(self.files):
            ((odd, low, high),) = self.connection.sql(query).fetchall()
        if odd is not None:
            limit = f" below {EXACT_BELOW[kind]:,}, up to which {kind} is exact" if kind in EXACT_BELOW else ""
            raise ValueError(
                f"{self.name}: column {column!r} holds {kind}, expected 64-bit integers or strings: {odd} is no whole "
                f"number{limit}"
            )
        if low is None or (low >= -(2**63) and high < 2**63):
            return IdExpression(f"({value})::BIGINT", is_string=False, is_declared=False)
        return IdExpression(f"({value})::HUGEINT::VARCHAR", is_string=True, is_declared=False)

    def _list_of(self, texts: str, *, integers: bool = True) -> str:
        """SQL of a list of texts: each cleaned, none empty; as numbers where all are integers and may be such."""
        clean = f"list_filter(list_transform({texts}::VARCHAR[], lambda x: {self.known('x')}), lambda x: x IS NOT NULL)"
        if not integers:
            return clean
        query = f"""
            SELECT count(v) = count(*) FILTER (WHERE {_is_integer("v")})
            FROM (SELECT unnest({clean}) AS v FROM {self.sql})"""
        with readable(self.files):
            ((all_integers,),) = self.connection.sql(query).fetchall()
        return f"({clean})::BIGINT[]" if all_integers else clean


def table_file(
    connection: Any,
    files: Sequence[AnyPath],
    *,
    types: Mapping[str, str] | None = None,
    typed: Collection[str] = (),
    partitions: Sequence[str] = (),
    missing_words: Sequence[str] = (),
) -> TableFile:
    """Looks at Parquet or CSV files (``.csv``, ``.tsv``, also ``.gz`` and ``.zst``), which are read as one table.

    Args:
        connection: DuckDB.
        files: at least one file, all of one format; CSV files with the same columns.
        types: types of CSV columns by name, the others are strings; ``None``: they follow from the values.
        typed: the columns whose types are looked for then, in one scan; ``007`` is a string, since it would not survive
            as a number.
        partitions: columns that stand in the names of folders, as in ``day=2024-01-31/``.
        missing_words: see `TableFile`.

    Raises:
        ValueError: a file is missing, empty, broken, of an unknown format, or lacks one of the typed columns.
    """
    formats = {_format(file) for file in files}
    if len(formats) != 1:
        raise ValueError(f"{', '.join(map(str, files))}: expected files of one format, found {sorted(formats)}")
    for file in files:
        _check_there(file)
    make_reachable(connection, files)
    with readable(files):
        if formats == {"parquet"}:
            table = _parquet(connection, files, bool(partitions))
        else:
            table = _csv(connection, files, "\t" if formats == {"tsv"} else ",", types, bool(partitions))
        table = replace(table, missing_words=tuple(missing_words))
        if partitions:
            table = _with_partitions(table, partitions)
        table.scan.make_view(connection)
        return table if types is not None else _infer_types(table, typed)


def _check_there(file: AnyPath) -> None:
    try:
        size = size_of(file)
    except OSError as error:
        raise ValueError(f"{file}: cannot be reached: {error}") from None
    if size is None:
        raise ValueError(f"{file}: no such file")
    if size == 0:
        raise ValueError(f"{file}: empty file")


@contextmanager
def readable(files: Sequence[AnyPath]) -> Iterator[None]:
    """Turns DuckDB's errors while it reads a user's files into a ``ValueError`` that names them."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        # The first lines name line and column; what follows is advice about DuckDB's own options.
        reason = " ".join(re.split("Possible (?i:fix|solution)", str(error))[0].split())
        reason = re.sub(r"^[A-Z][\w ]* Error: |\s*Column \w+ is being converted as .*$", "", reason)
        if DATABASE in str(error):
            raise ValueError(f"prepare's own database cannot be written: {reason}") from None
        named = [file for file in files if str(file) in str(error)]
        where = named[0] if len(named) == 1 else _first_broken(files)
        raise ValueError(f"{where}: cannot be read: {reason}") from None
    except (OSError, pa.ArrowException) as error:  # DuckDB's, of rows that come as a stream
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{_first_broken(files)}: cannot be read: {error}") from None


def partition_of(file: AnyPath, name: str) -> str | None:
    """The value of a partition that stands in the name of a file's folder; ``None`` for Hive's word for nothing.

    Raises:
        ValueError: the file lies in no such folder.
    """
    found = [part.removeprefix(f"{name}=") for part in file.parts[:-1] if part.startswith(f"{name}=")]
    if not found:
        raise ValueError(f"{file}: lies in no folder {name}=..., as data.partitions says")
    return None if found[-1] == NO_PARTITION else unquote(found[-1])


def base_type(kind: str) -> str:
    """``DECIMAL(18,3)`` -> ``DECIMAL``, ``TIMESTAMP_NS`` -> ``TIMESTAMP``, ``FLOAT[8]`` -> ``FLOAT[]``."""
    kind = re.sub(r"\[\d*\]$", "[]", re.sub(r"\(.*?\)", "", kind))
    if kind.startswith("TIMESTAMP") and not kind.endswith("[]"):
        return ZONED if kind.startswith("TIMESTAMPTZ") or kind == ZONED else "TIMESTAMP"
    return kind


def _family(kind: str) -> str:
    """Types of one family have a common type in the family that holds all their values."""
    kind = base_type(kind)
    if kind.endswith("[]"):
        return f"list of {_family(kind.removesuffix('[]'))}"
    if kind in (*INTEGER_TYPES, "UBIGINT", "HUGEINT", "UHUGEINT"):
        return "integer"
    return {"FLOAT": "float", "DOUBLE": "float", "DECIMAL": "decimal", "DATE": "date", "TIMESTAMP": "date"}.get(
        kind, kind
    )


def _is_integer(text: str) -> str:
    """SQL: whether a text is just what a 64-bit integer is written as."""
    return f"try_cast({text} AS BIGINT)::VARCHAR = {text}"


def _list(files: Sequence[AnyPath]) -> str:
    """Files as DuckDB takes them; their names are no patterns."""
    return f"[{literals(glob.escape(str(file)) for file in files)}]"


def _parquet(connection: Any, files: Sequence[AnyPath], name_files: bool) -> TableFile:
    """Reads files of one schema together; a column of several types gets one that holds all values."""
    groups: dict[pa.Schema, list[AnyPath]] = {}
    for file in files:
        try:
            schema = pq.read_schema(_opened(file)).remove_metadata()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{file}: cannot be read: {error}") from None
        groups.setdefault(schema, []).append(file)
    reads: list[Read] = []
    found: dict[str, dict[str, AnyPath]] = {}
    absent: dict[str, AnyPath] = {}
    ambiguous: set[str] = set()
    for schema, group in groups.items():
        ambiguous |= {name for name, count in Counter(map(str.lower, schema.names)).items() if count > 1}
        sql = "SELECT * FROM read_parquet({files}, hive_partitioning = false, union_by_name = false"
        read = Read(
            sql + (f", filename = {literal(FILE_NAME)})" if name_files else ")"), tuple(group), (*schema.names,)
        )
        kinds = _kinds(connection, Scan("", (read,)).sql())
        reads.append(read)
        for name, kind in zip(schema.names, kinds.values(), strict=False):
            found.setdefault(name, {}).setdefault(kind, group[0])
    for name in found:
        for schema, group in groups.items():
            if name not in schema.names:
                absent.setdefault(name, group[0])
    many = {column: kinds for column, kinds in found.items() if len(kinds) > 1 and column.lower() not in ambiguous}
    # FLOAT would be the common type of itself and any integers, which it does not hold.
    doubles = {column: "DOUBLE" for column, kinds in many.items() if "FLOAT" in kinds}
    name = _new_name()
    whole = _kinds(connection, Scan(name, tuple(reads), doubles).sql())
    columns = {column: Column(whole.get(column, NOTHING), found_in=kinds) for column, kinds in found.items()}
    common = {column: whole[column] for column in many if whole.get(column, NOTHING) != NOTHING}
    return TableFile(Scan(name, tuple(reads), common), columns, connection, absent, frozenset(ambiguous))


def _kinds(connection: Any, select: str) -> dict[str, str]:
    return {str(row[0]): str(row[1]) for row in connection.sql(f"DESCRIBE {select}").fetchall()}


def _new_name() -> str:
    return f"files_{next(_NUMBERS)}"


def _csv(
    connection: Any, files: Sequence[AnyPath], delimiter: str, types: Mapping[str, str] | None, name_files: bool
) -> TableFile:
    header, mixed_newlines = _csv_header(files[0], delimiter)
    for file in files[1:]:
        if _csv_header(file, delimiter)[0] != header:
            raise ValueError(f"{file}: expected the same columns as in {files[0]}: {', '.join(header)}")
    for column in types or {}:
        if column not in header:
            raise ValueError(f"{files[0]}: no column {column!r}; found {', '.join(map(repr, header))}")
    kinds = {**dict.fromkeys(header, "VARCHAR"), **(types or {})}
    columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in kinds.items())
    packed = {{".gz": "gzip", ".zst": "zstd"}.get(file.suffixes[-1].lower(), "none") for file in files}
    # DuckDB's own look at the name ends at a "?".
    packed_as = packed.pop() if len(packed) == 1 else "auto"
    # Strict mode refuses lines with too many fields, but also line ends that change.
    strict = "false" if mixed_newlines else "true"
    sql = (
        f"SELECT * FROM read_csv({{files}}, auto_detect = false, header = true, delim = {literal(delimiter)}, "
        "quote = '\"', "
        f"escape = '\"', strict_mode = {strict}, columns = {{{columns}}}, compression = {literal(packed_as)}, "
        "hive_partitioning = false" + (f", filename = {literal(FILE_NAME)})" if name_files else ")")
    )
    found = {name: Column(kind, is_text=types is None) for name, kind in kinds.items()}
    return TableFile(Scan(_new_name(), (Read(sql, tuple(files), (*header,)),)), found, connection, {})


def _with_partitions(table: TableFile, names: Sequence[str]) -> TableFile:
    """Adds the columns that stand in the names of folders, as text."""
    columns = []
    for name in names:
        if name.lower() in map(str.lower, table.columns):
            raise ValueError(f"{table.name}: has a column {name!r}, which data.partitions expects in names of folders")
        for file in table.files:
            partition_of(file, name)
        found = f"regexp_extract({quoted(FILE_NAME)}, {literal(f'^.*/{re.escape(name)}=([^/]*)/')}, 1)"
        columns.append(f"nullif(url_decode({found}), {literal(NO_PARTITION)}) AS {quoted(name)}")
    around = f"SELECT * EXCLUDE ({quoted(FILE_NAME)}), {', '.join(columns)} FROM {{rows}}"
    return replace(
        table,
        scan=replace(table.scan, around=around),
        columns={**table.columns, **{name: Column("VARCHAR", is_text=True) for name in names}},
    )


def _infer_types(table: TableFile, typed: Collection[str]) -> TableFile:
    """Gives columns of text the narrowest type that holds all their values unchanged, and says what is in the way."""
    names = [name for name in typed if name in table.columns and table.columns[name].is_text]
    if not names:
        return table
    queries = []
    for name in names:
        cell = table.known(quoted(name))
        no_type = f"try_cast({cell} AS DOUBLE) IS NULL AND try_cast({cell} AS TIMESTAMP) IS NULL"
        queries += [
            f"count({cell})",
            f"count(*) FILTER (WHERE {_is_integer(cell)})",
            f"count(try_cast({cell} AS DOUBLE))",
            f"count(try_cast({cell} AS TIMESTAMP))",
            f"count(*) FILTER (WHERE regexp_matches({cell}, {literal(_ZONE)}))",
            f"count(*) FILTER (WHERE {cell} LIKE '[%]')",
            f"count(*) FILTER (WHERE {cell} LIKE '[%]' AND json_valid({cell}))",
            f"min({cell}) FILTER (WHERE {no_type})",
        ]
    facts = table.connection.sql(f"SELECT {', '.join(queries)} FROM {table.sql}").fetchall()[0]
    columns = dict(table.columns)
    for place, name in enumerate(names):
        known, integers, doubles, times, zoned, lists, arrays, odd = facts[8 * place : 8 * place + 8]
        kinds = {
            NOTHING: known == 0,
            "BIGINT": integers == known,
            "DOUBLE": doubles == known,
            "TIMESTAMP": times == known and zoned == 0,
            ZONED: times == known and zoned == known,
            MIXED_ZONES: times == known,
            "JSON[]": arrays == known,
            BROKEN_LISTS: arrays > 0 or lists == known,
        }
        kind = next((kind for kind, fits in kinds.items() if fits), "VARCHAR")
        columns[name] = Column(kind, is_text=True, odd=odd)
    return replace(table, columns=columns)


def _csv_header(file: AnyPath, delimiter: str) -> tuple[list[str], bool]:
    """Column names, and whether the first line ends in another way than the next ones (MovieLens ships such files).

    DuckDB's own detection is not used: with one odd line in its sample it may take another line for the header.
    """
    try:
        with file.stream() if isinstance(file, RemotePath) else pa.input_stream(str(file)) as stream:
            head = stream.read(HEAD_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    first, _, rest = head.partition("\n")
    names = next(csv.reader([first.rstrip("\r")], delimiter=delimiter), [])
    if len({name.lower() for name in names}) != len(names) or not all(names):
        raise ValueError(
            f"{file}: expected distinct column names in the first line, upper and lower case aside, "
            f"found {first.strip()!r}"
        )
    second = rest.partition("\n")[0]
    return names, bool(rest) and first.endswith("\r") != second.endswith("\r")


def _first_broken(files: Sequence[AnyPath]) -> str:
    """The file to blame, where the error names none."""
    for file in files:
        if len(files) > 1 and _format(file) == "parquet":
            try:
                for _ in pq.ParquetFile(_opened(file)).iter_batches():
                    pass
            except (OSError, pa.ArrowException):
                return str(file)
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _opened(file: AnyPath) -> AnyPath | BinaryIO:
    return file.open() if isinstance(file, RemotePath) else file


def _format(file: AnyPath) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    known = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".txt": "csv", ".tsv": "tsv"}
    if kind not in known:
        raise ValueError(f"{file}: unknown format; expected .parquet, .csv or .tsv (also .gz, .zst)")
    return known[kind]
