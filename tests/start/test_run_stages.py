"""Stages in one process: raw tables that change are read again, and a model outlives its tables."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_shop import shop_events, shop_items

from mtmh.config import load_config
from mtmh.start import run
from mtmh.start.guess import guess_recipe
from mtmh.start.recipe import recipe_text
from mtmh.start.run import run_stages


@pytest.mark.parametrize("pattern", ["events.parquet", "event*.parquet"])
def test_tables_that_change_are_prepared_again(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(shop_events(), "events.parquet")
    pq.write_table(shop_items(), "items.parquet")
    guess = guess_recipe(Path(pattern), Path("items.parquet"))
    Path("mine.yaml").write_text(recipe_text(guess, "runs", ""))
    config = load_config("mine.yaml")

    def prepared() -> tuple[list[str], int]:
        said: list[str] = []
        artifact = run_stages(config, said.append, until="prepare")["prepare"]
        return [line for line in said if ": took " not in line], artifact.summary["num_users"]

    assert prepared() == (["prepare: nothing there yet"], 120)
    assert prepared() == (["prepare: unchanged"], 120)
    pq.write_table(shop_events(num_users=80), "events.parquet")
    assert prepared() == (["prepare: raw files have changed"], 80)
    Path("events.parquet").unlink()
    Path("items.parquet").unlink()
    assert prepared() == (["prepare: unchanged"], 80)


def test_a_run_that_was_killed_is_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(shop_events(), "events.parquet")
    Path("mine.yaml").write_text(recipe_text(guess_recipe(Path("events.parquet"), None), "runs", ""))
    config = load_config("mine.yaml")
    child = os.fork()
    if child == 0:
        run._STAGES["prepare"] = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        run_stages(config, print, until="prepare")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    for killed in (True, False):
        said: list[str] = []
        run_stages(config, said.append, until="prepare")
        assert said[0].startswith("prepare: the run before was killed in it") == killed
