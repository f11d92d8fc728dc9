"""The whole benchmark at its smallest: figures, report, and the gate against an older run."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lookup import compare as gate
from benchmarks.lookup.__main__ import main, report_changes
from benchmarks.lookup.cases import FORWARD, SHARDINGS, TRAIN
from benchmarks.lookup.report import BARS, CURVES, LABELS, render


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookup")
    assert main(["--device", "cpu", "--preset", "smoke", "--threads", "1", "--ranks", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def result(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "lookup.json").read_text())
    return loaded


def small(folder: Path, *more: str) -> list[str]:
    """The smallest run, without sharded cases."""
    return ["--device", "cpu", "--preset", "smoke", "--threads", "1", "--ranks", "0", "--out", str(folder), *more]


def test_a_killed_run_keeps_its_figures_and_goes_on(tmp_path: Path, result: dict[str, Any]) -> None:
    path = tmp_path / "lookup.json"
    with subprocess.Popen([sys.executable, "-m", "benchmarks.lookup", *small(tmp_path)]) as process:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if path.exists() and len(json.loads(path.read_text())["rows"]) >= 3:
                break
            time.sleep(0.01)
        process.kill()
    killed = json.loads(path.read_text())
    assert 3 <= len(killed["rows"]) < 64
    assert sum(killed["missing"].values()) == 64 - len(killed["rows"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="incomplete run"):  # it would be lost
        main(small(tmp_path))
    with pytest.raises(ValueError, match="same preset and machine, but preset: smoke -> quick"):
        main([*small(tmp_path, "--resume"), "--preset", "quick"])
    path.write_text(json.dumps(killed | {"machine": killed["machine"] | {"cores": 1024}}))
    with pytest.raises(ValueError, match="but cores: 1024 -> "):
        main(small(tmp_path, "--resume"))
    path.write_bytes(before)

    assert main(small(tmp_path, "--resume", "--minutes", "0")) == 0
    cut = json.loads(path.read_text())
    assert cut["rows"] == killed["rows"]
    assert f"{sum(cut['missing'].values())} figures are missing" in (tmp_path / "lookup.html").read_text()

    assert main(small(tmp_path, "--resume")) == 0
    whole = json.loads(path.read_text())
    assert whole["missing"] == {}
    assert [row for row in whole["rows"] if row in killed["rows"]] == killed["rows"]

    def places(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [(row["sweep"], row["x"], row["kernel"], row["mode"]) for row in rows]

    assert places(whole["rows"]) == places([row for row in result["rows"] if row["sweep"] != "sharding"])
    assert "Incomplete" not in (tmp_path / "lookup.html").read_text()
    assert whole["seconds"] > killed["seconds"]


def test_a_run_stops_when_its_minutes_are_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small(tmp_path, "--minutes", "1e-6")) == 0
    cut = json.loads((tmp_path / "lookup.json").read_text())
    assert len(cut["rows"]) <= 7  # the first figure, in all sweeps that have it
    missing = 64 - len(cut["rows"])
    assert f"{missing} missing" in capsys.readouterr().out
    assert f"{missing} figures are missing" in (tmp_path / "lookup.html").read_text()


def scaled(result: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same run with all times multiplied."""
    changed = copy.deepcopy(result)
    for row in changed["rows"]:
        for name in ("median", "q1", "q3", "fastest", "slowest"):
            row["timing"][name] *= factor
    return changed


