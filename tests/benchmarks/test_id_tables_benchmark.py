"""The benchmark of tables of raw ids, at a size that takes seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import id_tables


def test_it_measures_every_case_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--rows", "4800", "--ids", "256", "--items", "600", "--users", "100", "--batch-size", "96"]
    out = tmp_path / "out.json"
    arguments = ["id_tables", *sizes, "--uniform", "32", "--steps", "2", "--repeats", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    id_tables.main()
    report = json.loads(out.read_text())
    assert [(row["ids"], row["fill"]) for row in report["map"]] == [
        ("insert", 0.0),
        ("find", 0.5),
        ("insert", 0.5),
        ("find", 0.9),
        ("insert", 0.9),
        ("evict (lru)", 1.0),
    ]
    assert all(row["ids/s"] > 0 for row in report["map"])
    vocabulary, roomy, tight = report["training"]
    assert all(row["pairs/s"] > 0 for row in report["training"])
    assert vocabulary["inserts a step"] == vocabulary["occupancy"] == 0
    assert roomy["inserts a step"] > roomy["evictions a step"] == 0
    assert tight["evictions a step"] > 0
    assert 0.9 < tight["occupancy"] <= 1
    assert "The training step" in capsys.readouterr().out
