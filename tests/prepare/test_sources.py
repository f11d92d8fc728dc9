"""Adapters on tiny files in the original formats; on the real data where ``MTMH_DATA`` names their folder."""

from __future__ import annotations

import datetime
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_helpers import Feature, Written, make_config

from mtmh.artifacts import Artifact
from mtmh.config import load_config, recipe_names
from mtmh.data.schema import ITEM_TABLE, ITEMS
from mtmh.prepare.prepare import prepare

DATA = os.environ.get("MTMH_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="set MTMH_DATA to the folder with the real data sets")


def run(folder: Path, source: str, **data: Any) -> Artifact:
    data = {"split": {"kind": "user"}, "min_user_events": 1, **data}
    return prepare(make_config(folder, source=source, **data), folder / "dataset")


def items_of(artifact: Artifact) -> dict[Any, dict[str, Any]]:
    return {row["item_id"]: row for row in pq.read_table(artifact.path / ITEMS).to_pylist()}


def write_movielens(folder: Path) -> None:
    # Mixed line ends, as GroupLens ships them.
    (folder / "ratings.csv").write_bytes(
        b"userId,movieId,rating,timestamp\n"
        b"1,10,5.0,100\r\n1,20,3.0,110\r\n1,30,3.5,120\r\n1,40,4.0,130\r\n2,10,4.0,100\r\n2,30,,101\r\n2,99,5.0,102\r\n2,40,5.0,103\r\n"
    )
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        '10,"Matrix, The (1999)",Action|Sci-Fi\n'
        "20,Heat (1995),Thriller\n"
        "30,No Year,(no genres listed)\n"
        "40,Up (2009) ,Comedy|Animation\n"
    )


def test_movielens(tmp_path: Path) -> None:
    write_movielens(tmp_path)
    artifact = run(tmp_path, "movielens", popularity_features=False)
    assert artifact.summary["dropped_events"] == {"low_rating": 1, "no_rating": 1, "unknown_item": 1}
    items = items_of(artifact)
    assert items[10] == {
        "item_id": 10,
        "text": "Matrix, The",
        "image": None,
        "topic_l1": "Action",
        "topic_l2": "Action|Sci-Fi",
        "train_count": 2,
        "first_seen": 100,
    }
    assert (items[30]["topic_l1"], items[30]["topic_l2"], items[30]["text"]) == (None, None, "No Year")
    assert (items[40]["text"], items[40]["topic_l1"], items[40]["topic_l2"]) == ("Up", "Comedy", "Animation|Comedy")
    assert artifact.summary["features"] == {
        "id_features": [{"name": "item_id", "num_rows": 3}],
        "float_features": ["year"],
        "content_dim": 0,
    }
    written = Written.read(artifact.path)
    assert written.histories == {1: [(10, 100), (30, 120)], 2: [(10, 100)]}
    assert written.test == {1: [(40, 130)], 2: [(40, 103)]}
    # 10 alone has a year among the items with training events.
    assert np.load(artifact.path / ITEM_TABLE / "float_features.npy").tolist() == [[0.0]] * 4


def test_movielens_options(tmp_path: Path) -> None:
    write_movielens(tmp_path)
    artifact = run(tmp_path, "movielens", options={"min_rating": 2.5})
    assert "low_rating" not in artifact.summary["dropped_events"]
    with pytest.raises(ValueError, match=r"data\.options\.min_rating"):
        run(tmp_path, "movielens", options={"min_rating": 7})
    (tmp_path / "movies.csv").unlink()
    with pytest.raises(ValueError, match=r"no file movies\.csv"):
        run(tmp_path, "movielens")
    with pytest.raises(ValueError, match=r"data\.input: not set"):
        run(tmp_path, "movielens", input=None)
    with pytest.raises(ValueError, match=r"data\.input: .*nowhere is no folder"):
        run(tmp_path, "movielens", input=tmp_path / "nowhere")


