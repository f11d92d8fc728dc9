"""The index benchmark at toy size: a report with recall that grows with the probes, and a plot."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import index


def test_report_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "index.json", tmp_path / "index.svg"
    options = "--items 1500 --dim 16 --clusters 20 --queries 40 --k 10 --repeats 1 --probes 1 4 20 --storage flat pq"
    paths = ["--folder", str(tmp_path), "--out", str(out), "--plot", str(plot)]
    monkeypatch.setattr(sys, "argv", ["index", *options.split(), *paths])
    index.main()
    report = json.loads(out.read_text())
    flat, pq = report["kinds"]
    assert [point["recall"] for point in flat["points"]] == sorted(point["recall"] for point in flat["points"])
    assert flat["points"][-1] == pytest.approx(flat["points"][-1] | {"recall": 1.0, "probes": 20})
    assert (flat["searched_bytes_per_item"], pq["searched_bytes_per_item"]) == (16 * 4 + 8, 16 + 8)
    assert pq["stored_bytes_per_item"] > 16 + 8 + 2 * 16
    assert all(point["ms_per_query"] > 0 for kind in report["kinds"] for point in kind["points"])
    said = capsys.readouterr().out
    assert said.count("\nflat ") == 3 + 1  # its points, and the time at equal recall
    assert all(0.5 < kind["build_times_faiss"] < 10_000 for kind in report["kinds"])
    found = [{"storage": "a", "points": [{"recall": 0.8, "ms_per_query": 1.0}, {"recall": 0.92, "ms_per_query": 4.0}]}]
    assert index.at_equal_recall(found).splitlines()[-1].split() == ["a", "1.782", "3.175"]  # on a line of log(time)
    assert "exact search" in plot.read_text()
