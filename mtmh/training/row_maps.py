"""Map from the rows of this period's vocabulary to those that the same values had in the period before."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtmh.data.schema import ITEM_ID, vocabulary_file
from mtmh.modules.id_tables import NO_ROW

_JOIN = "read_parquet(?, file_row_number=true) AS c JOIN read_parquet(?, file_row_number=true) AS p ON c.{0} = p.{0}"


def previous_rows(
    feature: str, previous: Path, current: Path, first: int, last: int, *, previous_size: int
) -> NDArray[np.int64]:
    """The rows that values of the current vocabulary had in the previous one.

    DuckDB joins the two files, so neither vocabulary is held in memory.

    Args:
        feature: name of the id feature.
        previous: folder that holds ``vocabulary/`` of the period before.
        current: the same of this period.
        first: first current row that is asked for.
        last: one behind the last.
        previous_size: rows of the previous table.

    Returns:
        [last - first] int64; row 0 (unknown) stays row 0, `NO_ROW` stands for a value that is new.

    Raises:
        ValueError: a file is missing, the values are of two types, or a row lies outside the previous table.
    """
    files = _vocabularies(feature, previous, current)
    rows = _joined(files, "value", "row", first, last)
    if first == 0 and last > 0:
        rows[0] = 0
    if len(rows) and rows.max() >= previous_size:
        raise ValueError(f"{files[1]}: row {rows.max()} lies outside a table of {previous_size} rows")
    return rows


def previous_items(previous: Path, current: Path, first: int, last: int) -> NDArray[np.int64]:
    """The indices that items of this period had in the one before.

    Args:
        previous: the items of the period before, a Parquet file in the order of the indices.
        current: those of this period.
        first: first current index that is asked for.
        last: one behind the last.

    Returns:
        [last - first] int64; `NO_ROW` stands for an item that is new.
    """
    return _joined([str(current), str(previous)], ITEM_ID, "file_row_number", first, last)


def num_carried(feature: str, previous: Path, current: Path) -> int:
    """Values that both vocabularies hold, row 0 (unknown) counted as one; arguments as in `previous_rows`."""
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT count(*) FROM {_JOIN.format('value')}", _vocabularies(feature, previous, current)
        )
        return 1 + int(found.fetchall()[0][0])


def _joined(files: list[str], value: str, row: str, first: int, last: int) -> NDArray[np.int64]:
    """[last - first] the row of the second file that has the value of a row of the first; `NO_ROW`: none has."""
    with duckdb.connect() as connection:
        found = connection.sql(
            f"SELECT c.{row} - ? AS place, p.{row} AS previous FROM {_JOIN.format(value)} "
            f"WHERE c.{row} >= ? AND c.{row} < ?",
            params=[first, *files, first, last],
        ).to_arrow_table()
    rows = np.full(last - first, NO_ROW, np.int64)
    rows[found["place"].to_numpy()] = found["previous"].to_numpy()
    return rows


def _vocabularies(feature: str, previous: Path, current: Path) -> list[str]:
    """The two files, this period's first."""
    files = [folder / vocabulary_file(feature) for folder in (current, previous)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: missing; it tells which row a value of {feature} has. Prepare and train anew")
    now, before = (pq.read_schema(file).field("value").type for file in files)
    if before != now:
        raise ValueError(f"{files[0]}: values of {feature} are {now}, but {before} in {files[1]}; expected one type")
    return [str(file) for file in files]