def write_complete_journey(folder: Path) -> None:
    products = [
        "product_id,manufacturer_id,department,brand,product_category,product_type,package_size",
        "1,2,PASTRY,Private,BREAD,BREAD:ITALIAN/FRENCH,12 OZ",
        "2,3,PASTRY,Private,BREAD,BREAD:ITALIAN/FRENCH,24 OZ",
        "3,2,PASTRY,National,BREAD,BREAD,",
        "4,4,GROCERY,National,SOUP,CONDENSED SOUP,10 OZ",
        "5,4,COUPON,National,COUPON,COUPON,",
        "6,4,GROCERY,National,,,",
    ]
    days = [("01", 2), ("02", 1), ("03", 3), ("04", 4), ("05", 5), ("06", 6), ("07", 99)]
    lines = [
        f"{user},{product},{quantity},2017-01-{day} 10:00:00"
        for user in (7, 8)
        for day, product in days
        for quantity in ("1.0",)
    ]
    lines += ["7,4,0.0,2017-01-09 10:00:00", ",4,1.0,2017-01-09 10:00:00"]
    header = "household_id,product_id,quantity,transaction_timestamp"
    (folder / "products.csv.gz").write_bytes(gzip.compress("\n".join(products).encode()))
    (folder / "transactions_sample.csv.gz").write_bytes(gzip.compress("\n".join([header, *lines]).encode()))


def test_complete_journey_products(tmp_path: Path) -> None:
    write_complete_journey(tmp_path)
    artifact = run(tmp_path, "complete-journey", split={"kind": "time", "cutoff": "2017-01-03"})
    assert artifact.summary["dropped_events"] == {"no_quantity": 1, "no_user": 1, "unknown_item": 4}
    assert artifact.summary["dropped_items"] == {"not_a_product": 1}
    items = items_of(artifact)
    assert {item: row["text"] for item, row in items.items()} == {
        1: "italian/french private 12 oz",
        2: "italian/french private 24 oz",
        3: "national",
        4: "condensed national 10 oz",
        6: "national",
    }
    assert (items[4]["topic_l1"], items[4]["topic_l2"]) == ("GROCERY", "SOUP")
    first = int(datetime.datetime(2017, 1, 1, 10, tzinfo=datetime.UTC).timestamp())
    assert artifact.summary["cutoff"] == first - 10 * 3600 + 2 * 86400
    assert Written.read(artifact.path).histories[7] == [(2, first), (1, first + 86400)]
    assert [f["name"] for f in artifact.summary["features"]["id_features"]] == ["item_id", "manufacturer_id", "brand"]


def test_complete_journey_groups(tmp_path: Path) -> None:
    write_complete_journey(tmp_path)
    artifact = run(
        tmp_path, "complete-journey", options={"group": "type"}, split={"kind": "time", "cutoff": "2017-01-03"}
    )
    items = items_of(artifact)
    assert set(items) == {1, 3, 4, 6}
    assert items[1]["text"] == "italian/french private"
    # The group's two products in a row are one engagement.
    assert artifact.summary["dropped_events"]["consecutive_repeat"] == 2
    ids = Written.read(artifact.path).item_ids
    rows = Feature.read(artifact.path, "manufacturers").rows
    assert len(rows[ids.index(1)]) == 2


def test_online_retail(tmp_path: Path) -> None:
    lines = [
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
        "1,12345a,RED BAG,6,2010-12-01 08:26:00,2.5,100,UK",
        '2,12345B,"BLUE, BAG",6,2010-12-02 08:26:00,3.5,100,UK',
        "3,12345A,red bag?,6,2010-12-03 08:26:00,9.5,100,UK",
        "4,POST,POSTAGE,1,2010-12-03 08:26:00,9.5,100,UK",
        "C5,12345A,RED BAG,-6,2010-12-04 08:26:00,2.5,100,UK",
        "6,12345A,RED BAG,-6,2010-12-04 08:26:00,2.5,100,UK",
        "A7,B,Adjust bad debt,1,2010-12-04 08:26:00,2.5,100,UK",
        "8,12345A,RED BAG,6,2010-12-04 08:26:00,2.5,,UK",
        "9,12345A,RED BAG,6,2010-12-04 08:26:00,0.0,100,UK",
        "10,DCGS0003,ASHTRAY,6,2010-12-05 08:26:00,1.0,100,UK",
    ]
    (tmp_path / "online_retail.csv").write_text("\n".join(lines))
    artifact = run(tmp_path, "online-retail", split={"kind": "time", "cutoff": "2010-12-03T00:00:00"})
    assert artifact.summary["dropped_events"] == {
        "adjustment": 1,
        "cancelled": 1,
        "no_customer": 1,
        "no_price": 1,
        "not_a_product": 1,
        "returned": 1,
    }
    items = items_of(artifact)
    assert {item: row["text"] for item, row in items.items()} == {
        "12345A": "RED BAG",
        "12345B": "BLUE, BAG",
        "DCGS0003": "ASHTRAY",
    }
    written = Written.read(artifact.path)
    assert written.item_ids[-1] == "DCGS0003"  # known from T2 only
    assert [item for item, _ in written.histories["100"]] == ["12345A", "12345B"]
    assert [item for item, _ in written.test["100"]] == ["12345A", "DCGS0003"]
    assert not artifact.summary["has_topics"]
    family = Feature.read(artifact.path, "family").rows
    assert family == [[1], [1], [0]]


