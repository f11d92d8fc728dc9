"""Kills a torchrun job of 2 ranks with SIGKILL, resumes it, and compares with a run that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import losses_of, state_of, tiny_config, write_inputs

from mtmh.config import Config
from mtmh.training.checkpoint import latest_checkpoint
from mtmh.training.metrics import METRICS

WORKER = """
import sys
from mtmh.config import load_config
from mtmh.training.trainer import train
train(load_config(sys.argv[1]))
"""
PATIENCE = 120  # seconds, for a machine that is busy with other things


def start(config: Config) -> subprocess.Popen[bytes]:
    folder = config.paths.root / config.name
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(WORKER)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, str(folder / "worker.py"), str(folder / "recipe.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr").open("ab"),
    )


def finish(config: Config, job: subprocess.Popen[bytes]) -> None:
    assert job.wait(PATIENCE) == 0, (config.paths.root / config.name / "stderr").read_text()[-4000:]


def kill_after(config: Config, job: subprocess.Popen[bytes], step: int, delay: float) -> None:
    """Kills torchrun and all its ranks at once, ``delay`` seconds after ``step`` shows in the metrics."""
    deadline = time.monotonic() + PATIENCE
    metrics = config.model_dir("checkpoints") / METRICS
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline
        assert job.poll() is None, (config.paths.root / config.name / "stderr").read_text()[-4000:]
        time.sleep(0.005)
    time.sleep(delay)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    for pid in [job.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    job.wait(PATIENCE)


def test_a_killed_run_equals_one_that_was_left_alone(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    training = {"max_steps": 40, "checkpoint_every": 3}
    alone, killed = (tiny_config(tmp_path, name, training=training) for name in ("alone", "killed"))
    undisturbed = start(alone)
    moment = random.Random(5)
    for step in (7, 20):
        kill_after(killed, start(killed), step, moment.uniform(0.0, 0.1))
        assert max(losses_of(killed)) < 40
    finish(killed, start(killed))
    finish(alone, undisturbed)

    expected, state = (state_of(latest_checkpoint(c.model_dir("checkpoints"))) for c in (alone, killed))
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    losses, expected_losses = losses_of(killed), losses_of(alone)
    assert list(losses) == list(range(1, 41)), "each step once and in order"
    assert losses == expected_losses


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs are ranks of their own torchrun, not of one that may run these tests."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
