"""Opening datasets, good and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from synthetic_dataset import NUM_ITEMS, random_histories, user_index_of, write_dataset

from mtmh.artifacts import sealed, write_artifact
from mtmh.data.dataset import open_dataset
from mtmh.data.schema import HISTORIES, HISTORY_LENGTHS, ITEM_TABLE, ITEMS

HISTORY_LISTS = random_histories(23)


def test_items_come_in_index_order_with_the_columns_asked_for(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS)
    assert dataset.items(["text"]).to_pydict() == {"text": [f"item {item}" for item in range(NUM_ITEMS)]}
    names = ["item_id", "text", "image", "topic_l1", "topic_l2", "train_count", "first_seen"]
    assert dataset.items().column_names == names
    with pytest.raises(ValueError, match=r"items.parquet: no column colour; it has item_id, text"):
        dataset.items(["colour"])


def test_columns_come_some_rows_at_a_time(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS)
    batches = list(dataset.item_batches(["text", "item_id"], 7))
    assert {len(batch) for batch in batches[:-1]} == {7}
    assert pa.Table.from_batches(batches).equals(dataset.items(["text", "item_id"]))
    with pytest.raises(ValueError, match=r"items.parquet: no column colour"):
        list(dataset.item_batches(["colour"], 7))


@pytest.mark.parametrize(
    "item_ids",
    [
        np.random.default_rng(0).permutation(10**15 + np.arange(NUM_ITEMS)).tolist(),
        [f"sku-{item * 7919 % 61}-ü" for item in range(NUM_ITEMS)],
        [f"a stock-keeping unit, {item * 7919 % 61}-ü" for item in range(NUM_ITEMS)],
    ],
    ids=["int64", "string", "more than 15 bytes"],
)
def test_ids_are_found_whatever_their_type(tmp_path: Path, item_ids: list[Any]) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS, item_ids=item_ids)
    wanted = np.random.default_rng(1).integers(0, NUM_ITEMS, 100)
    assert dataset.find([item_ids[item] for item in wanted]).tolist() == wanted.tolist()
    assert dataset.item_ids[wanted].tolist() == [item_ids[item] for item in wanted]
    assert dataset.find(dataset.item_ids).tolist() == list(range(NUM_ITEMS))
    assert dataset.find([]).tolist() == []
    unknown = "zzz" if isinstance(item_ids[0], str) else 5
    assert dataset.find([unknown, item_ids[3]]).tolist() == [-1, 3]


def test_ids_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64-bit integers"):
        write_dataset(tmp_path / "a", HISTORY_LISTS).find(["10"])
    with pytest.raises(ValueError, match="64-bit integers"):
        write_dataset(tmp_path / "a", HISTORY_LISTS).find(np.array([10.0]))
    strings = write_dataset(tmp_path / "b", HISTORY_LISTS, item_ids=[f"i{item}" for item in range(NUM_ITEMS)])
    with pytest.raises(ValueError, match="strings"):
        strings.find([10])


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS, item_ids=[7, 7, *range(100, 98 + NUM_ITEMS)])
    with pytest.raises(ValueError, match=r"items.parquet: item id .*7.* more than once"):
        dataset.find([100])


def test_item_features_are_those_of_the_table(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS)
    folder = tmp_path / "dataset" / ITEM_TABLE
    indices = np.array([5, 0, 59, 5, 30])
    sparse, dense = dataset.item_table.gather(indices)
    assert sparse.keys() == ["item_id", "brand", "tags"]
    assert sparse.stride() == len(indices)
    assert sparse.values().dtype == sparse.lengths().dtype == torch.int64
    for name in sparse.keys():  # noqa: SIM118  (a KeyedJaggedTensor is no mapping)
        values, offsets = np.load(folder / f"{name}.values.npy"), np.load(folder / f"{name}.offsets.npy")
        bags = [bag.tolist() for bag in sparse[name].to_dense()]
        assert bags == [values[offsets[item] : offsets[item + 1]].tolist() for item in indices]
    assert dense.numpy().tolist() == np.load(folder / "float_features.npy")[indices].tolist()


def test_gathering_leaves_the_mapped_table_alone(tmp_path: Path) -> None:
    table = write_dataset(tmp_path / "dataset", HISTORY_LISTS).item_table
    indices = np.arange(NUM_ITEMS)
    hidden, _ = table.gather(indices, hide_id=indices % 2 == 0)
    again, _ = table.gather(indices)
    rows = np.asarray(table.columns["item_id"].values)
    assert hidden["item_id"].values().tolist() == np.where(indices % 2 == 0, 0, rows).tolist()
    assert again["item_id"].values().tolist() == rows.tolist()


@pytest.mark.parametrize("num_users", [1, 4, 100])
def test_evaluation_users_have_both_periods(tmp_path: Path, num_users: int) -> None:
    test = {row: [row, row + 1, 55] for row in (20, 2, 3, 11, 12, 7, 8)}
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS, test=test)
    sample = dataset.evaluation_users(num_users, seed=4)
    assert len(sample.user_index) == min(num_users, len(test))
    row_of = {int(user): row for row, user in enumerate(user_index_of(len(HISTORY_LISTS)))}
    for place, user in enumerate(sample.user_index.tolist()):
        history, answers = sample.histories.users(place, place + 1), sample.test.users(place, place + 1)
        assert history.items.tolist() == HISTORY_LISTS[row_of[user]]
        assert answers.items.tolist() == test[row_of[user]]
    assert dataset.evaluation_users(num_users, seed=4).user_index.tolist() == sample.user_index.tolist()


def test_another_seed_samples_other_users(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS, test={row: [1] for row in range(23)})
    samples = {tuple(dataset.evaluation_users(5, seed).user_index.tolist()) for seed in range(5)}
    assert len(samples) == 5


def test_no_evaluation_users_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test.parquet: no user has both"):
        write_dataset(tmp_path / "dataset", HISTORY_LISTS).evaluation_users(5, 0)


ARRAYS: list[tuple[str, Path, npt.NDArray[Any], str]] = [
    ("dtype", ITEM_TABLE / "train_count.npy", np.zeros(NUM_ITEMS, np.int32), r"train_count.npy: expected int64 \[60\]"),
    ("length", ITEM_TABLE / "train_count.npy", np.zeros(59, np.int64), r"expected int64 \[60\], found int64 \[59\]"),
    ("width", ITEM_TABLE / "float_features.npy", np.zeros((60, 3), np.float32), r"expected float32 \[60, 2\]"),
    ("nan", ITEM_TABLE / "float_features.npy", np.full((60, 2), np.nan, np.float32), r"item 0: NaN"),
    ("rows", ITEM_TABLE / "brand.values.npy", np.full(60, 7, np.int32), r"brand.values.npy: rows must lie in 0 to 6"),
    ("order", ITEM_TABLE / "brand.offsets.npy", np.r_[0, 60:0:-1, 60][:61] * 1, r"brand.offsets.npy: must run from"),
    ("negative", ITEM_TABLE / "brand.offsets.npy", np.r_[0, 5, 1:59, 60], r"brand.offsets.npy: offsets must not decr"),
    ("pickle", ITEM_TABLE / "train_count.npy", np.array([{}] * 60, object), r"train_count.npy: not a readable"),
]


@pytest.mark.parametrize(("file", "array", "message"), [case[1:] for case in ARRAYS], ids=[case[0] for case in ARRAYS])
def test_a_damaged_item_table_names_the_file(tmp_path: Path, file: Path, array: npt.NDArray[Any], message: str) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS, changes={file: array})
    with pytest.raises(ValueError, match=message):
        _ = dataset.item_table


def test_history_lengths_must_go_with_the_histories(tmp_path: Path) -> None:
    lengths = np.array([len(history) for history in HISTORY_LISTS], np.int32)
    short = write_dataset(tmp_path / "a", HISTORY_LISTS, changes={HISTORY_LENGTHS: lengths[:-1]})
    with pytest.raises(ValueError, match=r"histories.lengths.npy: expected int32 \[23\], found int32 \[22\]"):
        short.history_reader()
    lengths[7] += 1
    reader = write_dataset(tmp_path / "b", HISTORY_LISTS, changes={HISTORY_LENGTHS: lengths}).history_reader()
    assert len(reader.read(0).offsets) == 6
    with pytest.raises(ValueError, match=r"histories.parquet: row group 1: lengths of the histories differ"):
        reader.read(1)


def test_histories_outside_the_catalogue_are_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS)
    reader = dataset.history_reader()
    reader._num_items = 20  # stands for a catalogue that lost its tail
    with pytest.raises(ValueError, match=r"row group 0: item index \d+ .* outside the catalogue of 20"):
        reader.read(0)


def test_row_groups_are_read_once_while_cached(tmp_path: Path) -> None:
    reader = write_dataset(tmp_path / "dataset", HISTORY_LISTS).history_reader(cached_groups=2)
    first = reader.read(0)
    reader.read(1)
    assert reader.read(0) is first
    reader.read(2)  # drops 1, the group used longest ago
    assert reader.read(0) is first
    reader.read(1)
    reader.read(2)
    assert reader.read(0) is not first


def with_histories(path: Path, table: pa.Table) -> Path:
    """A copy of ``dataset`` beside ``path`` with other histories, under a manifest that fits."""
    source = path.with_name("dataset")
    write_dataset(source, HISTORY_LISTS, test={0: [1]})
    with write_artifact(path, "dataset", config={}) as writer:
        shutil.copytree(source, writer.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        pq.write_table(table, writer.folder / HISTORIES, compression="zstd")
        writer.summary.update(open_dataset(source).artifact.summary)
    return path


def test_histories_of_another_type_are_refused(tmp_path: Path) -> None:
    wide = pa.table({"user_index": [0], "items": pa.array([[1]], pa.list_(pa.int16()))})
    with pytest.raises(ValueError, match=r"column items: expected list<int32> or list<int64>, found list<"):
        open_dataset(with_histories(tmp_path / "wide", wide)).history_reader()
    lists = pa.array([[1], None] + 21 * [[2]], pa.list_(pa.int32()))
    nulls = open_dataset(with_histories(tmp_path / "nulls", pa.table({"items": lists})))
    with pytest.raises(ValueError, match=r"histories.parquet: column items: null lists"):
        nulls.history_reader().read(0)
    with pytest.raises(ValueError, match=r"histories.parquet: no column user_index; it has items"):
        nulls.evaluation_users(1, 0)


def test_a_test_user_without_history_is_named(tmp_path: Path) -> None:
    lists = pa.array(23 * [[2]], pa.list_(pa.int32()))
    table = pa.table({"user_index": np.arange(23), "items": lists})
    with pytest.raises(ValueError, match=r"histories.parquet: user_index 10\d\d is missing"):
        open_dataset(with_histories(tmp_path / "other", table)).evaluation_users(1, 0)


def test_damaged_parquet_names_the_file(tmp_path: Path) -> None:
    lists = pa.array([[item % 60 for item in range(500)]] * 23, pa.list_(pa.int32()))
    path = with_histories(tmp_path / "other", pa.table({"user_index": np.arange(23), "items": lists}))
    content = bytearray((path / HISTORIES).read_bytes())
    footer = int.from_bytes(content[-8:-4], "little") + 8
    content[4:-footer] = bytes(len(content) - footer - 4)
    (path / HISTORIES).write_bytes(content)
    with pytest.raises(ValueError, match=r"histories.parquet: row group 0: column items is damaged"):
        open_dataset(path).history_reader().read(0)
    (path / HISTORIES).write_bytes(bytes(len(content)))
    with pytest.raises(ValueError, match=r"histories.parquet: not a readable Parquet file"):
        open_dataset(path).history_reader()


def test_files_and_facts_are_checked_at_opening(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no dataset artifact here"):
        open_dataset(tmp_path / "nowhere")
    path = tmp_path / "dataset"
    write_dataset(path, HISTORY_LISTS)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["summary"]["num_items"]
    (path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(ValueError, match="not a valid dataset summary: num_items"):
        open_dataset(path)
    (path / ITEMS).unlink()
    with pytest.raises(ValueError, match=r"items.parquet: missing"):
        open_dataset(path)
