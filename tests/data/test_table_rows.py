"""Rows by number, from tables in one batch and in many."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mtmh.data.table_rows import TableRows, numbers

TABLE = pa.table(
    {
        "number": np.arange(100) * 3,
        "text": [None if row % 7 == 0 else f"row {row}" for row in range(100)],
        "several": [[f"{row}-{part}" for part in range(row % 3)] for row in range(100)],
    }
)


@pytest.mark.parametrize("batch_rows", [1, 7, 99, 100])
def test_rows_come_in_the_order_asked_for(batch_rows: int) -> None:
    rows = TableRows(pa.Table.from_batches(TABLE.to_batches(batch_rows)))
    assert len(rows) == 100
    for wanted in ([], [99], [0, 99, 0, 50], np.random.default_rng(0).integers(0, 100, 300).tolist()):
        found = rows.take(np.array(wanted, np.int64), ["text", "several", "number"])
        assert found.equals(TABLE.select(["text", "several", "number"]).take(pa.array(wanted, pa.int64())))
        assert numbers(found.column("number")).tolist() == [3 * row for row in wanted]


def test_more_rows_stand_behind() -> None:
    rows = TableRows(TABLE.slice(0, 60)).with_more(TABLE.slice(60, 25)).with_more(TABLE.slice(85))
    wanted = np.array([99, 0, 59, 60, 84, 85])
    assert rows.take(wanted, ["text"]).column(0).to_pylist() == TABLE.column("text").take(pa.array(wanted)).to_pylist()
    assert rows.table.equals(TABLE)
