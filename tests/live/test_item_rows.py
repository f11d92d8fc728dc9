"""New items from files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtmh.live.item_rows import read_rows
from mtmh.tower.item_features import FeatureFacts, IdFacts, ItemFeatures

ROWS = [{"item_id": 1, "brand": "a", "price": 1.5}, {"item_id": 2, "brand": None, "price": None}]


def test_the_three_kinds_of_files_give_the_same_rows(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text("item_id,brand,price\n1,a,1.5\n2,,\n")
    (tmp_path / "items.jsonl").write_text(
        '{"item_id": 1, "brand": "a", "price": 1.5}\n{"item_id": 2, "brand": null, "price": null}\n'
    )
    for kind in ("parquet", "csv", "jsonl"):
        assert read_rows(tmp_path / f"items.{kind}") == ROWS


def test_cells_that_look_like_numbers_are_strings_where_the_model_has_strings(tmp_path: Path) -> None:
    facts = FeatureFacts(
        id_type="string",
        id_features=[IdFacts(name="brand", value_type="string"), IdFacts(name="size", value_type="int64")],
        float_features=[],
        hidden_rows=1,
    )
    (tmp_path / "features.json").write_text(facts.model_dump_json())
    (tmp_path / "items.csv").write_text("item_id,brand,size,text\n007,0012,40,2024-01-01\n008,,,\n")
    features = ItemFeatures(tmp_path)
    rows = features.table(read_rows(tmp_path / "items.csv", features.strings)).to_pylist()
    shown = {"image": None, "topic_l1": None, "topic_l2": None, "first_seen": None}
    assert rows == [
        {"item_id": "007", "text": "2024-01-01", "brand": ["0012"], "size": [40], **shown},
        {"item_id": "008", "text": None, "brand": None, "size": None, **shown},
    ]


def test_a_string_of_json_may_hold_other_line_ends(tmp_path: Path) -> None:
    rows = [{"item_id": 1, "text": "one\u2028two\x85three"}, {"item_id": 2, "text": "four"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "items.jsonl").write_text("\r\n".join(lines) + "\n\n", encoding="utf-8")
    assert read_rows(tmp_path / "items.jsonl") == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"item_id": 1}\n{"item', "a.jsonl: line 2: no JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl: line 1: expected an object"),
        ("a.parquet", "no parquet", "a.parquet: not readable"),
        ("a.csv", "", "a.csv: not readable"),
        ("a.txt", "x", "expected a file that ends in"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)
    (tmp_path / "b.jsonl").write_bytes(b'{"item_id": "\xff"}')
    with pytest.raises(ValueError, match=r"b\.jsonl: not readable"):
        read_rows(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="no such file"):
        read_rows(tmp_path / "none.csv")
