"""Small data of every source, with all that prepare drops in them, and a recipe for each way of cutting them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prepare_helpers import make_config

from mtmh.config import Config

USER: dict[str, Any] = {"kind": "user", "test_fraction": 0.3}
TIME: dict[str, Any] = {"kind": "time", "test_fraction": 0.2}
FILTERS = {"min_user_events": 3, "min_item_events": 2, "max_history": 12}


def every_source(folder: Path) -> dict[str, Config]:
    """Writes the data below a folder; recipes by name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    cases: dict[str, dict[str, Any]] = {}
    small = {"num_users": 60, "num_items": 50, "num_events": 1500, "num_days": 6}
    for name, split in (("user", USER), ("time", TIME)):
        cases[f"synthetic by {name}"] = {
            "source": "synthetic",
            "options": small,
            "split": split,
            "min_feature_count": 2,
        }
    for write in (_tables, _labelled_tables, _movielens, _complete_journey, _online_retail, _amazon):
        place = folder / write.__name__
        place.mkdir()
        cases |= {name: {"input": place, **case} for name, case in write(place, rng).items()}
    return {name: make_config(folder, **{"input": None, **case}) for name, case in cases.items()}


def _tables(folder: Path, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Parquet in Hive folders and files of several types, items of CSV; ids of text; a clock of milliseconds."""
    for part in range(5):
        count = 300
        users = [None if user == 0 else f" u{user} " for user in rng.integers(0, 40, count)]
        items = [["NULL", f"i{item:03d}"][int(item > 0)] for item in rng.zipf(1.5, count) % 45]
        times = 1_700_000_000_000 + 60_000_000 * part + np.sort(rng.integers(0, 60_000_000, count))
        columns = {
            "user_id": pa.array(users).cast(pa.string() if part % 2 else pa.large_string()),
            "item_id": items,
            "at": pa.array(times, pa.timestamp("ms" if part < 3 else "us", None))
            if part < 3
            else pa.array(1000 * times, pa.timestamp("us")),
        }
        path = folder / f"day={part}" / "e.parquet"
        path.parent.mkdir()
        pq.write_table(pa.table(columns), path)
    lines = ["item_id;brand;tags;price;title;l1;l2".replace(";", "\t")]
    for item in range(42):
        cells = [f"i{item:03d}", f"b {item % 4} ", f"t{item % 3}|all|", f"{item / 3}" if item % 5 else "NaN"]
        lines.append("\t".join([*cells, f'"say ""{item}"""' if item % 2 else "", f"g{item % 3}", f"s{item % 6}"]))
    (folder / "items.tsv").write_text("\n".join(lines))
    shop = {
        "events": ["*/e.parquet"],
        "partitions": ["day"],
        "partition_range": {"day": [0, 3]},
        "items": ["items.tsv"],
        "columns": {
            "timestamp": "at",
            "text": ["title", "brand"],
            "topic_l1": "l1",
            "topic_l2": "l2",
            "separators": {"tags": "|"},
        },
        "id_features": ["brand", "tags"],
        "float_features": ["price"],
    }
    instant = {"kind": "time", "cutoff": "2023-11-15T21:30:00.25"}
    return {
        "tables by user": {**shop, "split": USER, **FILTERS, "item_features": "ride_along"},
        "tables by time": {**shop, "split": TIME},
        "tables by an instant": {**shop, "split": instant, "popularity_features": False},
        "tables without items": {
            "events": ["*/e.parquet"],
            "columns": {"timestamp": "at"},
            "split": TIME,
            **FILTERS,
        },
    }


def _labelled_tables(folder: Path, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Kinds and values of events, many at one instant; integer ids; content embeddings; lists of integers."""
    count = 1200
    items = rng.integers(0, 20, count) * rng.integers(0, 2, count)
    events = {
        "user_id": rng.integers(0, 30, count),
        "item_id": items,
        "timestamp": rng.integers(0, 300, count) / 4,
        "event": rng.choice(["buy", "click", "look", "", "x'y"], count),
        "value": [None if value < 0.1 else float(value) for value in rng.random(count)],
    }
    pq.write_table(pa.table(events), folder / "events.parquet", row_group_size=100)
    catalogue = {
        "item_id": list(range(20)),
        "sizes": [None if item == 3 else [item % 4, 7, None] for item in range(20)],
        "price": [float(item) for item in range(20)],
        "vector": [None if item == 5 else [item / 7, 1.0, -item] for item in range(20)],
    }
    pq.write_table(pa.table(catalogue), folder / "items.parquet")
    shop = {
        "events": ["events.parquet"],
        "items": ["items.parquet"],
        "columns": {"event": "event", "value": "value", "content_embedding": "vector"},
        "id_features": ["sizes"],
        "float_features": ["price"],
        "options": {"keep_events": ["buy", "click", "x'y"], "min_value": 0.2},
    }
    return {
        "labels by user": {**shop, "split": USER, **FILTERS},
        "labels by time": {**shop, "split": {"kind": "time", "cutoff": 55.5}, "item_features": "ride_along"},
        "labels but the last": {**shop, "split": {"kind": "user", "test_events": 1}},
    }


def _movielens(folder: Path, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    rows = [
        f"{user},{movie},{rating or ''},{time}"
        for user, movie, rating, time in zip(
            rng.integers(1, 30, 700).tolist(),
            rng.integers(1, 45, 700).tolist(),
            (rng.integers(0, 11, 700) / 2).tolist(),
            rng.integers(0, 5000, 700).tolist(),
            strict=True,
        )
    ]
    (folder / "ratings.csv").write_bytes(("userId,movieId,rating,timestamp\n" + "\r\n".join(rows) + "\r\n").encode())
    titles = [f'{movie},"Film, {movie} ({1950 + movie})",{"Drama|Art" if movie % 3 else ""}' for movie in range(1, 41)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *titles]))
    return {
        f"movielens by {name}": {"source": "movielens", "split": split}
        for name, split in (("user", USER), ("time", TIME))
    }


def _complete_journey(folder: Path, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    lines = ["household_id,store_id,product_id,quantity,transaction_timestamp"]
    for _ in range(700):
        hour = f"2017-0{rng.integers(1, 7)}-{rng.integers(10, 28)} {rng.integers(10, 24)}:00:00"
        lines.append(f"{rng.integers(1, 25)},1,{rng.integers(1, 40)},{rng.integers(0, 3)},{hour}")
    (folder / "transactions_sample.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    products = ["product_id,manufacturer_id,department,brand,product_category,product_type,package_size"]
    for product in range(1, 36):
        department = "COUPON" if product % 11 == 0 else f"D{product % 3}"
        category = f"BREAD {product % 5}"
        products.append(f"{product},{product % 4},{department},Own,{category},{category}:TYPE {product % 9},1 LB")
    (folder / "products.csv.gz").write_bytes(gzip.compress("\n".join(products).encode()))
    return {
        "journey by user": {"source": "complete-journey", "split": USER},
        "journey by time": {"source": "complete-journey", "options": {"group": "type"}, "split": TIME},
    }


def _online_retail(folder: Path, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    lines = ["InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"]
    for number in range(900):
        code = ["POST", f"{10000 + rng.integers(0, 40)}{'ab'[number % 2]} "][int(rng.random() < 0.95)]
        when = f"2010-12-{rng.integers(10, 31)} {rng.integers(10, 24)}:{rng.integers(10, 60)}:00"
        customer = f"{12300 + rng.integers(0, 25)}" if rng.random() < 0.9 else ""
        invoice = f"{'C' if number % 40 == 0 else ''}{536_000 + number // 3}"
        lines.append(
            f'{invoice},{code},"MUG, {code}",{rng.integers(-1, 5)},{when},{rng.integers(0, 9)}.5,{customer},UK'
        )
    (folder / "online_retail.csv").write_text("\n".join(lines))
    return {
        f"retail by {name}": {"source": "online-retail", "split": split, **more}
        for name, split, more in (("user", USER, FILTERS), ("time", TIME, {}))
    }


def _amazon(folder: Path, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    lines = ["user_id,product_id,sequence"]
    for user in range(30):
        lines += [f"U{user},P{item},{place}" for place, item in enumerate(rng.integers(0, 40, 12))]
    (folder / "interactions.csv.gz").write_bytes(gzip.compress("\n".join([*lines, ",P1,0"]).encode()))
    products = ["product_id,title,brand,category_l1,category_l2"]
    products += [f'P{item},"A ""{item}"", red",{f"B{item % 4}" if item % 5 else ""},Home,Kitchen' for item in range(38)]
    (folder / "products.csv.gz").write_bytes(gzip.compress("\n".join(products).encode()))
    return {"amazon by user": {"source": "amazon", "split": USER}}
