"""The three commands of a newcomer: mtmh init, run, and what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_shop import SETTINGS, shop_events, shop_items


def mtmh(folder: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mtmh.cli", *words], cwd=folder, env=os.environ | {"COLUMNS": "80"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("shop"))
    pq.write_table(shop_events(), folder / "events.parquet")
    pq.write_table(shop_items(), folder / "items.parquet")
    return folder


def test_init_says_what_it_assumed_and_what_comes_next(shop: Path) -> None:
    printed = mtmh(shop, "init", "events.parquet", "items.parquet", "-o", "mine.yaml")
    assert "user         column customer, 120 of them" in printed
    assert printed.splitlines()[-1] == "next: mtmh run mine.yaml"
    assert max(map(len, printed.splitlines())) <= 80
    assert "mine.yaml: there already" in mtmh(shop, "init", "events.parquet", "items.parquet", code=2)
    again = mtmh(shop, "init", "events.parquet", "--force", "--column", "event=", "-o", "other.yaml")
    assert "kinds" not in again
    assert "expected ROLE=NAME" in mtmh(shop, "init", "events.parquet", "--force", "--column", "event", code=2)


def test_run_does_the_rest_and_ends_with_the_verdict_and_the_next_command(shop: Path) -> None:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}".replace(" ", ""))]
    printed = mtmh(shop, "run", "mine.yaml", *settings)
    assert "mtmh is " in printed
    last = printed.splitlines()[-1]
    assert last.startswith("next: mtmh serve mine.yaml --set ")
    assert (shop / "runs/mine/mtmh/evaluation/report.html").is_file()
    again = mtmh(shop, "run", "mine.yaml", *settings)
    assert "evaluate: unchanged" in again
    assert "nothing there yet" not in again
    assert again.splitlines()[-1] == last
    # The chain takes over what was run.
    planned = mtmh(shop, "chain", "mine.yaml", *settings, "--dry-run")
    assert {line.split(maxsplit=1)[1] for line in planned.splitlines()} == {"unchanged"}


def test_bare_mtmh_shows_help() -> None:
    printed = mtmh(Path.cwd())
    assert "init             Looks at two tables" in printed
    assert "mtmh init EVENTS ITEMS" in printed
    assert max(map(len, printed.splitlines())) <= 80
