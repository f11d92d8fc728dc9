"""Jobs and a chain on a real Slurm of two nodes, which `cluster.sh` starts on this machine.

About three minutes on two cores, so it runs when asked for: ``MTMH_TEST_SLURM=1 python -m pytest tests/slurm``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtmh.chain.record import Record, load_record
from mtmh.index.versions import current_version

CLUSTER = Path(__file__).with_name("cluster.sh")
RECIPE = """
name: mtmh
paths: {root: runs}
data:
  source: synthetic
  options: {num_users: 200, num_items: 300, num_events: 8000, num_topics_l1: 4, num_topics_l2: 3}
model: {embedding_dim: 8, dense_hidden: [8], dense_dim: 4, head_hidden: [16], head_dim: 8}
loss: {num_uniform_negatives: 48}
training: {batch_size: 384, max_steps: 20, checkpoint_every: 10, learning_rate: 0.5, dense_learning_rate: 0.05}
evaluation: {num_users: 50, recall_at: [5, 50]}
chain:
  stages:
    content_embed: {j: 1x1}
    train: {j: 2x1}
    embed: {j: 1x1}
    build_index: {j: 2x1, cfg: {time: "10"}}
"""
PATIENCE = 600.0  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to submit from, and a cluster that takes jobs."""
    if os.environ.get("MTMH_TEST_SLURM") != "1":
        pytest.skip("takes minutes; MTMH_TEST_SLURM=1 runs it")
    # A socket's path must be short.
    state = Path("/tmp") / f"mtmh-slurm-{os.getpid()}"
    started = subprocess.run([CLUSTER, "start", state], capture_output=True, text=True, timeout=60, check=False)
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    path: Path = tmp_path_factory.mktemp("slurm")
    (path / "tiny.yaml").write_text(RECIPE)
    before = os.environ.copy()
    os.environ["SLURM_CONF"] = str(state / "slurm.conf")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        yield path
    finally:
        subprocess.run([CLUSTER, "stop", state], timeout=60, check=True)
        shutil.rmtree(state)
        os.environ.clear()
        os.environ.update(before)


def test_a_chain_trains_and_builds_on_two_nodes(folder: Path) -> None:
    printed = chain(folder, 0)
    record = last_record(folder)
    assert [line.result for line in record.stages] == ["ran"] * 6, printed
    assert current_version(folder / "runs/mtmh/index").name == "000001"
    for line in record.stages:
        assert line.job is not None
        nodes = 2 if line.stage in ("train", "build_index") else 1
        shown = facts(line.job.app_id)
        assert [part["JobState"] for part in shown] == ["COMPLETED"] * nodes, line.stage
        assert len({part["NodeList"] for part in shown}) == nodes, "each part on a node of its own"
        logs = list(folder.glob(f"slurm-{line.job.app_id}-*.out"))
        assert len(logs) == nodes, line.logs
    assert record.of("train").logs == f"{folder}/slurm-{record.of('train').job.app_id}-*"


def test_a_job_that_crashes_has_failed_and_says_where_its_log_is(folder: Path) -> None:
    printed = chain(folder, 1, "--set", "sharding.tables.nowhere=row_wise", "--set", "model.head_dim=12")
    line = last_record(folder).of("train")
    assert line.result == "failed"
    assert line.job is not None
    assert "FAILED" in {part["JobState"] for part in facts(line.job.app_id)}
    where = f"{folder}/slurm-{line.job.app_id}-*"
    assert f"the job of train ended as FAILED; logs: {where}" in printed
    told = "".join(path.read_text() for path in folder.glob(f"slurm-{line.job.app_id}-*.err"))
    assert "error: sharding.tables names no table: nowhere" in told
    assert "error: sharding.tables names no table: nowhere" in line.tail


def test_ctrl_c_cancels_the_job(folder: Path) -> None:
    job = start(folder, "--set", "training.max_steps=1000000", "--set", "training.epochs=100000")
    deadline = time.monotonic() + PATIENCE
    while not (running := in_queue("RUNNING")):
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.5)
    job.send_signal(signal.SIGINT)
    printed = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == 130, printed
    line = next(line for line in last_record(folder).stages if line.result == "cancelled")
    assert line.job is not None
    assert any(name.startswith(line.job.app_id) for name in running)
    while in_queue("RUNNING,COMPLETING"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert {part["JobState"] for part in facts(line.job.app_id)} == {"CANCELLED"}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("mtmh")), "chain", "tiny.yaml", "--scheduler", "slurm"]
    return subprocess.Popen(
        [*command, "--cfg", "partition=cpu", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def chain(folder: Path, code: int, *arguments: str) -> str:
    job = start(folder, *arguments)
    printed = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == code, printed
    return printed


def last_record(folder: Path) -> Record:
    return load_record(max(path for path in (folder / "runs/mtmh/chain").iterdir() if path.is_dir()))


def facts(app_id: str) -> list[dict[str, str]]:
    """What Slurm knows of each node's part of a job."""
    shown = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", app_id], capture_output=True, text=True, check=True
    ).stdout
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in shown.splitlines() if line.strip()]


def in_queue(states: str) -> list[str]:
    shown = subprocess.run(
        ["squeue", "--noheader", "--format=%i", f"--states={states}"], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()
