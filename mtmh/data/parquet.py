"""Opens Parquet files and reads columns of row groups; errors name the file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file, memory-mapped; reads its metadata only.

    Raises:
        ValueError: missing or not a Parquet file; the message names the file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from None


def read_whole(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file, or some of its columns.

    Raises:
        ValueError: missing, damaged or forged, or it asks for more memory than there is; the message names the file.
    """
    try:
        with pq.ParquetFile(path) as file:  # `pq.read_table` imports pyarrow.dataset, and that pandas, which take long
            missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
            if missing:
                raise ValueError(f"{path}: no column {missing[0]}; it has {', '.join(file.schema_arrow.names)}")
            return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from None


def read_column(file: pq.ParquetFile, path: Path, group: int, name: str) -> pa.ChunkedArray:
    """Reads one column of one row group.

    Raises:
        ValueError: no such column, or its data are damaged; the message names file and row group.
    """
    if name not in file.schema_arrow.names:
        raise ValueError(f"{path}: no column {name}; it has {', '.join(file.schema_arrow.names)}")
    try:
        return file.read_row_group(group, columns=[name]).column(name)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: row group {group}: column {name} is damaged: {error}") from None
