"""The benchmark of saving at its smallest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.checkpoint_stall import WAYS, main


def test_both_ways_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stall.json"
    sizes = "--items 500 --users 300 --batch-size 48 --dim 8 --every 2 --saves 2"
    monkeypatch.setattr(sys, "argv", ["checkpoint_stall", *sizes.split(), "--out", str(out)])
    main()
    rows = json.loads(out.read_text())["results"]
    assert tuple(row["way"] for row in rows) == WAYS
    for row in rows:
        assert row["ranks"] == 1
        assert row["checkpoint_mb"] > 0
        assert row["save"]["number"] == 2
        # Three legs of two steps, some of them beside a save.
        assert row["step"]["number"] + row.get("step while saving", {"number": 0})["number"] == 6
    assert "step while saving" not in rows[0]
    printed = capsys.readouterr().out
    assert all(f"| {way} | 1 |" in printed for way in WAYS)
