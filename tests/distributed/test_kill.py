"""Kills training with SIGKILL again and again, also while it writes, and compares with a run that was left alone.

Twenty kills by default; ``MTMH_KILLS=200 pytest tests/distributed/test_kill.py`` for a long night.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from forked_ranks import PATIENCE, Job, Launcher
from tiny_run import losses_of, random_state_of, state_of, tiny_config, write_inputs

from mtmh.artifacts import open_artifact
from mtmh.config import Config
from mtmh.training.newest import latest_checkpoint

KILLS = int(os.environ.get("MTMH_KILLS", "20"))
WORKER = """
import sys
from mtmh.config import load_config
from mtmh.training.trainer import train
train(load_config(sys.argv[1]))
"""
STEPS = 130
EVERY = 3


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs are ranks of their own torchrun, not of one that may run these tests."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and a finished run ``alone`` on 2 ranks, with a checkpoint shortly before its end."""
    root = tmp_path_factory.mktemp("kill")
    write_inputs(root)
    launcher = Launcher(world_size=2)
    launcher.start(config_of(root, "alone", every=STEPS - 2)).finish()
    return root


def config_of(root: Path, name: str, every: int = EVERY) -> Config:
    """The same run, whatever its name and however often it saves."""
    # A table of raw ids, so small that each step takes rows from some ids for others.
    table = {"rows": 96, "buckets": 12, "eviction": "lru"}
    return tiny_config(
        root,
        name,
        model={"id_tables": {"item_id": table}},
        training={"max_steps": STEPS, "checkpoint_every": every, "epochs": 6},
    )


def checkpoints_of(config: Config) -> Path:
    return config.model_dir("checkpoints")


def assert_equal_to_the_bit(first: Path, other: Path, steps: int = STEPS) -> None:
    """Weights, optimizer, random state of each rank, and the loss of every step once and in order."""
    newest, expected = (latest_checkpoint(checkpoints) for checkpoints in (first, other))
    assert newest.name == expected.name == f"step-{steps:08d}"
    for read in (state_of, random_state_of):
        found, wanted = read(newest), read(expected)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(found[name], value), name
    assert list(losses_of(first)) == list(range(1, steps + 1))
    assert losses_of(first) == losses_of(other)


def wait_for_writing(checkpoints: Path, job: Job) -> None:
    """Returns when a checkpoint is being written."""
    deadline = time.monotonic() + PATIENCE
    while job.is_running() and not list(checkpoints.glob(".step-*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_run_killed_twenty_times_equals_one_that_was_left_alone(root: Path) -> None:
    killed = config_of(root, "killed")
    behind = killed.model_copy(update={"training": killed.training.model_copy(update={"async_checkpoint": True})})
    checkpoints = killed.model_dir("checkpoints")
    launcher = Launcher(world_size=2)
    moment = random.Random(5)
    cut_off = 0  # kills that left a checkpoint half written
    for number in range(KILLS):
        job = launcher.start(moment.choice([killed, behind]))
        if number % 2:
            time.sleep(moment.uniform(0.0, 3.0))
        else:
            wait_for_writing(checkpoints, job)
            time.sleep(moment.uniform(0.0, 0.05))
        for victim in moment.sample(job.ranks, moment.randint(1, 2)):
            victim.kill()
        time.sleep(moment.uniform(0.0, 0.1))
        job.end()
        cut_off += bool(list(checkpoints.glob(".step-*.partial")))
    assert cut_off > KILLS // 10
    launcher.start(killed).finish()
    assert_equal_to_the_bit(checkpoints_of(killed), checkpoints_of(config_of(root, "alone")))
    kept = sorted(path.name for path in checkpoints.iterdir() if "step-" in path.name)
    assert kept == [f"step-{STEPS - STEPS % EVERY:08d}", f"step-{STEPS:08d}"], (
        "nothing of the interrupted saves is left"
    )


def test_a_file_of_any_rank_that_is_altered_sends_all_back(root: Path) -> None:
    """Each rank reads a part of the files; what one finds, all heed."""
    config = config_of(root, "altered", every=STEPS - 2)
    checkpoints = config.model_dir("checkpoints")
    shutil.copytree(root / "alone", root / "altered")
    launcher = Launcher(world_size=2)
    artifact = open_artifact(checkpoints / f"step-{STEPS:08d}", "checkpoint")
    artifact.verify()
    written = [name for name in artifact.manifest.files if name.endswith(".distcp")]
    assert {name.split("_")[2] for name in written} == {"0", "1"}
    for name in written:
        shutil.rmtree(checkpoints / f"step-{STEPS:08d}.damaged", ignore_errors=True)
        content = bytearray((artifact.path / name).read_bytes())
        content[-100] ^= 1
        (artifact.path / name).write_bytes(content)
        launcher.start(config).finish()
        assert (checkpoints / f"step-{STEPS:08d}.damaged").is_dir()
        assert_equal_to_the_bit(checkpoints_of(config), checkpoints_of(config_of(root, "alone")))


def test_torchrun_goes_on_by_itself_when_a_worker_is_killed(root: Path) -> None:
    config = config_of(root, "elastic", every=STEPS // 4)
    worker, recipe, log = (root / name for name in ("worker.py", "recipe.yaml", "elastic.log"))
    worker.write_text(WORKER)
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    with log.open("ab") as output:
        job = subprocess.Popen(
            [*torchrun, str(worker), str(recipe)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + PATIENCE
    while not list(config.model_dir("checkpoints").glob("step-*")):
        assert time.monotonic() < deadline
        assert job.poll() is None, log.read_text()[-4000:]
        time.sleep(0.01)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if str(worker).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert job.wait(2 * PATIENCE) == 0, log.read_text()[-4000:]
    assert_equal_to_the_bit(checkpoints_of(config), checkpoints_of(config_of(root, "alone")))
