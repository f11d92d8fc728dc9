"""Tables of a lake: Delta through deltalake, Iceberg through pyiceberg; read at one version, as a stream of columns.

Credentials come from the environment or, for a name in an Iceberg catalogue, from pyiceberg's own settings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import pyarrow as pa

from mtmh.places import LakeTable, any_path, find_files


@dataclass(frozen=True)
class OpenTable:
    """A table at one version.

    Attributes:
        table: with its version.
        changed_ns: when that version was made, in nanoseconds since 1970.
        names: of its columns.
        batches: the rows of some columns, some at a time.
    """

    table: LakeTable
    changed_ns: int
    names: tuple[str, ...]
    batches: Callable[[Sequence[str]], pa.RecordBatchReader]


def open_lake(table: LakeTable) -> OpenTable:
    """Opens a table at its version; without one, at the one that is there now.

    Raises:
        ValueError: it cannot be opened, or the library for it is not installed.
    """
    with _readable(table):
        return _delta(table) if table.format == "delta" else _iceberg(table)


def read_columns(found: OpenTable, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a table, some at a time.

    Raises:
        ValueError: no such column, or its files cannot be read.
    """
    for column in columns:
        if column not in found.names:
            raise ValueError(f"{found.table}: no column {column!r}; found {', '.join(map(repr, found.names))}")
    with _readable(found.table):
        yield from found.batches(columns)


def _delta(table: LakeTable) -> OpenTable:
    found = _library("deltalake").DeltaTable(str(any_path(table.place)), version=table.version)
    changed_ns = int(found.history(1)[0]["timestamp"]) * 10**6
    names = tuple(field.name for field in found.schema().fields)

    def batches(columns: Sequence[str]) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_stream(found.scan(columns=list(columns)))

    return OpenTable(replace(table, version=int(found.version())), changed_ns, names, batches)


def _iceberg(table: LakeTable) -> OpenTable:
    if "/" in table.place:
        found = _library("pyiceberg.table").StaticTable.from_metadata(_metadata_file(table), _s3_settings())
    else:
        catalogue, _, name = table.place.partition(".")
        found = _library("pyiceberg.catalog").load_catalog(catalogue, **_s3_settings()).load_table(name)
    snapshot = found.current_snapshot() if table.version is None else found.snapshot_by_id(table.version)
    if snapshot is None:
        what = "it is empty" if table.version is None else f"no snapshot {table.version}"
        raise ValueError(what)
    schema = found.schema() if table.version is None else found.scan(snapshot_id=table.version).projection()
    pinned = replace(table, version=int(snapshot.snapshot_id))

    def batches(columns: Sequence[str]) -> pa.RecordBatchReader:
        return found.scan(snapshot_id=pinned.version, selected_fields=tuple(columns)).to_arrow_batch_reader()

    return OpenTable(pinned, int(snapshot.timestamp_ms) * 10**6, tuple(schema.column_names), batches)


def _metadata_file(table: LakeTable) -> str:
    """The newest metadata in a table's folder, unless the file itself is named."""
    if table.place.endswith(".metadata.json"):
        return table.place
    files = find_files(any_path(f"{table.place}/metadata"), any_path("*.metadata.json"))
    if not files:
        raise ValueError("no metadata/*.metadata.json there")
    return str(max(files, key=lambda file: (int((re.search(r"\d+", file.name) or ["0"])[0]), file.name)))


def _s3_settings() -> dict[str, str]:
    """What pyiceberg does not take from the environment by itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL"))
    return {} if endpoint is None else {"s3.endpoint": endpoint}


def _library(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(f"{module.partition('.')[0]} is not installed; pip install 'mtmh[lake]'") from None


@contextmanager
def _readable(table: LakeTable) -> Iterator[None]:
    """Names the table in whatever its library raises: their errors have no class in common."""
    try:
        yield
    except Exception as error:
        if str(error).startswith(str(table)):
            raise
        raise ValueError(f"{table}: cannot be read: {error}") from error
