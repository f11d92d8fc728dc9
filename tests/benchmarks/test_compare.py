"""The gate of the benchmarks: what counts as worse, between which runs, and the exit code of the command."""

from __future__ import annotations

import copy
import json
import multiprocessing as mp
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import compare

OLD: dict[str, Any] = {
    "command": ["benchmarks.retrieval", "--items", "60000"],
    "machine": {"cpu": "one", "cores": 2},
    "settings": {"items": 60_000, "seconds": 3},
    "cases": {"no filter": {"total": {"p50_ms": 10.0, "per_second": 100.0}, "times_faiss": 0.8, "clusters": 7}},
    "kinds": [
        {"storage": "flat", "points": [{"probes": 1, "recall": 0.6, "ms_per_query": 0.1}]},
        {"storage": "fp16", "points": [{"probes": 1, "recall": 0.6, "ms_per_query": 0.2}]},
    ],
    "parts_ms": {"1": {"loss": 50.0}},
}


def changed(**figures: float) -> dict[str, Any]:
    """The run with other figures of the first case, or of the first kind."""
    new = copy.deepcopy(OLD)
    case, point = new["cases"]["no filter"], new["kinds"][0]["points"][0]
    for name, value in figures.items():
        place = next(part for part in (case["total"], case, point, new["parts_ms"]["1"]) if name in part)
        place[name] = value
    return new


@pytest.mark.parametrize(
    ("name", "value", "worse"),
    [
        ("p50_ms", 15.0, 1.5),
        ("per_second", 50.0, 2.0),
        ("per_second", 200.0, 0.5),
        ("times_faiss", 1.2, 1.5),
        ("recall", 0.3, 2.0),
        ("ms_per_query", 0.3, 3.0),
        ("loss", 75.0, 1.5),
    ],
)
def test_a_figure_is_worse_in_its_own_direction(name: str, value: float, worse: float) -> None:
    changes = compare(OLD, changed(**{name: value}))
    (found,) = (change for change in changes if change.before != change.after)
    assert found.name.endswith(name)
    assert found.worse == pytest.approx(worse)
    assert {change.worse for change in changes if change is not found} == {1.0}


def test_what_says_what_was_measured_is_no_figure() -> None:
    new = changed(clusters=9)
    new["settings"] = {"items": 1, "seconds": 9}
    assert all(change.worse == 1.0 for change in compare(OLD, new))


def test_entries_are_told_apart_by_what_they_are_and_not_by_their_place() -> None:
    new = copy.deepcopy(OLD)
    new["kinds"] = [{"storage": "pq", "points": []}, *reversed(OLD["kinds"])]
    assert all(change.worse == 1.0 for change in compare(OLD, new))


def test_between_machines_only_ratios_count() -> None:
    new = changed(p50_ms=1000.0, per_second=1.0, ms_per_query=9.0, loss=900.0, times_faiss=0.9)
    changes = compare(OLD, new, ratios_only=True)
    assert {change.name.rpartition("/")[2] for change in changes} == {"times_faiss", "recall"}
    assert changes[0].worse == pytest.approx(0.9 / 0.8)


def test_runs_without_a_common_figure_are_refused() -> None:
    with pytest.raises(ValueError, match="no figure in common"):
        compare(OLD, {"cases": {"other": {"p50_ms": 1.0}}})


@pytest.mark.parametrize(
    ("new", "arguments", "code", "told"),
    [
        (changed(p50_ms=12.0), [], 0, "0 of 8 figures are more than 1.25 times as bad"),
        (changed(p50_ms=13.0), [], 1, "WORSE cases/no filter/total/p50_ms"),
        (changed(p50_ms=12.0), ["--threshold", "1.1"], 1, "1 of 8"),
        (changed(p50_ms=13.0), ["--ratios"], 0, "0 of 3"),
        (changed(p50_ms=13.0) | {"machine": {"cpu": "other"}}, [], 0, "another machine: only ratios"),
        ([], [], 2, "not a list"),
    ],
)
def test_the_command_fails_past_the_threshold(
    tmp_path: Path, new: Any, arguments: list[str], code: int, told: str
) -> None:
    done = gate(tmp_path, OLD, new, *arguments)
    assert done.returncode == code
    assert told in done.stdout + done.stderr


def test_an_older_run_says_how_it_is_made_again(tmp_path: Path) -> None:
    done = gate(tmp_path, OLD | {"command": ["rm", "-r"]}, None)
    assert done.returncode == 2
    assert "does not say by which command it was made" in done.stderr
    done = gate(tmp_path, OLD | {"command": ["benchmarks.no_such_one", "--items", "5"]}, None)
    assert done.returncode == 2
    assert "python -m benchmarks.no_such_one --items 5 failed" in done.stderr


def test_the_loader_is_measured_again(tmp_path: Path) -> None:
    small = [
        "--items",
        "500",
        "--users",
        "200",
        "--mean-length",
        "6",
        "--batch-size",
        "48",
        "--steps",
        "2",
        "--repeats",
        "1",
    ]
    # Forked from a process that has imported torch; the gate starts a Python of its own.
    process = mp.get_context("forkserver").Process(
        target=run_loader, args=([*small, "--out", str(tmp_path / "loader.json")],)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    old = json.loads((tmp_path / "loader.json").read_text())
    assert old["command"] == ["benchmarks.loader", *small]
    done = gate(tmp_path, old, None, "--threshold", "1e6")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "old.new.json").is_file()


def run_loader(words: list[str]) -> None:
    """As ``python -m benchmarks.loader``."""
    sys.argv = ["", *words]
    runpy.run_module("benchmarks.loader", run_name="__main__", alter_sys=True)


def gate(folder: Path, old: Any, new: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command on two runs; without the newer one it measures."""
    (folder / "old.json").write_text(json.dumps(old))
    command = [sys.executable, "-m", "benchmarks.compare", str(folder / "old.json"), *arguments]
    if new is not None:
        (folder / "new.json").write_text(json.dumps(new))
        command += ["--new", str(folder / "new.json")]
    return subprocess.run(command, capture_output=True, text=True, check=False)
