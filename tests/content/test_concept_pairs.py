"""The table of concepts, the order of its pairs, and which negatives of a batch are none."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_catalogue import write_dataset

from mtmh.config.content import EncoderTrainingConfig
from mtmh.content.concepts import PairDraw, PairOrder, false_negatives, open_concepts
from mtmh.data.dataset import Dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "dataset", {"item_id": [30, 10, 20]})


def write(path: Path, rows: Sequence[tuple[object, object, object]], id_type: pa.DataType | None = None) -> Path:
    ids, concepts, sources = zip(*rows, strict=True)
    pq.write_table(
        pa.table({"item_id": pa.array(ids, id_type or pa.int64()), "concept": concepts, "source": sources}), path
    )
    return path


ROWS = [
    (10, "#Baking", "hashtag"),
    (10, "how to bake", "query"),
    (20, " baking ", "generated"),
    (99, "baking", "query"),
    (None, "baking", "query"),
    (30, "  ", "query"),
    (30, None, "query"),
    (30, "Baking", "query"),
]


def test_reading(dataset: Any, tmp_path: Path) -> None:
    concepts = open_concepts(dataset, write(tmp_path / "c.parquet", ROWS), {"query": 0.5, "generated": 2.0})
    assert concepts.item.tolist() == [1, 1, 2, 0]
    assert [concepts.texts[number] for number in concepts.concept] == ["#Baking", "how to bake", "#Baking", "#Baking"]
    assert concepts.weight.tolist() == [1.0, 0.5, 2.0, 0.5]
    assert concepts.offsets.tolist() == [0, 1, 3, 4]
    assert concepts.values.tolist() == [0, 0, 1, 0]
    assert concepts.pairs_of_source == {"hashtag": 1, "query": 2, "generated": 1}
    assert concepts.dropped == {"empty concept": 2, "unknown item": 2, "weight 0": 0}


def timed(path: Path, times: pa.Array) -> Path:
    texts = [f"c{row}" for row in range(len(times))]
    table = {"item_id": [10] * len(times), "concept": texts, "source": ["query"] * len(times), "timestamp": times}
    pq.write_table(pa.table(table), path)
    return path


def test_concepts_of_the_test_period_are_left_out(tmp_path: Path) -> None:
    cut = write_dataset(tmp_path / "cut", {"item_id": [10]}, cutoff=100.0)
    for times in (pa.array([99, 100, 101, None, 5]), pa.array([99.9, 100.0, 1e9, np.nan, -5.0])):
        concepts = open_concepts(cut, timed(tmp_path / "c.parquet", times), {})
        assert concepts.texts == ["c0", "c4"]
        assert concepts.values.tolist() == [0, 1]
        assert concepts.pairs_of_source == {"query": 2}
        assert (concepts.dropped["test period"], concepts.dropped["no timestamp"]) == (2, 1)
        assert "left out: 2; without a time: 1" in concepts.test_period
    with pytest.raises(ValueError, match="no concept of any item"):
        open_concepts(cut, timed(tmp_path / "c.parquet", pa.array([100, 101])), {})


def test_times_of_concepts_are_compared_as_those_of_events(tmp_path: Path) -> None:
    day = datetime(2026, 3, 1, tzinfo=UTC)
    dates = [day - timedelta(microseconds=1), day, day + timedelta(days=1)]
    cut = write_dataset(tmp_path / "cut", {"item_id": [10]}, cutoff=day.timestamp(), timestamp_is_date=True)
    for kind in (pa.timestamp("us"), pa.timestamp("ns", "Europe/Paris"), pa.date32()):
        concepts = open_concepts(cut, timed(tmp_path / "c.parquet", pa.array(dates).cast(kind, safe=False)), {})
        assert concepts.texts == ["c0"]
    numbers = write_dataset(tmp_path / "numbers", {"item_id": [10]}, cutoff=1e12)
    with pytest.raises(ValueError, match="holds dates, but the events' timestamps are not known to be dates"):
        open_concepts(numbers, tmp_path / "c.parquet", {})
    with pytest.raises(ValueError, match="column timestamp is string, expected numbers or dates"):
        open_concepts(numbers, timed(tmp_path / "c.parquet", pa.array(["2026-03-01"])), {})


def test_without_an_instant_or_a_time_all_concepts_are_used_and_it_is_said(dataset: Any, tmp_path: Path) -> None:
    concepts = open_concepts(dataset, timed(tmp_path / "c.parquet", pa.array([1, 2])), {})  # split by user
    assert len(concepts) == 2
    assert "all are used" in concepts.test_period
    cut = write_dataset(tmp_path / "cut", {"item_id": [10, 20]}, cutoff=100.0)
    concepts = open_concepts(cut, write(tmp_path / "c.parquet", ROWS[:3]), {})
    assert len(concepts) == 3
    assert "no column timestamp" in concepts.test_period


def test_a_source_of_weight_0_gives_no_pairs_but_still_no_negatives(dataset: Any, tmp_path: Path) -> None:
    concepts = open_concepts(dataset, write(tmp_path / "c.parquet", ROWS), {"hashtag": 0.0})
    assert concepts.item.tolist() == [1, 2, 0]
    assert concepts.values.tolist() == [0, 0, 1, 0]
    assert concepts.dropped["weight 0"] == 1


def test_string_ids(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", {"item_id": ["b", "a"]}, id_type="string")
    rows = [("a", "x", "query"), ("b", "y", "query"), ("z", "y", "query")]
    concepts = open_concepts(dataset, write(tmp_path / "c.parquet", rows, pa.string()), {})
    assert concepts.item.tolist() == [1, 0]


def test_bad_tables(dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        open_concepts(dataset, tmp_path / "gone.parquet", {})
    pq.write_table(pa.table({"item_id": [10], "concept": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="no column source"):
        open_concepts(dataset, tmp_path / "c.parquet", {})
    pq.write_table(pa.table({"item_id": [10], "concept": [1], "source": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="column concept is int64, expected string"):
        open_concepts(dataset, tmp_path / "c.parquet", {})
    with pytest.raises(ValueError, match="no source tags; it has generated, hashtag, query"):
        open_concepts(dataset, write(tmp_path / "c.parquet", ROWS), {"tags": 1.0})
    with pytest.raises(ValueError, match="no concept of any item"):
        open_concepts(dataset, write(tmp_path / "c.parquet", [(99, "x", "query")]), {})
    with pytest.raises(ValueError, match="the dataset has int64 ids"):
        open_concepts(dataset, write(tmp_path / "c.parquet", [("ten", "x", "query")], pa.string()), {})


def many(tmp_path: Path, num_items: int = 12, num_pairs: int = 50) -> Any:
    rng = np.random.default_rng(0)
    dataset = write_dataset(tmp_path / "many", {"item_id": list(range(num_items))})
    rows = [
        (int(item), f"c{concept}", "query")
        for item, concept in zip(rng.integers(0, num_items, num_pairs), rng.integers(0, 8, num_pairs), strict=True)
    ]
    return open_concepts(dataset, write(tmp_path / "c.parquet", rows), {})


def test_an_epoch_takes_every_pair_once_and_any_step_can_be_asked_for(tmp_path: Path) -> None:
    concepts = many(tmp_path)
    order = PairOrder(concepts, 10, seed=1)
    assert order.steps_per_epoch == 5
    steps = [order.draw(step) for step in range(10)]
    for epoch in (steps[:5], steps[5:]):
        seen = sorted((i, c) for draw in epoch for i, c in zip(draw.item, draw.concept, strict=True))
        assert seen == sorted(zip(concepts.item, concepts.concept, strict=True))
    assert not np.array_equal(steps[0].item, steps[5].item)
    again = PairOrder(concepts, 10, seed=1).draw(7)
    assert np.array_equal(again.item, steps[7].item)
    assert np.array_equal(again.concept, steps[7].concept)
    with pytest.raises(ValueError, match=r"batch_size \(51\) exceeds the pairs of item and concept \(50\)"):
        PairOrder(concepts, 51, seed=1)


def test_false_negatives_are_all_columns_whose_concept_is_one_of_the_rows_item(tmp_path: Path) -> None:
    concepts = many(tmp_path)
    draw = PairOrder(concepts, 20, seed=2).draw(0)
    rows, columns = false_negatives(concepts, draw)
    naive = {
        (row, column)
        for row, item in enumerate(draw.item)
        for column, concept in enumerate(draw.concept)
        if concept in concepts.values[concepts.offsets[item] : concepts.offsets[item + 1]]
    }
    assert len(rows) == len(naive)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == naive
    assert {(place, place) for place in range(20)} <= naive


def test_items_without_concepts_do_not_disturb(tmp_path: Path) -> None:
    concepts = many(tmp_path, num_items=200)
    item = int(concepts.item[0])
    draw = PairDraw(np.array([item]), concepts.values[concepts.offsets[item] :][:1], np.ones(1, np.float32))
    rows, columns = false_negatives(concepts, draw)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])


def test_an_empty_table_with_a_timestamp_has_no_concept(tmp_path: Path) -> None:
    cut = write_dataset(tmp_path / "cut", {"item_id": [10]}, cutoff=100)
    path = timed(tmp_path / "c.parquet", pa.array([1]))
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match="no concept of any item"):
        open_concepts(cut, path, {})


def test_a_run_ends_with_its_epochs_or_its_steps_whatever_comes_first(dataset: Dataset, tmp_path: Path) -> None:
    order = PairOrder(open_concepts(dataset, write(tmp_path / "c.parquet", ROWS), {}), batch_size=2, seed=0)
    assert order.steps_per_epoch == 2
    runs = [EncoderTrainingConfig(epochs=3, max_steps=most) for most in (None, 5, 100)]
    assert [run.num_steps(order.steps_per_epoch) for run in runs] == [6, 5, 6]