def test_amazon(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv.gz").write_bytes(
        gzip.compress(b"user_id,product_id,sequence\nU1,P1,0\nU1,P2,1\nU1,P1,2\nU2,P2,0\nU2,P3,1\n,P1,0\n")
    )
    (tmp_path / "products.csv.gz").write_bytes(
        gzip.compress(
            b"product_id,title,brand,category_l1,category_l2\nP1,red ball,Acme,Toys,Toys / Balls\nP2,,,,\nP3,net,,A,B\n"
        )
    )
    artifact = run(tmp_path, "amazon")
    items = items_of(artifact)
    assert items["P1"]["text"] == "red ball Acme"
    assert (items["P1"]["topic_l1"], items["P1"]["topic_l2"]) == ("Toys", "Toys / Balls")
    assert (items["P2"]["text"], items["P2"]["topic_l1"]) == (None, None)
    assert Written.read(artifact.path).test == {"U1": [("P1", 2)], "U2": [("P3", 1)]}
    with pytest.raises(ValueError, match=r"data\.split\.kind: source amazon .* expected kind: user"):
        run(tmp_path, "amazon", split={"kind": "time"})


def test_tables_take_csv_with_other_names(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for part, rows in enumerate(
        [
            ["7\t2020-01-01 00:00:00\tA\tbuy\t3", "7\t2020-01-03 00:00:00\t007\tview\t4"],
            ["7\t2020-01-02 00:00:00\t007\tbuy\t1", "7\t2020-01-04 12:00:00\tB\tbuy\t2.5"],
        ]
    ):
        text = "\n".join(["who\twhen\twhat\tkind\tworth", *rows])
        (tmp_path / "logs" / f"{part}.tsv").write_text(text)
    (tmp_path / "goods.csv").write_text("what,label,level\n007,bond,1\nA,letter,2\nB,,x\n")
    artifact = run(
        tmp_path,
        "tables",
        events=["logs/*.tsv"],
        items=["goods.csv"],
        columns={
            "user_id": "who",
            "item_id": "what",
            "timestamp": "when",
            "event": "kind",
            "value": "worth",
            "text": ["label"],
        },
        id_features=["item_id", "level"],
        options={"keep_events": ["buy"], "min_value": 1.5},
        split={"kind": "time", "cutoff": "2020-01-04"},
    )
    assert artifact.summary["dropped_events"] == {"low_value": 1, "other_event": 1}
    assert set(items_of(artifact)) == {"007", "A", "B"}
    assert list(Written.read(artifact.path).test) == [7]


def test_tables_csv_ids_follow_the_other_file(tmp_path: Path) -> None:
    (tmp_path / "goods.csv").write_text("item_id\n1\n2\n")
    rows = "".join(f"1,{item},{time}\n" for time, item in enumerate("1212x12"))
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\n" + rows)
    artifact = run(tmp_path, "tables", events=["e.csv"], items=["goods.csv"])
    assert artifact.summary["dropped_events"] == {"unknown_item": 1}
    assert artifact.summary["id_type"] == "string"


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("us"),
        pa.timestamp("ns"),
        pa.timestamp("us", tz="Europe/Berlin"),
        pa.timestamp("ns", tz="UTC"),
        pa.date32(),
        pa.float64(),
    ],
    ids=str,
)
def test_kinds_of_timestamps(tmp_path: Path, kind: pa.DataType) -> None:
    days = [datetime.datetime(2020, 1, day) for day in range(1, 6)]
    seconds = pa.array([day.replace(tzinfo=datetime.UTC).timestamp() + 0.75 for day in days])
    times = seconds if kind == pa.float64() else pa.array(days).cast(kind)
    pq.write_table(
        pa.table({"user_id": [1] * 5, "item_id": [1, 2, 3, 4, 5], "timestamp": times}), tmp_path / "e.parquet"
    )
    artifact = run(tmp_path, "tables", events=["e.parquet"])
    history = Written.read(artifact.path).histories[1]
    start = int(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).timestamp())
    assert [time - start for _, time in history] == [0, 86400, 2 * 86400, 3 * 86400]


