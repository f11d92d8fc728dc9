"""Kinds and values of events: from the source's columns to histories and test lists, and back through the readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_helpers import make_config

from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.schema import HISTORIES, TEST
from mtmh.prepare.prepare import prepare
from mtmh.prepare.sources.synthetic import SyntheticOptions, simulate

Labelled = tuple[str, int, float | None]  # kinds joined by +, timestamp, value
Row = tuple[int, int, int, str | None, float | None]  # user, item, time, kind, value


def prepared(folder: Path, rows: list[Row], columns: dict[str, str] | None = None, **data: Any) -> Dataset:
    folder.mkdir()
    names = ["user_id", "item_id", "timestamp", "kind", "stars"]
    arrays = [pa.array(column) for column in zip(*rows, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), folder / "events.parquet")
    columns = {"event": "kind", "value": "stars"} if columns is None else columns
    config = make_config(folder, events=["events.parquet"], columns=columns, **data)
    prepare(config, folder / "dataset")
    return open_dataset(folder / "dataset")


def read(dataset: Dataset, name: Path) -> dict[int, list[tuple[int, int, str, float | None]]]:
    users = dict(pq.read_table(dataset.artifact.path / "users.parquet").to_pydict().items())
    ids = dict(zip(users["user_index"], users["user_id"], strict=True))
    kinds = dataset.summary.event_kinds

    def names(mask: int) -> str:
        return "+".join(kind for bit, kind in enumerate(kinds) if mask >> bit & 1)

    return {
        ids[row["user_index"]]: [
            (int(dataset.item_ids[item]), time, names(mask), None if np.isnan(value) else value)
            for item, time, mask, value in zip(
                row["items"], row["timestamps"], row["events"], row["values"], strict=True
            )
        ]
        for row in pq.read_table(dataset.artifact.path / name).to_pylist()
    }


ROWS: list[Row] = [
    (1, 10, 1, "click", None),
    (1, 10, 2, "like", 3.0),  # the same run
    (1, 20, 3, None, 0.5),
    (1, 10, 4, "share", 2.0),
    (1, 30, 8, "click", 1.0),
    (1, 30, 9, "like", 5.0),  # the same run, but of T2
    (1, 30, 12, "buy", 4.0),
    (1, 40, 13, "click", 1.0),
    (1, 30, 14, "like", 6.0),
    (2, 30, 2, "click", 0.0),
    (2, 20, 5, "click", None),
    (2, 20, 11, "like", 7.0),
]


def test_a_run_keeps_the_kinds_and_the_largest_value_of_its_own_period(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "a", ROWS, split={"kind": "time", "cutoff": 9})
    assert dataset.summary.has_values
    # "buy" comes in T2 only, so it has no name in the dataset.
    assert dataset.summary.event_kinds == ["click", "like", "share"]
    assert read(dataset, HISTORIES) == {
        1: [(10, 1, "click+like", 3.0), (20, 3, "", 0.5), (10, 4, "share", 2.0), (30, 8, "click", 1.0)],
        2: [(30, 2, "click", 0.0), (20, 5, "click", None)],
    }
    # Item 30's run began in T1; what came of it later is in neither period.
    assert read(dataset, TEST) == {1: [(40, 13, "click", 1.0), (30, 14, "like", 6.0)]}


def test_with_a_cut_per_user_a_run_lies_in_one_period(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "a", ROWS, split={"kind": "user", "test_fraction": 0.4}, min_user_events=1)
    # "buy" is of item 30's run, whose first events lie before the cut: the cut falls between runs.
    assert read(dataset, HISTORIES)[1] == [
        (10, 1, "click+like", 3.0),
        (20, 3, "", 0.5),
        (10, 4, "share", 2.0),
        (30, 8, "buy+click+like", 5.0),
    ]
    assert read(dataset, HISTORIES)[2] == [(30, 2, "click", 0.0)]
    assert read(dataset, TEST) == {
        1: [(40, 13, "click", 1.0), (30, 14, "like", 6.0)],
        2: [(20, 5, "click+like", 7.0)],
    }


def test_events_of_one_item_and_instant_are_one_run(tmp_path: Path) -> None:
    rows: list[Row] = [(1, 20, 0, "click", 9.0)]
    rows += [(1, 10, 1, kind, value) for kind, value in (("click", 1.0), ("like", 4.0), ("share", 2.0))]
    rows += [(1, 20, 2, "click", 3.0), (1, 20, 2, "like", None), (1, 40, 8, "click", 1.0)]
    dataset = prepared(tmp_path / "a", rows, split={"kind": "time", "cutoff": 8})
    assert read(dataset, HISTORIES) == {
        1: [(20, 0, "click", 9.0), (10, 1, "click+like+share", 4.0), (20, 2, "click+like", 3.0)]
    }


def test_labels_change_nothing_else_and_are_absent_without_columns(tmp_path: Path) -> None:
    split = {"kind": "time", "cutoff": 9}
    plain = prepared(tmp_path / "plain", ROWS, columns={}, split=split)
    labelled = prepared(tmp_path / "labelled", ROWS, split=split)
    assert plain.summary.event_kinds == []
    assert not plain.summary.has_values
    for name in (HISTORIES, TEST):
        before = pq.read_table(plain.artifact.path / name)
        assert before.column_names == ["user_index", "items", "timestamps"]
        assert pq.read_table(labelled.artifact.path / name).select(before.column_names).equals(before)
    assert plain.history_reader(labels=True).read(0).events is None


def test_later_labels_change_nothing_of_the_past(tmp_path: Path) -> None:
    past = [row for row in ROWS if row[2] < 9]
    future = [(user, item, time, "like", 99.0) for user, item, time, *_ in ROWS if time >= 9]
    whole = prepared(tmp_path / "whole", ROWS, split={"kind": "time", "cutoff": 9})
    other = prepared(tmp_path / "other", [*past, *future], split={"kind": "time", "cutoff": 9})
    assert read(whole, HISTORIES) == read(other, HISTORIES)
    assert whole.summary.event_kinds == other.summary.event_kinds


def test_readers_give_labels_only_when_asked(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "a", ROWS, split={"kind": "time", "cutoff": 9})
    plain, labelled = (dataset.history_reader(labels=labels).read(0) for labels in (False, True))
    assert plain.events is plain.values is None
    assert np.array_equal(plain.items, labelled.items)
    table = pq.read_table(dataset.artifact.path / HISTORIES)
    assert labelled.events is not None
    assert labelled.values is not None
    assert labelled.events.tolist() == table["events"].combine_chunks().flatten().to_pylist()
    user = labelled.users(1, 2)
    assert user.values is not None
    np.testing.assert_array_equal(user.values, labelled.values[labelled.offsets[1] : labelled.offsets[2]])
    sample = dataset.evaluation_users(10, 0, labels=True)
    assert sample.test.events is not None
    assert sample.test.events.tolist() == [0b001, 0b010]


def test_too_many_kinds_are_refused(tmp_path: Path) -> None:
    rows: list[Row] = [(1, i, i, f"kind-{i}", 1.0) for i in range(40)]
    with pytest.raises(ValueError, match=r"40 kinds of events, at most 31.*keep_events"):
        prepared(tmp_path / "a", rows, split={"kind": "user"})
    with pytest.raises(ValueError, match=r"32 kinds of events before the cut, at most 31"):
        prepared(tmp_path / "b", rows, split={"kind": "time", "cutoff": 32})
    later = prepared(tmp_path / "c", rows, split={"kind": "time", "cutoff": 31})
    assert later.summary.event_kinds == sorted(f"kind-{i}" for i in range(31)), "what comes later does not count"
    assert [kinds for _, _, kinds, _ in read(later, HISTORIES)[1]] == [f"kind-{i}" for i in range(31)]
    assert {kinds for _, _, kinds, _ in read(later, TEST)[1]} == {""}


def test_the_simulator_likes_what_fits_the_user_and_what_appeals(tmp_path: Path) -> None:
    options = {"num_users": 300, "num_items": 400, "num_events": 30_000, "num_days": 20}
    simulate(SyntheticOptions.model_validate(options), 0, tmp_path)
    events = pa.concat_tables(pq.read_table(path) for path in sorted(tmp_path.glob("events-*.parquet")))
    liked = np.array(events["event"].to_pylist()) == "like"
    value = events["value"].to_numpy()
    assert 0.05 < liked.mean() < 0.3
    assert (value >= 0.0).all()
    assert (value <= 1.0).all()
    assert value[liked].mean() > value[~liked].mean() + 0.1
    creator = pq.read_table(tmp_path / "items.parquet")["creator"].to_numpy()[events["item_id"].to_numpy() - 1]
    counts = np.bincount(creator)
    rates = (np.bincount(creator, weights=liked) / np.maximum(counts, 1))[counts > 200]
    assert rates.std() > 0.04, "creators differ in appeal far beyond chance"
