"""Tables as a caller has them (a path, or a frame of pandas, Polars or Arrow), as files that a recipe can name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq


@runtime_checkable
class Frame(Protocol):
    """A table in memory that speaks Arrow: `pyarrow.Table`, and the data frames of pandas, Polars and DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A capsule with its rows."""
        ...


Table = str | Path | Frame


def as_path(table: Table, name: str, folder: Path) -> Path:
    """The path of a table; one in memory is written to ``folder`` as Parquet.

    Args:
        table: a path, which is made absolute, or a frame; the index of a pandas frame is left out.
        name: of the file, and in messages.
        folder: of the file.

    Raises:
        ValueError: it is neither, or a frame with columns that Arrow cannot hold.
    """
    if isinstance(table, str | Path):
        return Path(table).absolute()
    if not isinstance(table, Frame):
        raise ValueError(f"{name}: expected a path or a frame of pandas, Polars or Arrow, got {type(table).__name__}")
    try:
        rows = pa.table(table)
    except pa.ArrowException as error:
        raise ValueError(f"{name}: Arrow cannot hold this frame: {error}") from None
    index = [column for column in rows.column_names if column.startswith("__index_level_")]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    pq.write_table(rows.drop_columns(index).replace_schema_metadata(None), path)
    return path.absolute()