def test_every_recipe_is_valid() -> None:
    for name in recipe_names():
        assert load_config(name).data.source


@needs_data
@pytest.mark.parametrize(
    ("recipe", "folder", "num_events", "num_items", "test_users"),
    [
        ("movielens", "movielens-latest-small", 100_836, 9_742, 600),
        ("complete-journey", "complete-journey", 100_000, None, 1_500),
        ("online-retail", "online-retail", 541_909, None, 1_500),
        ("amazon", "amazon-sports", 296_337, 18_357, 35_598),
    ],
)
def test_real_data(
    tmp_path: Path, recipe: str, folder: str, num_events: int, num_items: int | None, test_users: int
) -> None:
    config = load_config(recipe, [f"data.input={DATA}/{folder}"])
    summary = prepare(config, tmp_path / "dataset").summary
    assert summary["num_events_read"] == num_events
    kept = summary["num_train_events"] + summary["num_test_events"]
    assert kept + sum(summary["dropped_events"].values()) == num_events
    assert kept > 0.5 * num_events
    assert num_items is None or summary["num_items"] == num_items
    assert summary["num_test_users"] >= test_users


@pytest.mark.parametrize("backwards", [False, True])
def test_columns_of_the_events_describe_items_by_their_first_known_values(tmp_path: Path, backwards: bool) -> None:
    rows = [
        # user, item, time, kind, name, brand, price
        (1, "a", 10, "buy", None, "acme", 3.0),
        (1, "b", 11, "buy", "Tent", None, 90.0),
        (2, "a", 10, "buy", "Bread knife", "acme", 2.5),
        (2, "b", 12, "buy", "Tent, large", "outdoor", None),
        (3, "a", 5, "look", "Knife of a look", "other", 1.0),
        (3, "b", 13, "buy", "Tent", "outdoor", 80.0),
        (3, "a", 14, "buy", "Another name", "late", 9.0),
        (3, "c", 15, "look", "Only looked at", "late", 9.0),
        (None, "d", 16, "buy", "No user", "late", 9.0),
    ]
    names = ("user_id", "item_id", "timestamp", "kind", "name", "brand", "price")
    table = pa.table(dict(zip(names, zip(*(rows[::-1] if backwards else rows), strict=True), strict=True)))
    pq.write_table(table, tmp_path / "events.parquet")
    artifact = run(
        tmp_path,
        "tables",
        events=["events.parquet"],
        columns={"event": "kind", "text": ["name"], "topic_l1": "brand"},
        options={"keep_events": ["buy"]},
        id_features=[],
        float_features=["price"],
        popularity_features=False,
    )
    items = items_of(artifact)
    assert {name: row["text"] for name, row in items.items()} == {"a": "Bread knife", "b": "Tent"}
    assert {name: row["topic_l1"] for name, row in items.items()} == {"a": "acme", "b": "outdoor"}
    assert artifact.summary["dropped_events"]["other_event"] == 2
    # Of the two prices of "a" at one instant the smaller one, 2.5, whatever the order of the rows: below that of "b".
    ids = Written.read(artifact.path).item_ids
    prices = np.load(artifact.path / ITEM_TABLE / "float_features.npy").ravel()
    assert prices[ids.index("a")] < prices[ids.index("b")]
    (scale,) = json.loads((artifact.path / ITEM_TABLE / "float_features.json").read_text())["features"]
    assert (scale["mean"], scale["deviation"]) == pytest.approx((np.mean([2.5, 90.0]), np.std([2.5, 90.0])))
