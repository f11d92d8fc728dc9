"""Tables of a lake give the dataset of the same rows in files, at the version that is asked for and recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from prepare_helpers import files_of, make_config
from pyiceberg.catalog.memory import InMemoryCatalog

from mtmh.artifacts import Artifact
from mtmh.data.raw_files import changed_since, stamp
from mtmh.places import LakeTable, RemotePath, any_table
from mtmh.prepare.prepare import prepare

EVENTS = [
    pa.table(
        {
            "user_id": [user for user in range(20) for _ in range(6)],
            "item_id": [f"i{(user + step * (part + 2)) % 15}" for user in range(20) for step in range(6)],
            "at": pa.array(
                [10**6 * (1_700_000_000 + 100 * part + step) for _ in range(20) for step in range(6)],
                pa.timestamp("us", "UTC"),
            ),
        }
    )
    for part in range(2)
]
ITEMS = pa.table(
    {
        "item_id": [f"i{item}" for item in range(15)],
        "tags": [[f"t{item % 3}", "all"] for item in range(15)],
        "price": [item / 4 for item in range(15)],
        "not read": [b"x"] * 15,
    }
)
DATA: dict[str, Any] = {
    "input": None,
    "columns": {"timestamp": "at"},
    "id_features": ["tags"],
    "float_features": ["price"],
    "split": {"kind": "user"},
}


def run(out: Path, events: str, items: str) -> Artifact:
    return prepare(make_config(out, **DATA, events=[events], items=[items]), out / "dataset")


def of_files(out: Path, events: pa.Table) -> dict[str, bytes]:
    out.mkdir()
    pq.write_table(events, out / "events.parquet")
    pq.write_table(ITEMS, out / "items.parquet")
    return files_of(run(out, str(out / "events.parquet"), str(out / "items.parquet")).path)


def delta(place: str) -> tuple[str, str, int, Callable[[], int]]:
    """Names of two tables in a Delta lake, the version of the events, and what appends to them."""
    write_deltalake(f"{place}/events", EVENTS[0], partition_by=["user_id"])
    write_deltalake(f"{place}/items", ITEMS)

    def append() -> int:
        write_deltalake(f"{place}/events", EVENTS[1], mode="append")
        return DeltaTable(f"{place}/events").version()

    return f"delta:{place}/events", f"delta:{place}/items", 0, append


def iceberg(place: str) -> tuple[str, str, int, Callable[[], int]]:
    """The same in Iceberg."""
    catalogue = InMemoryCatalog("test", warehouse=place)
    catalogue.create_namespace("shop")
    made = {}
    for name, rows in (("events", EVENTS[0]), ("items", ITEMS)):
        made[name] = catalogue.create_table(f"shop.{name}", schema=rows.schema)
        made[name].append(rows)

    def append() -> int:
        made["events"].append(EVENTS[1])
        return snapshot()

    def snapshot() -> int:
        current = made["events"].current_snapshot()
        assert current is not None
        return current.snapshot_id

    folders = [made[name].location().removeprefix("file://") for name in made]
    return f"iceberg:{folders[0]}", f"iceberg:{folders[1]}", snapshot(), append


@pytest.mark.parametrize("lake", [delta, iceberg])
def test_a_lake_gives_the_dataset_of_files_at_each_version(tmp_path: Path, lake: Any) -> None:
    events, items, version, append = lake(str(tmp_path / "lake"))
    first = of_files(tmp_path / "first", EVENTS[0])
    artifact = run(tmp_path / "a", events, items)
    assert files_of(artifact.path) == first
    assert artifact.summary["lake_tables"]["events"] == f"{events}@{version}"
    table = any_table(events)
    assert isinstance(table, LakeTable)
    before = stamp([table])
    later = append()
    assert later != version
    assert stamp([table]) != before, "a dataset of the version before is outdated"
    assert changed_since([table], 0.0) == f"{events}@{later}"
    artifact = run(tmp_path / "b", events, items)
    assert files_of(artifact.path) == of_files(tmp_path / "both", pa.concat_tables(EVENTS))
    assert artifact.summary["lake_tables"]["events"] == f"{events}@{later}"
    # What the manifest says brings the first one back.
    assert files_of(run(tmp_path / "c", f"{events}@{version}", items).path) == first
    with pytest.raises(ValueError, match=r"events@12345: cannot be read"):
        run(tmp_path / "d", f"{events}@12345", items)


def test_rows_that_a_delta_table_has_deleted_are_not_read(tmp_path: Path) -> None:
    events, items, _, append = delta(str(tmp_path / "lake"))
    append()
    DeltaTable(str(tmp_path / "lake" / "events")).delete("user_id >= 10")
    kept = pa.concat_tables(EVENTS).filter(pc.less(pa.concat_tables(EVENTS)["user_id"], 10))
    assert files_of(run(tmp_path / "a", events, items).path) == of_files(tmp_path / "b", kept)


@pytest.mark.parametrize("lake", [delta, iceberg])
def test_a_lake_on_s3(tmp_path: Path, bucket: RemotePath, lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    if lake is iceberg:
        # Where its own catalogue lies, pyiceberg wants to be told; mtmh tells it what the environment says.
        monkeypatch.setattr(InMemoryCatalog, "__init__", _with_endpoint(InMemoryCatalog.__init__))
    events, items, version, _ = lake(f"{bucket}/lake")
    artifact = run(tmp_path / "a", events, items)
    assert files_of(artifact.path) == of_files(tmp_path / "b", EVENTS[0])
    assert artifact.summary["lake_tables"]["events"] == f"{events}@{version}"


def _with_endpoint(init: Any) -> Any:
    def wrapped(self: Any, name: str, **settings: str) -> None:
        init(self, name, **settings, **{"s3.endpoint": os.environ["AWS_ENDPOINT_URL"]})

    return wrapped


def test_faults_name_the_table(tmp_path: Path) -> None:
    events, items, *_ = delta(str(tmp_path / "lake"))
    with pytest.raises(
        ValueError, match=r"delta:.*items@0: no column 'user_id'; found 'item_id', 'tags', 'price', 'no"
    ):
        run(tmp_path / "a", items, items)
    with pytest.raises(ValueError, match=r"delta:.*nothing: cannot be read"):
        run(tmp_path / "a", f"delta:{tmp_path}/nothing", items)
    with pytest.raises(ValueError, match=r"iceberg:.*lake/events: cannot be read: no metadata"):
        run(tmp_path / "a", f"iceberg:{tmp_path}/lake/events", items)
    with pytest.raises(ValueError, match=r"data\.events: delta:.* is a whole table; expected it alone"):
        prepare(make_config(tmp_path, **DATA, events=[events, events], items=[items]), tmp_path / "a" / "dataset")
    assert not (tmp_path / "a" / "dataset").exists()
