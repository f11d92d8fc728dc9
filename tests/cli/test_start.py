"""The three commands of a newcomer: mtmh init, run, and what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forked_verb import forked_verb
from small_shop import SETTINGS, shop_events, shop_items


def mtmh(folder: Path, *words: str, code: int = 0, forked: bool = True) -> str:
    """What the verb prints, or tells where it fails; as a user starts it where it is not forked, seconds slower."""
    width = {"COLUMNS": "80"}
    if forked:
        done = forked_verb(*words, folder=folder, environment=width)
    else:
        done = subprocess.run(
            [sys.executable, "-m", "mtmh.cli", *words], cwd=folder, env=os.environ | width,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Warning" not in done.stderr, "of other packages"
    assert "WARNING:" not in done.stderr, "ours are words and no log records"
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("shop"))
    pq.write_table(shop_events(), folder / "events.parquet")
    pq.write_table(shop_items(), folder / "items.parquet")
    return folder


def test_init_says_what_it_assumed_and_what_comes_next(shop: Path) -> None:
    printed = mtmh(shop, "init", "events.parquet", "items.parquet", "-o", "mine.yaml", forked=False)
    assert "user         column customer, 120 of them" in printed
    assert printed.splitlines()[-1] == "next: mtmh run mine.yaml"
    assert max(map(len, printed.splitlines())) <= 80
    assert "mine.yaml: there already" in mtmh(shop, "init", "events.parquet", "items.parquet", code=2)
    again = mtmh(shop, "init", "events.parquet", "--force", "--column", "event=", "-o", "deep/er/other.yaml")
    assert "kinds" not in again
    assert "expected ROLE=NAME" in mtmh(shop, "init", "events.parquet", "--force", "--column", "event", code=2)


def test_run_does_the_rest_and_ends_with_the_verdict_and_the_next_command(shop: Path) -> None:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}".replace(" ", ""))]
    printed = mtmh(shop, "run", "mine.yaml", *settings, forked=False)
    assert "mtmh is " in printed
    last = printed.splitlines()[-1]
    assert last.startswith("next: mtmh serve mine.yaml --set ")
    assert (shop / "runs/mine/mtmh/evaluation/report.html").is_file()
    again = mtmh(shop, "run", "mine.yaml", *settings)
    assert "evaluate: unchanged" in again
    assert "nothing there yet" not in again
    assert again.splitlines()[-1] == last
    asked = mtmh(shop, "train", "mine.yaml", *settings, "--set", "training.max_steps=29")
    assert f"Already trained {SETTINGS['training.max_steps']} steps, the recipe asks for 29" in asked
    # The chain takes over what was run.
    planned = mtmh(shop, "chain", "mine.yaml", *settings, "--dry-run")
    assert {line.split(maxsplit=1)[1] for line in planned.splitlines()} == {"unchanged"}


def test_the_recipe_of_the_docs_takes_tables_as_they_say(shop: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/your-own-data.md").read_text()
    (recipe,) = re.findall(r"```yaml\n(name: mtmh\n.*?)```", text, re.DOTALL)
    (shop / "docs.yaml").write_text(recipe)
    printed = mtmh(shop, "prepare", "docs.yaml", "--set", "paths.root=runs/docs")
    assert "brand (13 rows), tags (21 rows)" in re.sub(r"[\s│]+", " ", printed)
    assert "first instant of the test period" in printed
    assert re.search(r"2025-\d\d-\d\d \d\d:\d\d:\d\d UTC", printed)


def test_bare_mtmh_shows_help() -> None:
    printed = mtmh(Path.cwd(), forked=False)
    assert "init             Looks at two tables" in printed
    assert "mtmh init EVENTS ITEMS" in printed
    assert max(map(len, printed.splitlines())) <= 80
