"""A chain on this machine, by the verb: killed, cancelled, and ended by a job that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_chain import PATIENCE, last_page, last_record, of_this_chain, results, run, start

from mtmh.cli import app

# Two ranks that train until they are stopped.
ENDLESS = [
    word
    for setting in ("training.max_steps=1000000", "training.epochs=100000", "chain.stages.train.j=1x2")
    for word in ("--set", setting)
]


def test_a_killed_chain_leaves_what_the_next_one_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for verb in (["prepare"], ["content", "embed"]):  # what comes before training, in seconds less than by jobs
        app([*verb, "tiny.yaml"], standalone_mode=False)
    killed = start(folder, *ENDLESS)
    training = wait_for(killed, lambda: ranks_of(folder), 2)
    assert "another chain of this recipe is running" in run(folder, 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert len([process for process in training if process.is_running()]) == 2, "SIGKILL lets nobody clean up"

    after = start(folder, *ENDLESS)
    wait_for(after, lambda: [process for process in ranks_of(folder) if process not in training], 2)
    assert not [process for process in training if process.is_running()]
    after.send_signal(signal.SIGINT)  # what Ctrl-C sends
    printed = after.communicate(timeout=PATIENCE)[0]
    assert after.returncode == 130, printed
    assert "that a killed chain had left" in printed
    assert "train: cancelling local_cwd://" in printed
    assert not of_this_chain(folder), "processes without a parent"
    record = last_record(folder)
    assert record.outcome == "cancelled"
    assert results(record) == ["unchanged", "unchanged", "cancelled", "waiting", "waiting", "waiting"]


def test_a_failing_job_says_where_its_logs_are(folder: Path) -> None:
    printed = run(folder, 1, "--set", "data.split.test_fraction=0.999999")
    record = last_record(folder)
    assert record.outcome == "failed"
    assert results(record)[0] == "failed"
    assert f"the job of prepare ended as FAILED; logs: {record.of('prepare').logs}" in printed
    assert "error: " in record.of("prepare").tail
    assert "Last lines of prepare" in last_page(folder).read_text()
    assert (folder / "runs/dataset/manifest.json").is_file(), "what was there stays"


def test_a_scheduler_that_does_not_exist(folder: Path) -> None:
    assert "--scheduler nowhere: not one of" in run(folder, 2, "--scheduler", "nowhere")


def wait_for(job: subprocess.Popen[str], found: Callable[[], list], number: int) -> list:
    deadline = time.monotonic() + PATIENCE
    while len(files := found()) < number:
        assert time.monotonic() < deadline
        if job.poll() is not None:
            raise AssertionError(job.communicate()[0])
        time.sleep(0.1)
    return files


def ranks_of(folder: Path) -> list[psutil.Process]:
    """The processes that train, known by what torchrun tells them."""
    ranks = []
    for process in of_this_chain(folder):
        try:
            if "RANK" in process.environ() and "train" in process.cmdline():
                ranks.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return ranks
