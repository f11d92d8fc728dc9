"""Mistakes of a user stop prepare with a message that names them, and leave nothing behind."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_helpers import make_config, prepare_tables, write_tables

from mtmh.prepare.prepare import prepare

GOOD_EVENTS = [(user, (user + step) % 7, step) for user in range(10) for step in range(6)]
ITEMS = {"item_id": list(range(7)), "brand": list("aabbccd"), "price": [1.0] * 7}
CSV_LINES = ["user_id,item_id,timestamp", *(f"{u},{i},{t}" for u, i, t in GOOD_EVENTS)]


def expect_error(folder: Path, match: str, events: list[Any] = GOOD_EVENTS, items: Any = ITEMS, **data: Any) -> None:
    with pytest.raises(ValueError, match=match):
        prepare_tables(folder, events, items, **data)
    assert {path.name for path in folder.iterdir()} <= {"events.parquet", "items.parquet"}


def prepare_files(folder: Path, **data: Any) -> None:
    prepare(make_config(folder, **{"split": {"kind": "user"}, **data}), folder / "dataset")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            {"columns": {"timestamp": "when"}},
            r"events\.parquet: no column 'when'; found 'user_id', 'item_id', 'timestamp'",
        ),
        ({"columns": {"item_id": "sku"}}, r"events\.parquet: no column 'sku'"),
        ({"columns": {"topic_l1": "category"}}, r"items\.parquet: no column 'category'"),
        ({"columns": {"text": ["title"]}}, r"items\.parquet: no column 'title'"),
        ({"columns": {"content_embedding": "price"}}, r"column 'price' holds DOUBLE, expected lists of numbers"),
        ({"columns": {"topic_l1": "brand"}, "id_features": ["brand"]}, "'brand' is a topic, a label for evaluation"),
        ({"columns": {"topic_l1": "brand", "text": ["brand"]}}, "'brand' is a topic"),
        ({"float_features": ["brand"]}, r"items\.parquet: column 'brand' holds VARCHAR, expected numbers"),
        ({"id_features": ["price"]}, r"column 'price' holds DOUBLE, expected integers, strings, or lists"),
        ({"id_features": ["colour"]}, r"items\.parquet: no column 'colour'"),
        ({"id_features": ["brand", "brand"]}, "named twice"),
        ({"split": {"kind": "time", "cutoff": 99}}, r"split\.cutoff: 99.* events run from 0 to 5"),
        ({"split": {"kind": "time", "cutoff": 0}}, "leaves T1 or T2 empty"),
        ({"split": {"kind": "time", "cutoff": "2020-01-01"}}, "is a string, but the timestamps are numbers"),
        ({"split": {"kind": "time", "test_fraction": 0.01}}, "no point in time leaves at most 1%"),
        ({"split": {"kind": "time"}, "min_item_events": 100}, "no history is left with .* rare_item 50"),
        ({"options": {"keep_events": ["buy"]}}, r"keep_events needs data\.columns\.event"),
        ({"options": {"min_value": 1}}, r"min_value needs data\.columns\.value"),
        ({"options": {"minvalue": 1}}, r"data\.options\.minvalue: no such setting; did you mean min_value"),
        ({"items": ["nothing-*.parquet"]}, r"data\.items: no file .*nothing-"),
        ({"events": []}, r"data\.events: empty"),
        ({"items": [], "id_features": ["brand"]}, r"events\.parquet: no column 'brand'; found"),
        ({"items": ["events.json"]}, r"data\.items: no file"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, data: dict[str, Any], match: str) -> None:
    write_tables(tmp_path, GOOD_EVENTS, ITEMS)
    files = {"events": ["events.parquet"], "items": ["items.parquet"]}
    with pytest.raises(ValueError, match=match):
        prepare_files(tmp_path, **{**files, **data})
    assert {path.name for path in tmp_path.iterdir()} == {"events.parquet", "items.parquet"}


def test_features_that_the_source_does_not_offer(tmp_path: Path) -> None:
    config = {"source": "synthetic", "input": None, "options": {"num_events": 20_000}}
    with pytest.raises(ValueError, match="the source offers no 'colour', only creator, styles"):
        prepare_files(tmp_path, **config, id_features=["colour"])
    with pytest.raises(ValueError, match="the source offers no 'creator', only duration, price, quality"):
        prepare_files(tmp_path, **config, float_features=["creator"])
    (tmp_path / "items.csv").write_text("item_id,train_age\n1,2\n")
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\n1,1,1\n")
    with pytest.raises(ValueError, match="'train_age' cannot name a feature"):
        prepare_files(tmp_path, events=["e.csv"], items=["items.csv"], float_features=["train_age"])


def test_duplicate_item(tmp_path: Path) -> None:
    expect_error(tmp_path, r"items\.parquet: item_id 3 stands in 2 rows", items={"item_id": [1, 2, 3, 3]})


def test_wrong_types_of_ids_and_times(tmp_path: Path) -> None:
    expect_error(tmp_path, "'user_id' holds DOUBLE, expected 64-bit integers or strings", [(0.5, 1, 2)])
    expect_error(tmp_path, "'timestamp' holds VARCHAR, expected numbers or dates", [(1, 1, "soon")])
    expect_error(tmp_path, "item_id is VARCHAR in the events and BIGINT in the items", [(1, "a", 2)])


def test_nothing_left(tmp_path: Path) -> None:
    expect_error(tmp_path, "no event is left of 2; dropped: no_user 1, unknown_item 1", [(None, 1, 2), (1, 99, 2)])
    expect_error(tmp_path, "no item is left; dropped: no_item 1", items={"item_id": pa.array([None], pa.int64())})
    expect_error(
        tmp_path,
        "no user has events both before and after",
        [(1, 1, 1), (1, 2, 2), (2, 1, 9)],
        split={"kind": "time", "cutoff": 5},
    )


@pytest.mark.parametrize(
    ("embeddings", "match"),
    [
        ([[1.0, 2.0], [1.0, 2.0], [1.0]], "item 3 has 1 numbers, but 2 items have 2: expected one width"),
        ([[1.0, 2.0], [1.0, float("nan")], [1.0, 2.0]], "item 2 holds NaN, infinity or a missing number"),
        ([[1.0, 2.0], [1.0, 2.0], [None, 2.0]], "item 3 holds NaN, infinity or a missing number"),
    ],
)
def test_embeddings_that_do_not_fit(tmp_path: Path, embeddings: list[list[float]], match: str) -> None:
    events = [(user, 1 + (user + step) % 3, step) for user in range(4) for step in range(4)]
    expect_error(
        tmp_path,
        match,
        events,
        {"item_id": [1, 2, 3], "e": embeddings},
        columns={"content_embedding": "e"},
        split={"kind": "user"},
    )


def test_broken_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"user_id": [1] * 5000, "item_id": [1] * 5000, "timestamp": range(5000)}), tmp_path / "e.parquet"
    )
    whole = (tmp_path / "e.parquet").read_bytes()
    (tmp_path / "e.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"e\.parquet"):
        prepare_files(tmp_path, events=["e.parquet"])
    (tmp_path / "e.parquet").write_bytes(whole[:200] + b"x" * 200 + whole[400:])
    with pytest.raises(ValueError, match=r"e\.parquet: cannot be read"):
        prepare_files(tmp_path, events=["e.parquet"])
    # Among several files the broken one is named.
    (tmp_path / "d.parquet").write_bytes(whole)
    with pytest.raises(ValueError, match=r"e\.parquet: cannot be read"):
        prepare_files(tmp_path, events=["*.parquet"])


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([*CSV_LINES, "1,2"], r"e\.csv: .*Line: 62 .*Expected Number of Columns: 3 Found: 2"),
        ([*CSV_LINES, "1,2,3,4"], r"e\.csv: .*Line: 62 .*Expected Number of Columns: 3 Found: 4"),
        ([*CSV_LINES, '1,"2,3'], r"e\.csv: .*Line: 62 .*unterminated quote"),
        (
            [*CSV_LINES, "1,2,soon"],
            r"e\.csv: column 'timestamp' holds VARCHAR \(for example 'soon'\), expected numbers",
        ),
        (["user_id,item_id", "1,2"], r"e\.csv: no column 'timestamp'; found 'user_id', 'item_id'"),
        (["user_id,user_id,timestamp", "1,2,3"], r"e\.csv: expected distinct column names in the first line"),
        ([], r"e\.csv: empty file"),
    ],
)
def test_broken_csv(tmp_path: Path, lines: list[str], match: str) -> None:
    (tmp_path / "e.csv").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ValueError, match=match):
        prepare_files(tmp_path, events=["e.csv"])
    assert [path.name for path in tmp_path.iterdir()] == ["e.csv"]


def test_broken_gzip_and_encoding(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(CSV_LINES * 2000).encode(), compresslevel=0)
    (tmp_path / "e.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"e\.csv\.gz"):
        prepare_files(tmp_path, events=["e.csv.gz"])
    (tmp_path / "e.csv.gz").write_bytes(b"no gzip at all")
    with pytest.raises(ValueError, match=r"e\.csv\.gz"):
        prepare_files(tmp_path, events=["e.csv.gz"])
    (tmp_path / "e.csv").write_bytes(b"user_id,item_id,timestamp\n\xff\xfe,1,2\n")
    with pytest.raises(ValueError, match=r"e\.csv: .*not utf-8"):
        prepare_files(tmp_path, events=["e.csv"])


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,2,3\n")
    (tmp_path / "b.csv").write_text("user_id,timestamp,item_id\n1,2,3\n")
    with pytest.raises(ValueError, match=r"b\.csv: expected the same columns as in .*a\.csv"):
        prepare_files(tmp_path, events=["*.csv"])
    (tmp_path / "b.tsv").write_text("user_id\titem_id\ttimestamp\n1\t2\t3\n")
    with pytest.raises(ValueError, match="expected files of one format"):
        prepare_files(tmp_path, events=["a.csv", "b.tsv"])
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match=r"c\.json: unknown format; expected \.parquet"):
        prepare_files(tmp_path, events=["c.json"])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is no dataset artifact"):
        prepare_tables(tmp_path, GOOD_EVENTS, ITEMS)
    assert (tmp_path / "dataset" / "thesis.txt").read_text() == "precious"
