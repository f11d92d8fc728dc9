"""Raw 64-bit ids: the same rule in Python and in prepare's SQL, kept in the dataset, delivered by the loader."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepare_helpers import Written, prepare_tables
from synthetic_dataset import make_config, pair_loader, random_histories, write_dataset

from mtmh.data.dataset import open_dataset
from mtmh.data.ids import raw_ids

NUMBERS = [0, 7, -3, 2**40, 2**63 - 1, -(2**63)]
TEXTS = ["a", "B0001", "a longer id of an item", "grüße 你好", "'; --", "7"]


@pytest.mark.parametrize("ids", [NUMBERS, TEXTS], ids=["int64", "string"])
def test_prepare_keeps_the_raw_id_of_every_item(tmp_path: Path, ids: list[Any]) -> None:
    events = [(user, ids[(user + time) % 5], time) for user in range(6) for time in range(8)]  # the last one is fresh
    artifact = prepare_tables(tmp_path, events, {"item_id": ids}, split={"kind": "user"})
    dataset = open_dataset(artifact.path)
    order = Written.read(artifact.path).item_ids
    assert sorted(order, key=str) == sorted(ids, key=str)
    assert dataset.item_table.raw_ids.dtype == np.int64
    assert dataset.item_table.raw_ids.tolist() == raw_ids(order).tolist() == raw_ids(dataset.item_ids).tolist()


def test_numbers_are_what_they_are_and_strings_are_hashed() -> None:
    assert raw_ids(NUMBERS).tolist() == NUMBERS
    expected = [int.from_bytes(hashlib.md5(text.encode()).digest()[:8], "big") % 2**63 for text in TEXTS]
    assert raw_ids(TEXTS).tolist() == expected
    assert raw_ids(np.array(TEXTS, np.dtypes.StringDType())).tolist() == expected
    assert raw_ids([]).tolist() == []


def test_the_loader_delivers_raw_ids_in_place_of_rows_and_nothing_else_changes(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_histories(40))
    tables = {"id_tables": {"item_id": {"rows": 96}}, "id_dropout": 0.3}
    plain = pair_loader(dataset, make_config(tmp_path, model={"id_dropout": 0.3}))
    raw = pair_loader(dataset, make_config(tmp_path, model=tables))
    num_hidden = 0
    for batch, other in zip(raw.iterate(), plain.iterate(), strict=True):
        assert batch.sparse.keys() == other.sparse.keys()
        ids, rows = batch.sparse["item_id"], other.sparse["item_id"]
        hidden = ids.lengths() == 0
        assert set(ids.lengths().tolist()) <= {0, 1}
        assert (rows.values()[hidden] == 0).all()
        assert ids.values().tolist() == raw_ids(dataset.item_ids[batch.item_index[~hidden].numpy()]).tolist()
        for name in ("brand", "tags"):
            assert batch.sparse[name].values().tolist() == other.sparse[name].values().tolist()
            assert batch.sparse[name].lengths().tolist() == other.sparse[name].lengths().tolist()
        assert batch.item_index.tolist() == other.item_index.tolist()
        num_hidden += int(hidden.sum())
    assert num_hidden > 0


def test_a_dataset_without_raw_ids_says_so(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[1, 2, 3]])
    (tmp_path / "dataset" / "item_table" / "item_id.raw.npy").unlink()
    dataset.item_table.gather(np.arange(3))
    with pytest.raises(ValueError, match="prepare the dataset again"):
        dataset.item_table.gather(np.arange(3), raw={"item_id"})
