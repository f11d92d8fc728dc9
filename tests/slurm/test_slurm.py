"""Jobs and a chain on a real Slurm of two nodes, which `cluster.sh` starts on this machine.

About six minutes on two cores, so it runs when asked for: ``MTMH_TEST_SLURM=1 python -m pytest tests/slurm``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from tiny_run import state_of
from torchx.runner import get_runner

from mtmh.chain.record import ChainRecord, load_record
from mtmh.config import Config, load_config
from mtmh.index.versions import current_version
from mtmh.training.newest import latest_checkpoint

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
    # slurmd is where Debian keeps the daemons.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
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


def test_a_job_goes_on_when_its_first_host_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    long = RECIPE.replace("root: runs", "root: loss").replace("max_steps: 20", "max_steps: 300, epochs: 100")
    Path("long.yaml").write_text(long)
    for verb in (["prepare"], ["content", "embed"]):
        subprocess.run([Path(sys.executable).with_name("mtmh"), *verb, "long.yaml"], check=True, timeout=PATIENCE)
    undisturbed, struck = (load_config("long.yaml", [f"name={name}"]) for name in ("undisturbed", "struck"))
    follow(train_on_two_nodes(undisturbed))

    job = train_on_two_nodes(struck)
    deadline = time.monotonic() + PATIENCE
    while not (checkpoints := sorted(struck.model_dir("checkpoints").glob("step-*"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lose_first_host()
    assert int(checkpoints[0].name.removeprefix("step-")) < 300, "it was over before the host was lost"
    while facts(job)[0]["JobState"] != "PENDING":  # Slurm has noticed
        assert time.monotonic() < deadline
        time.sleep(0.5)
    subprocess.run(["slurmd", "-N", first_host()], check=True)
    follow(job)
    # Slurm starts the lost host's part alone. That is enough if the lost launcher held the rendezvous, for then the
    # other one has ended; else it stands in the way until the script has both parts requeued. All nodes here have one
    # host name, so which launcher it is differs from run to run.
    assert facts(job)[0]["Restarts"] in ("1", "2")

    expected, state = (state_of(latest_checkpoint(c.model_dir("checkpoints"))) for c in (undisturbed, struck))
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def train_on_two_nodes(config: Config) -> str:
    """Submits a training job that may start twice more; its number."""
    with get_runner() as runner:
        words = ["-j", "2x1", "--max_retries", "2", "--recipe", "long.yaml", f"name={config.name}"]
        return runner.run_component("mtmh.train", words, "slurm", {"partition": "cpu"}).rsplit("/", 1)[-1]


def follow(job: str) -> None:
    """Waits until it is completed; Slurm's two minutes before it starts a whole job again are left out."""
    deadline = time.monotonic() + PATIENCE
    while (states := {part["JobState"] for part in facts(job)}) != {"COMPLETED"}:
        told = Path(f"slurm-{job}.out")
        assert states != {"FAILED"}, f"{facts(job)}\n{told.read_text()[-3000:]}"
        assert time.monotonic() < deadline, facts(job)
        if states == {"PENDING"}:
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)
        time.sleep(0.5)


def lose_first_host() -> None:
    """Kills what a lost host takes with it: its slurmd, the job's script and srun, the launcher and the rank."""
    victims, launched = [], set[int]()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            environment = process.environ()
            if "SLURM_JOB_ID" in environment and environment.get("SLURMD_NODENAME") == first_host():
                victims.append(process)
                launched.update(parent.pid for parent in process.parents() if parent.name() == "slurmstepd")
    daemon = Path(os.environ["SLURM_CONF"]).with_name(f"slurmd.{first_host()}.pid")
    for process in [psutil.Process(pid) for pid in (int(daemon.read_text()), *launched)] + victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def first_host() -> str:
    return socket.gethostname().split(".")[0]


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


def last_record(folder: Path) -> ChainRecord:
    return load_record(max(path for path in (folder / "runs/mtmh/chain").iterdir() if path.is_dir()))


def facts(app_id: str) -> list[dict[str, str]]:
    """Slurm's record of each node's part of a job."""
    shown = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", app_id], capture_output=True, text=True, check=True
    ).stdout
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in shown.splitlines() if line.strip()]


def in_queue(states: str) -> list[str]:
    shown = subprocess.run(
        ["squeue", "--noheader", "--format=%i", f"--states={states}"], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()
