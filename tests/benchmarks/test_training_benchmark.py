"""The training benchmark at its smallest: whole steps and their parts on two ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.training import PARTS, Stopwatch, main


def test_whole_steps_and_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "training.json"
    sizes = "--items 500 --users 300 --batch-size 48 --uniform 32 --dim 8 --ranks 2 --steps 1 --repeats 1"
    monkeypatch.setattr(sys, "argv", ["training", *sizes.split(), "--engines", "mtmh", "--out", str(out)])
    main()
    report = json.loads(out.read_text())
    (row,) = report["results"]
    assert (row["engine"], row["ranks"]) == ("mtmh", 2)
    assert row["pairs_per_second"] > 0
    parts = report["parts_ms"]["2"]
    assert tuple(parts) == PARTS
    assert all(milliseconds > 0 for milliseconds in parts.values())
    printed = capsys.readouterr().out
    assert all(part in printed for part in PARTS)


def test_the_parts_of_a_step_leave_nothing_out() -> None:
    watch = Stopwatch()
    began = watch.last
    for part in (*PARTS, PARTS[0]):
        watch.mark(part)
    assert sum(watch.spent.values()) == pytest.approx(watch.last - began)


def test_a_wrong_size_is_refused_before_data_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "--batch-size", "512"])
    with pytest.raises(ValueError, match=r"multiple of training\.num_shards"):
        main()
