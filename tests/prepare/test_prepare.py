"""Prepare on tiny tables: cleaning, cuts, filters and the wall between T1 and T2, against a naive reference."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepare_helpers import Event, Feature, Written, files_of, make_config, naive_prepare, prepare_tables
from rich.console import Console

from mtmh.data.schema import (
    HISTORIES,
    HISTORY_LENGTHS,
    ITEM_FEATURES,
    ITEM_TABLE,
    ITEMS,
    USERS,
    DatasetSummary,
    vocabulary_file,
)
from mtmh.prepare.prepare import prepare
from mtmh.prepare.report import summary_table
from mtmh.prepare.scratch import Workspace


def random_events(seed: int, num_events: int = 600, num_users: int = 30, num_items: int = 40) -> list[Event]:
    rng = np.random.default_rng(seed)
    users, times = rng.integers(num_users, size=num_events), rng.integers(1000, size=num_events)
    items = rng.integers(num_items, size=num_events) * rng.integers(2, size=num_events)
    return list(zip(users.tolist(), items.tolist(), times.tolist(), strict=True))


maybe_id = st.one_of(st.none(), st.integers(0, 5))
event_lists = st.lists(st.tuples(maybe_id, maybe_id, st.one_of(st.none(), st.integers(0, 20))), max_size=40)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=event_lists,
    kind=st.sampled_from(["time", "user"]),
    limits=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    with_items=st.booleans(),
)
def test_equals_naive_reference(
    tmp_path: Path, events: list[Event], kind: str, limits: tuple[int, int, int], with_items: bool
) -> None:
    # A core of clean rows, so that a dataset always comes out.
    events = [*events, *((100, time % 4, time) for time in range(20))]
    items = {"item_id": [0, 1, 2, 3, 9]} if with_items else None
    min_user_events, min_item_events, max_history = limits
    split: dict[str, Any] = {"kind": "time", "cutoff": 12} if kind == "time" else {"kind": "user", "test_fraction": 0.3}
    artifact = prepare_tables(
        tmp_path,
        events,
        items,
        split=split,
        min_user_events=min_user_events,
        min_item_events=min_item_events,
        max_history=max_history,
    )
    written = Written.read(artifact.path)
    if with_items:
        order = written.item_ids
    else:
        # The tie order is the hash order of all items; the last ones of the index are unknown before the cut.
        full = {"item_id": sorted(set(written.item_ids))}
        again = prepare_tables(tmp_path / "again", events, full, split=split)
        order = Written.read(again.path).item_ids
    histories, test, drops = naive_prepare(
        events,
        order,
        known_items=set(items["item_id"]) if items else None,
        cutoff=12 if kind == "time" else None,
        test_fraction=0.3,
        min_user_events=min_user_events,
        min_item_events=min_item_events,
        max_history=max_history,
    )
    assert written.histories == histories
    assert written.test == test
    summary = DatasetSummary.model_validate(artifact.summary)
    assert summary.dropped_events == dict(drops)
    assert summary.num_events_read == len(events)
    assert summary.num_train_events + summary.num_test_events + sum(drops.values()) == len(events)
    train_count = np.load(artifact.path / ITEM_TABLE / "train_count.npy")
    seen = [item for history in histories.values() for item, _ in history]
    assert train_count.tolist() == [seen.count(item) for item in written.item_ids]
    assert summary.num_fresh_items == int((train_count == 0).sum())


@pytest.mark.parametrize("test_fraction", [0.1, 0.2, 0.5])
def test_time_cut_leaves_at_most_the_fraction_behind(tmp_path: Path, test_fraction: float) -> None:
    events = random_events(1)
    artifact = prepare_tables(tmp_path, events, split={"kind": "time", "test_fraction": test_fraction})
    times = sorted(event[2] for event in events)
    allowed = test_fraction * len(times)
    expected = min(t for t in times if sum(other >= t for other in times) <= allowed)
    assert artifact.summary["cutoff"] == expected


def test_histories_come_in_hash_order_of_users_and_in_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtmh.prepare.write_histories.ROW_GROUP_EVENTS", 50)
    split = {"kind": "user"}
    whole = prepare_tables(tmp_path, random_events(2), split=split, out=tmp_path / "whole")
    users = pq.read_table(whole.path / USERS)["user_id"].to_pylist()
    assert users != sorted(users)
    lengths = np.load(whole.path / HISTORY_LENGTHS)
    before = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    metadata = pq.ParquetFile(whole.path / HISTORIES).metadata
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert rows == np.unique(before // 50, return_counts=True)[1].tolist()
    # How many users are handled at a time makes no difference.
    monkeypatch.setattr("mtmh.prepare.duckdb_engine.RANGE_EVENTS", 32)
    bars: dict[str, list[int]] = {}
    monkeypatch.setattr(Workspace, "advance", lambda work, done: bars.setdefault(_bar(work), []).append(done))
    pieces = prepare_tables(tmp_path, random_events(2), split=split, out=tmp_path / "pieces")
    assert files_of(pieces.path) == files_of(whole.path)
    assert bars["write histories"] == bars["split into T1 and T2"] == sorted(set(bars["write histories"]))
    assert len(bars["write histories"]) > 2
    # Nor how many bits the codes have.
    monkeypatch.setattr("mtmh.prepare.statements.LARGEST_INTEGER", 3)
    wide = prepare_tables(tmp_path, random_events(2), split=split, out=tmp_path / "wide")
    assert files_of(wide.path) == files_of(whole.path)


def _bar(work: Workspace) -> str:
    return work.progress.tasks[-1].description


def test_a_cut_between_two_whole_timestamps(tmp_path: Path) -> None:
    events = random_events(3)
    time = sorted(event[2] for event in events)[len(events) * 3 // 4]
    at, between, behind = (
        Written.read(prepare_tables(tmp_path / str(cut), events, split={"kind": "time", "cutoff": cut}).path)
        for cut in (time, time + 0.5, time + 1)
    )
    assert (between.histories, between.test) == (behind.histories, behind.test)
    assert between.histories != at.histories


def items_table(num_items: int = 40) -> pa.Table:
    rng = np.random.default_rng(7)
    price = rng.lognormal(size=num_items)
    price[3] = np.nan
    price[4] = np.inf
    return pa.table(
        {
            "item_id": list(range(num_items)),
            "brand": [None if i % 11 == 0 else f"brand {i % 5}" for i in range(num_items)],
            "tags": [[f"t{i % 3}", f"t{i % 7}", f"t{i % 3}"][: i % 4] for i in range(num_items)],
            "price": price,
            "topic": [f"topic {i % 4}" for i in range(num_items)],
            "title": [f"item number {i}" for i in range(num_items)],
        }
    )


FEATURES: dict[str, Any] = {
    "id_features": ["brand", "tags"],
    "float_features": ["price"],
    "columns": {"text": ["title"], "topic_l1": "topic"},
}


def test_later_events_change_nothing_of_the_past(tmp_path: Path) -> None:
    past = [event for event in random_events(3) if event[2] < 800]
    future = [event for event in random_events(3) if event[2] >= 800]
    other = [(user + 20, 39 - item, 801 + time % 50) for user, item, time in future]
    split = {"kind": "time", "cutoff": 800}

    def run(name: str, later: list[Event]) -> dict[str, bytes]:
        artifact = prepare_tables(tmp_path / name, past + later, items_table(), split=split, **FEATURES)
        files = files_of(artifact.path)
        del files["test.parquet"]
        return files

    first = run("first", future)
    assert run("second", other) == first
    assert run("third", future[:1] + other[:1]) == first
    assert {"items.parquet", "histories.parquet", "users.parquet", "item_table/brand.values.npy"} <= set(first)


def test_later_events_change_nothing_of_the_past_with_a_cut_per_user(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    past = [(u, int(rng.integers(15)) * 2 + t % 2, t) for u in range(10) for t in range(8)]
    split = {"kind": "user", "test_fraction": 0.2}

    def run(name: str, offset: int) -> dict[str, bytes]:
        later = [(u, 30 + (u + t + offset) % 10, t) for u in range(10) for t in (8, 9)]
        artifact = prepare_tables(tmp_path / name, past + later, items_table(), split=split, **FEATURES)
        files = files_of(artifact.path)
        del files["test.parquet"]
        return files

    assert run("first", 0) == run("second", 5)


def test_a_number_of_events_of_each_user_can_be_held_out(tmp_path: Path) -> None:
    events = [(user, 10 * user + step, step) for user in range(4) for step in range(user + 4)]
    written = Written.read(prepare_tables(tmp_path, events, split={"kind": "user", "test_events": 2}).path)
    for user in range(4):
        items = [10 * user + step for step in range(user + 4)]
        assert [item for item, _ in written.histories[user]] == items[:-2]
        assert [item for item, _ in written.test[user]] == items[-2:]


def test_items_that_only_the_future_names_come_last(tmp_path: Path) -> None:
    past = [(user, user % 3 + step, step) for user in range(6) for step in range(4)]
    split = {"kind": "time", "cutoff": 4}
    little = prepare_tables(tmp_path / "a", [*past, (0, 2, 9)], split=split)
    much = prepare_tables(tmp_path / "b", [*past, *((1, item, 9 + item) for item in range(50, 80))], split=split)
    known = Written.read(little.path).item_ids
    assert Written.read(much.path).item_ids[: len(known)] == known
    assert (much.path / HISTORIES).read_bytes() == (little.path / HISTORIES).read_bytes()
    assert all(rows == [0] for rows in Feature.read(much.path, "item_id").rows[len(known) :])
    assert much.summary["num_fresh_items"] == 30


def test_item_order_is_seeded_and_not_popularity(tmp_path: Path) -> None:
    events = random_events(4)
    runs = [
        prepare_tables(tmp_path / str(i), events, split={"kind": "user"}, seed=seed) for i, seed in enumerate([5, 5, 6])
    ]
    first, second, third = (files_of(run.path) for run in runs)
    assert first == second
    assert first["items.parquet"] != third["items.parquet"]
    assert first["histories.parquet"] != third["histories.parquet"]
    ids = Written.read(runs[0].path).item_ids
    assert ids != sorted(ids)
    counts = np.load(runs[0].path / ITEM_TABLE / "train_count.npy")
    assert abs(np.corrcoef(np.arange(len(counts)), counts)[0, 1]) < 0.5


def test_vocabularies_come_from_items_with_training_events(tmp_path: Path) -> None:
    events = [event for event in random_events(5) if event[1] < 30 or event[2] > 900]
    table = items_table()
    artifact = prepare_tables(
        tmp_path, events, table, split={"kind": "time", "cutoff": 900}, min_feature_count=5, **FEATURES
    )
    ids = Written.read(artifact.path).item_ids
    train_count = np.load(artifact.path / ITEM_TABLE / "train_count.npy")
    seen = {item for item, count in zip(ids, train_count, strict=True) if count}
    assert 0 < len(seen) < len(ids)

    item_rows = Feature.read(artifact.path, "item_id").rows
    assert [row for (row,) in item_rows if row] == list(range(1, len(seen) + 1))
    assert {item for item, (row,) in zip(ids, item_rows, strict=True) if row} == seen

    num_rows = {f["name"]: f["num_rows"] for f in artifact.summary["features"]["id_features"]}
    assert num_rows["item_id"] == len(seen) + 1
    for name in ("brand", "tags"):
        raw = dict(zip(table["item_id"].to_pylist(), table[name].to_pylist(), strict=True))
        values = {i: set(v if isinstance(v, list) else [v]) - {None} for i, v in raw.items()}
        carriers = [value for item in seen for value in values[item]]
        vocabulary = {value for value in carriers if carriers.count(value) >= 5}
        assert num_rows[name] == len(vocabulary) + 1
        # One row a value, the same wherever the value stands; row 0 where no value is known.
        row_of: dict[str, int] = {}
        for item, rows in zip(ids, Feature.read(artifact.path, name).rows, strict=True):
            known = values[item] & vocabulary
            assert len(rows) == max(1, len(known))
            assert (rows == [0]) == (not known)
            assert rows == sorted(set(rows))
            if len(known) == 1:
                assert row_of.setdefault(next(iter(known)), rows[0]) == rows[0]
        for item, rows in zip(ids, Feature.read(artifact.path, name).rows, strict=True):
            known = values[item] & vocabulary
            assert {row_of[v] for v in known if v in row_of} <= set(rows)
        assert set(row_of.values()) <= set(range(1, len(vocabulary) + 1))
        kept = pq.read_table(artifact.path / vocabulary_file(name)).to_pydict()
        assert kept["row"] == list(range(1, len(vocabulary) + 1))
        assert set(kept["value"]) == vocabulary
        assert row_of.items() <= dict(zip(kept["value"], kept["row"], strict=True)).items()
    items = pq.read_table(artifact.path / vocabulary_file("item_id"))
    assert items.schema == pa.schema([("value", table["item_id"].type), ("row", pa.int32())])
    assert dict(zip(*items.to_pydict().values(), strict=True)) == {
        item: row for item, (row,) in zip(ids, item_rows, strict=True) if row
    }


def test_float_features_are_standardised_with_training_items(tmp_path: Path) -> None:
    events = [event for event in random_events(6) if event[1] < 30 or event[2] > 900]
    table = items_table()
    artifact = prepare_tables(tmp_path, events, table, split={"kind": "time", "cutoff": 900}, **FEATURES)
    written = Written.read(artifact.path)
    first_seen: dict[int, int] = {}
    for history in written.histories.values():
        for item, time in history:
            first_seen[item] = min(time, first_seen.get(item, time))
    train_count = np.load(artifact.path / ITEM_TABLE / "train_count.npy")
    seen = train_count > 0
    prices = table["price"].to_numpy()
    prices = np.where(np.isfinite(prices), prices, np.nan)
    raw = {
        "price": [prices[item] for item in written.item_ids],
        "log_train_count": np.where(seen, np.log(1.0 + train_count), np.nan),
        "train_age": [900 - first_seen[item] if item in first_seen else np.nan for item in written.item_ids],
    }
    floats = np.load(artifact.path / ITEM_TABLE / "float_features.npy", allow_pickle=False)
    assert floats.dtype == np.float32
    assert artifact.summary["features"]["float_features"] == list(raw)
    for column, values in enumerate(raw.values()):
        value = np.asarray(values, np.float64)
        mean, deviation = np.nanmean(value[seen]), np.nanstd(value[seen])
        expected = np.where(np.isnan(value), 0.0, (value - mean) / deviation)
        np.testing.assert_allclose(floats[:, column], expected, rtol=1e-5, atol=1e-6)


def test_features_are_kept_as_the_source_has_them(tmp_path: Path) -> None:
    """For filters: a value that is too rare for the vocabulary, or of an item that only the test period knows, too."""
    table = pa.table(
        {
            "item_id": ["a", "b", "c"],
            "brand": ["Zoë", None, "acme"],
            "tags": pa.array([["x", "w", "x", None], [], None], pa.list_(pa.string())),
            "size": pa.array([40, 41, None], pa.int32()),
            "price": [1.1, float("nan"), 3.0],
        }
    )
    events = [(user, item, step) for user in range(3) for step, item in enumerate(["a", "b", "a", "c"])]
    artifact = prepare_tables(
        tmp_path,
        events,
        table,
        split={"kind": "time", "cutoff": 3},
        min_feature_count=2,
        id_features=["brand", "tags", "size"],
        float_features=["price"],
    )
    kept = pq.read_table(artifact.path / ITEM_FEATURES)
    assert [str(kind).replace("item: ", "element: ") for kind in kept.schema.types] == [
        "list<element: string>",
        "list<element: string>",
        "list<element: int64>",
        "double",
    ]
    rows = dict(zip(Written.read(artifact.path).item_ids, kept.to_pylist(), strict=True))
    assert rows == {
        "a": {"brand": ["Zoë"], "tags": ["w", "x"], "size": [40], "price": 1.1},
        "b": {"brand": [], "tags": [], "size": [41], "price": None},
        "c": {"brand": ["acme"], "tags": None, "size": [], "price": 3.0},
    }
    bare = prepare_tables(tmp_path, events, table, split={"kind": "user"}, popularity_features=False)
    assert not (bare.path / ITEM_FEATURES).exists()


def test_constant_and_absent_floats(tmp_path: Path) -> None:
    table = pa.table({"item_id": [1, 2, 3], "same": [4.0, 4.0, 9.0], "none": pa.array([None] * 3, pa.float64())})
    events = [(user, item, step) for user in range(3) for step, item in enumerate([1, 2, 1, 3])]
    artifact = prepare_tables(
        tmp_path,
        events,
        table,
        split={"kind": "time", "cutoff": 3},
        float_features=["same", "none"],
        popularity_features=False,
    )
    np.testing.assert_array_equal(np.load(artifact.path / ITEM_TABLE / "float_features.npy"), np.zeros((3, 2)))
    bare = prepare_tables(tmp_path, events, table, split={"kind": "user"}, popularity_features=False)
    assert np.load(bare.path / ITEM_TABLE / "float_features.npy").shape == (3, 0)


def test_items_file_keeps_text_topics_and_embeddings(tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": ["a", "b", "c", None],
            "title": ["Red", None, " Blue ", "x"],
            "maker": ["Acme", None, "", "x"],
            "picture": ["a.png", None, None, None],
            "l1": ["T", "", "T", "T"],
            "l2": ["U", None, "V", "V"],
            "emb": [[1.0, 2.0], None, [3.0, 4.0], [0.0, 0.0]],
        }
    )
    events = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "a", 1), ("v", "c", 2)]
    artifact = prepare_tables(
        tmp_path,
        events,
        table,
        split={"kind": "user"},
        min_user_events=1,
        columns={
            "text": ["title", "maker"],
            "image": "picture",
            "topic_l1": "l1",
            "topic_l2": "l2",
            "content_embedding": "emb",
        },
    )
    items = pq.read_table(artifact.path / ITEMS)
    assert items.schema.field("content_embedding").type == pa.list_(pa.float32(), 2)
    rows = {row["item_id"]: row for row in items.to_pylist()}
    assert rows["a"] | {"train_count": 0} == {
        "item_id": "a",
        "text": "Red Acme",
        "image": "a.png",
        "topic_l1": "T",
        "topic_l2": "U",
        "train_count": 0,
        "first_seen": 1,
        "content_embedding": [1.0, 2.0],
    }
    assert rows["b"]["text"] is None
    assert rows["b"]["topic_l1"] is None
    assert rows["b"]["content_embedding"] is None
    assert rows["c"]["text"] == "Blue"
    assert artifact.summary["dropped_items"] == {"no_item": 1}
    assert artifact.summary["id_type"] == "string"
    assert artifact.summary["has_topics"]
    assert artifact.summary["content_embedding_dim"] == 2


def test_order_only_sources_have_no_age(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text(
        "user_id,product_id,sequence\n" + "".join(f"u{u},p{(u + s) % 5},{s}\n" for u in range(4) for s in range(5))
    )
    (tmp_path / "products.csv").write_text(
        "product_id,title,brand,category_l1,category_l2\n" + "".join(f"p{i},t{i},b,c,d\n" for i in range(5))
    )
    config = make_config(tmp_path, source="amazon", split={"kind": "user"})
    artifact = prepare(config, tmp_path / "out")
    assert artifact.summary["features"]["float_features"] == ["log_train_count"]


def test_artifact_replaces_an_older_one_and_appears_whole(tmp_path: Path) -> None:
    first = prepare_tables(tmp_path, random_events(8), split={"kind": "user"})
    with pytest.raises(ValueError, match="no history is left"):
        prepare_tables(tmp_path, [(1, 2, 3), (2, 2, 3), (2, 3, 4)], split={"kind": "user"}, min_user_events=9)
    assert {p.name for p in tmp_path.iterdir()} == {"events.parquet", "dataset"}
    first.verify()
    second = prepare_tables(tmp_path, random_events(9), split={"kind": "user"})
    second.verify()
    assert second.manifest.files != first.manifest.files
    assert not any("scratch" in name for name in second.manifest.files)
    assert json.loads((second.path / "manifest.json").read_text())["config"]["data"]["source"] == "tables"


def test_summary_table_names_every_reason(tmp_path: Path) -> None:
    events = [
        (1, 1, 1),
        (1, 1, 2),
        (1, 2, 3),
        (1, 3, 4),
        (None, 1, 1),
        (1, None, 1),
        (1, 1, None),
        (1, 99, 5),
        (2, 1, 1),
    ]
    items = {"item_id": [1, 2, 3, None]}
    artifact = prepare_tables(tmp_path, events, items, split={"kind": "user"})
    Console(file=(screen := io.StringIO()), width=120).print(summary_table(artifact))
    text = screen.getvalue()
    for reason in ("no user", "no item", "no timestamp", "unknown item", "consecutive repeat", "short history"):
        assert f"dropped events: {reason}" in text
    assert "dropped items: no item" in text


@pytest.mark.parametrize(
    ("first", "shown"), [(1_700_000_000, "2023-11-14 22:13:20 UTC"), (100, "first instant of the test period │ 100")]
)
def test_summary_table_shows_a_date_as_a_date_and_an_order_as_a_number(first: int, shown: str, tmp_path: Path) -> None:
    events = [(user, item, first - 8 + item) for user in range(5) for item in range(10)]
    artifact = prepare_tables(tmp_path, events, {"item_id": list(range(10))}, split={"kind": "time"})
    Console(file=(screen := io.StringIO()), width=120).print(summary_table(artifact))
    assert re.sub(" +", " ", shown) in re.sub(" +", " ", screen.getvalue())


def test_memory_limit_too_small_is_named(tmp_path: Path) -> None:
    events = random_events(1, num_events=200_000, num_users=100_000, num_items=50_000)
    with pytest.raises(ValueError, match=r"data\.memory_limit_gb: 0\.002 is too little"):
        prepare_tables(tmp_path, events, split={"kind": "user"}, memory_limit_gb=0.002)
