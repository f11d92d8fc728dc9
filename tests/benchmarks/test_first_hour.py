"""The harness of the first hour on a GPU, on a CPU: every check runs, and what fails, hangs or is cut short is told."""

from __future__ import annotations

import json
import multiprocessing as mp
from pathlib import Path

import pytest

from benchmarks.first_hour.__main__ import PAGE, RESULTS, main, show
from benchmarks.first_hour.checks import CHECKS, Run
from benchmarks.first_hour.checks import main as check

QUICK = ["kernels", "precision", "id tables", "save", "finite", "search"]  # in one process each, seconds
FEW = ["finite", "search"]
WHOLE = ["losses", "trace", "lookup", "encoder", "demo"]  # start further programs


def run(out: Path, *words: str) -> int:
    return main(["--device", "cpu", "--small", "--out", str(out), *words])


def test_every_check_is_in_one_of_the_tests() -> None:
    assert sorted(QUICK + WHOLE) == sorted(CHECKS)


@pytest.mark.parametrize("name", QUICK)
def test_quick_checks_pass(tmp_path: Path, name: str) -> None:
    result = tmp_path / "result.json"
    words = [name, "--device", "cpu", "--small", "--folder", str(tmp_path), "--result", str(result)]
    # In a process of its own as the harness does it, but forked: to import what it needs takes longer than the check.
    process = mp.get_context("forkserver").Process(target=check, args=(words,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert json.loads(result.read_text())["figures"]


def test_checks_that_pass_are_written_and_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--only", *FEW) == 0
    report = json.loads((tmp_path / RESULTS).read_text())
    assert report["settings"] == {"device": "cpu", "small": True}
    for name in FEW:
        assert report["checks"][name]["state"] == "passed"
        assert report["checks"][name]["figures"]
    page = (tmp_path / PAGE).read_text()
    assert f"{len(FEW)} of {len(CHECKS)} checks passed" in page
    assert "demo: not begun" in page
    capsys.readouterr()
    assert run(tmp_path, "--only", *FEW) == 0
    assert capsys.readouterr().out.count("done before") == len(FEW)


@pytest.mark.parametrize("name", WHOLE)
def test_checks_of_whole_programs_pass(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, "--only", name) == 0, json.loads((tmp_path / RESULTS).read_text())["checks"][name]["said"]
    assert json.loads((tmp_path / RESULTS).read_text())["checks"][name]["figures"]


def test_a_failed_check_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise RuntimeError('no such device')")
    assert run(tmp_path / "out", "--only", "finite") == 1
    found = json.loads((tmp_path / "out" / RESULTS).read_text())["checks"]["finite"]
    assert found["state"] == "failed"
    assert "no such device" in found["said"]
    assert "finite: failed" in (tmp_path / "out" / PAGE).read_text()
    (tmp_path / "torch.py").unlink()
    assert run(tmp_path / "out", "--only", "finite") == 0


def test_what_does_not_fit_into_the_time_waits_for_the_next_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--minutes", "0.01", "--only", "search") == 1
    assert "search: 1 s are left, which is too short; call again" in capsys.readouterr().out
    assert not (tmp_path / RESULTS).exists()


def test_one_bad_weight_is_found_and_a_check_that_does_not_find_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    checks = Run(torch.device("cpu"), True, tmp_path)
    assert CHECKS["finite"].run(checks)["values"] == 2**16 + 8
    monkeypatch.setattr("benchmarks.first_hour.checks.check_finite", lambda state, step: None)
    with pytest.raises(AssertionError, match="was not found"):
        CHECKS["finite"].run(checks)


def test_the_page_names_what_hung() -> None:
    shown = show(
        {
            "settings": {"device": "cuda", "small": False},
            "checks": {
                "kernels": {"state": "not done in time", "seconds": 40.0, "said": "", "machine": {"GPU": "H100"}}
            },
        }
    )
    assert "kernels: not done in time" in shown
    assert "H100" in shown
