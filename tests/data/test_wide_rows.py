"""Rows and item indices beyond 32 bits: written, read, paired and batched as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_helpers import prepare_tables
from scipy import sparse
from synthetic_dataset import make_config, pair_loader, random_histories, write_dataset
from tiny_run import losses_of, tiny_config

from mtmh.data import arrays
from mtmh.data.arrays import row_type
from mtmh.data.dataset import open_dataset
from mtmh.data.distinct import Distinct
from mtmh.data.histories import HistoryReader
from mtmh.data.pairs import expand_pairs
from mtmh.data.schema import HISTORIES, ITEM_TABLE, TEST, vocabulary_file
from mtmh.prepare.write_histories import write_histories, write_test
from mtmh.preranking.neighbours import cosine_neighbours
from mtmh.training.trainer import train

FAR = 3_000_000_000


def test_rows_are_as_wide_as_their_number_needs() -> None:
    assert row_type(2**31) is np.int32  # the last one is 2^31 - 1
    assert row_type(2**31 + 1) is np.int64


def test_batches_hold_rows_of_a_huge_vocabulary(tmp_path: Path) -> None:
    histories = random_histories(23)
    far = write_dataset(tmp_path / "far", histories, rows_before=FAR)
    near = write_dataset(tmp_path / "near", histories)
    assert far.item_table.columns["item_id"].values.dtype == np.int64
    config = make_config(tmp_path)
    for batch, other in zip(pair_loader(far, config).iterate(0), pair_loader(near, config).iterate(0), strict=True):
        rows, expected = batch.sparse["item_id"].values(), other.sparse["item_id"].values()
        assert rows[rows > 0].tolist() == (expected[expected > 0] + FAR).tolist()
        assert int(rows.max()) > FAR
        assert batch.sparse["brand"].values().tolist() == other.sparse["brand"].values().tolist()


@pytest.mark.parametrize("labels", [False, True])
def test_histories_of_a_huge_catalogue_come_back_as_they_were(tmp_path: Path, labels: bool) -> None:
    items = [FAR, 5, FAR + 7, 2**31, FAR + 1]
    columns: dict[str, Any] = {"user_index": [0, 0, 0, 1, 1], "item_index": items, "timestamp": [1, 2, 3, 4, 5]}
    if labels:
        columns |= {"kinds": [1, 1, 2, 1, 1], "value": [1.0] * 5}
    for write in (write_histories, write_test):
        bits = [0, 1] if labels else None
        write({"rows": [pa.table(columns)]}, tmp_path, num_items=FAR + 10, bits=bits, row_group_events=100)
    assert pq.read_table(tmp_path / TEST)["items"].to_pylist() == [items[:3], items[3:]]
    histories = HistoryReader(tmp_path, FAR + 10, 1, labels).read(0)
    assert histories.items.tolist() == items
    with pytest.raises(ValueError, match="outside the catalogue of 3000000000"):
        HistoryReader(tmp_path, FAR, 1).read(0)
    pairs = expand_pairs(histories, 2, "forward")
    assert pairs.trigger.tolist() == [FAR, FAR, 5, 2**31]
    assert pairs.candidate.tolist() == [5, FAR + 7, FAR + 7, FAR + 1]
    distinct, rows = Distinct()(np.concatenate([pairs.trigger, pairs.candidate]), FAR + 10)
    assert distinct.tolist() == sorted(items)
    assert distinct[rows].tolist() == [*pairs.trigger.tolist(), *pairs.candidate.tolist()]
    assert histories.first_engagements().items.tolist() == items


def test_a_wide_dataset_trains_as_a_narrow_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    events = [(f"u{user}", f"i{rng.integers(60)}", t) for user in range(40) for t in range(12)]
    items = {"item_id": [f"i{item}" for item in range(60)], "tags": [[f"t{item % 9}", "all"] for item in range(60)]}
    for name in ("narrow", "wide"):
        if name == "wide":
            monkeypatch.setattr(arrays, "NARROW_ROWS", 5)
        prepare_tables(tmp_path / name, events, items, id_features=["tags"])
        config = tiny_config(
            tmp_path / name, model={"heads": [{"name": "engagement"}]}, training={"max_steps": 3, "epochs": 1}
        )
        train(config)
    for kind, name in ((np.int32, "narrow"), (np.int64, "wide")):
        folder = tmp_path / name / "dataset"
        for feature in ("item_id", "tags"):
            assert np.load(folder / ITEM_TABLE / f"{feature}.values.npy").dtype == kind
            assert pq.read_schema(folder / vocabulary_file(feature)).field("row").type == pa.from_numpy_dtype(kind)
        for file in (HISTORIES, TEST):
            assert pq.read_schema(folder / file).field("items").type.value_type == pa.from_numpy_dtype(kind)
        assert open_dataset(folder).evaluation_users(5, 0).histories.items.dtype == kind
    narrow, wide = (losses_of(tmp_path / name / "tiny" / "checkpoints") for name in ("narrow", "wide"))
    assert len(narrow) == 3
    assert wide == narrow
    with pytest.raises(ValueError, match="60 items: co-occurrence is counted for as many as int32"):
        cosine_neighbours(sparse.csr_matrix(np.eye(2, 60, dtype=np.float32)), 3)