def test_every_figure_stands_beside_its_limit(result: dict[str, Any]) -> None:
    assert result["cores_others_kept_busy"] >= 0
    assert result["skipped"] == result["failed"] == []
    assert {row["sweep"] for row in result["rows"]} == {
        "rows",
        "width",
        "pooling",
        "skew",
        "batch",
        "dtype",
        "sharding",
    }
    assert {row["kernel"] for row in result["rows"]} == set(LABELS)
    for row in result["rows"]:
        timing, case = row["timing"], row["case"]
        assert 0 < timing["fastest"] <= timing["q1"] <= timing["median"] <= timing["q3"] <= timing["slowest"]
        assert timing["samples"] >= 3
        lookups = case["tables"] * case["batch"] * case["pooling"]
        row_bytes = {"fp32": 4 * case["width"], "fp16": 2 * case["width"], "int8": 48}[case["dtype"]]
        assert row["moved_bytes"] == lookups * row_bytes * {FORWARD: 1, TRAIN: 3}[row["mode"]]
        assert math.isclose(row["lookups_per_s"], lookups / timing["median"])
        assert math.isclose(row["bytes_per_s"], row["moved_bytes"] / timing["median"])
        assert math.isclose(row["percent_of_gather"], 100 * row["bytes_per_s"] / row["gather"]["best"])
        assert math.isclose(row["percent_of_copy"], 100 * row["bytes_per_s"] / result["copy"]["best"])


def test_the_report_is_one_page_with_every_curve(out: Path, result: dict[str, Any]) -> None:
    page = (out / "lookup.html").read_text()
    sweeps = {row["sweep"] for row in result["rows"]}
    assert page.count("<svg") == page.count("</svg>") == len(sweeps)
    for sweep in sweeps:
        assert (CURVES | BARS)[sweep].capitalize() in page
    assert page.count("limit: random gather") >= len(sweeps)
    assert page.count("<tr") >= len(result["rows"])
    for sharding in SHARDINGS:
        assert sharding.replace("_", "-") in page
    links = re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']*["']|url\((?!#)[^)]*\)|@import""", page)
    assert links == []
    assert "<script" not in page
    assert "<metadata" not in page


def test_the_report_says_what_was_left_out(result: dict[str, Any]) -> None:
    entry = {name: result["rows"][0][name] for name in ("sweep", "x", "kernel", "mode", "case")}
    page = render(result | {"skipped": [entry | {"reason": "needs 51 GB"}], "failed": [entry | {"error": "<boom>"}]})
    assert "needs 51 GB" in page
    assert "&lt;boom&gt;" in page


def test_an_equal_run_passes_and_a_slowed_one_fails(result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert report_changes(result, result, 0.15) == []
    slowed = scaled(result, 100.0)
    slower = report_changes(result, slowed, 0.15)
    assert len(slower) == len(gate.compare(result, slowed, 0.15))
    assert "SLOWER" in capsys.readouterr().out
    assert report_changes(slowed, result, 0.15) == []


def test_a_slowdown_within_the_spread_passes() -> None:
    def run(q1: float, median: float, q3: float) -> dict[str, Any]:
        row = {"kernel": "tbe", "mode": FORWARD, "case": {"rows": 10}, "timing": {"q1": q1, "median": median, "q3": q3}}
        return {"rows": [row], "machine": {}}

    (change,) = gate.compare(run(0.9, 1.0, 1.3), run(1.2, 1.4, 1.5), 0.15)
    assert change.change == pytest.approx(0.4)
    assert not change.slower
    (change,) = gate.compare(run(0.99, 1.0, 1.01), run(1.38, 1.4, 1.42), 0.15)
    assert change.slower
    (change,) = gate.compare(run(0.99, 1.0, 1.01), run(1.38, 1.4, 1.42), 0.5)
    assert not change.slower


def test_the_command_exits_1_against_a_faster_run(out: Path, result: dict[str, Any], tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps(scaled(result, 1e-3)))
    assert main(small(tmp_path, "--compare", str(old))) == 1


def test_what_is_gone_and_another_machine_are_named(result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(result)
    other["rows"] = other["rows"][1:]
    other["machine"]["cores"] = 1024
    report_changes(result, other, 0.15)
    printed = capsys.readouterr().out
    assert "another machine: cores" in printed
    assert "1024" in printed


def test_runs_without_a_common_case_do_not_compare(result: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no case in common"):
        gate.compare(result, {"rows": [], "machine": {}}, 0.15)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[]", "expected a lookup benchmark"), ('{"format": 0}', "format 1")]
)
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        gate.load(path)
    with pytest.raises(ValueError, match="no such file"):
        gate.load(tmp_path / "absent.json")
