"""Reads new items from a file: Parquet, JSON lines or CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq


def read_rows(path: Path, strings: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The rows of a file, one dict an item.

    Args:
        path: ``.parquet``, ``.jsonl`` or ``.csv`` (with a header; an empty cell is null, a cell holds one value).
        strings: columns that hold strings, whatever the cells of a CSV file look like.

    Raises:
        ValueError: missing, another kind of file, or not readable; the message names the file and, if it is known, the
            line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
        if path.suffix == ".csv":
            types = dict.fromkeys(strings, pa.string())
            options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
            return pyarrow.csv.read_csv(path, convert_options=options).to_pylist()  # type: ignore[no-any-return]
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not readable: {error}") from None
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: expected a file that ends in .parquet, .jsonl or .csv")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a string of JSON may hold what else ends lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not readable: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number}: expected an object, one field a feature")
        rows.append(row)
    return rows
