"""A node dies: its launcher and ranks are killed in the middle of a run of two nodes.

For the second node a new one takes its place. The first holds the rendezvous, so without it the job ends and starts
again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from forked_ranks import Launcher
from tiny_run import losses_of, state_of, tiny_config, write_inputs

from mtmh.config import Config
from mtmh.training.newest import latest_checkpoint
from mtmh.training.progress import STEP_METRICS

NUM_STEPS = 140
PATIENCE = 180.0  # seconds, for a machine that is busy with other things


class Job:
    """Two nodes on this machine: a torchrun each, as `torchx run mtmh.train -j 2x1 --max_retries 2` starts them."""

    def __init__(self, config: Config) -> None:
        self.folder = config.paths.root / config.name
        self.folder.mkdir(exist_ok=True)
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.nodes = [self.start_node() for _ in range(2)]

    def start_node(self) -> subprocess.Popen[bytes]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{self.port}", "--rdzv-id", "job"]
        node = subprocess.Popen(
            [*torchrun, *meeting, "--max-restarts", "2", "-m", "mtmh.cli", "train", str(self.folder / "recipe.yaml")],
            # As the component has it: otherwise the new node waits for an address that nobody tells it.
            env=environment() | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "stderr").open("ab"),
        )
        deadline = time.monotonic() + PATIENCE
        while not listens(self.port):  # the first node holds the meeting
            assert time.monotonic() < deadline
            assert node.poll() is None, self.told()
            time.sleep(0.05)
        return node

    def kill_node(self, number: int) -> None:
        launcher = psutil.Process(self.nodes[number].pid)
        for process in [launcher, *launcher.children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
        self.nodes[number].wait(PATIENCE)

    def finish(self) -> None:
        deadline = time.monotonic() + PATIENCE
        for node in self.nodes:
            assert node.wait(max(1.0, deadline - time.monotonic())) == 0, self.told()

    def told(self) -> str:
        return (self.folder / "stderr").read_text()[-6000:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a teacher, and a run that nobody disturbed."""
    path: Path = tmp_path_factory.mktemp("nodes")
    write_inputs(path)
    launcher = Launcher(2, ranks_per_host=1)
    launcher.start(config_of(path, "alone")).finish()
    return path


def test_the_job_goes_on_when_the_second_node_is_replaced(root: Path) -> None:
    config = config_of(root, "second")
    with started(config) as job:
        wait_for_step(config, job, 30)
        job.kill_node(1)
        # What Slurm and Kubernetes do for a lost node: another one joins the job.
        job.nodes[1] = job.start_node()
        job.finish()
    assert_same(config, config_of(root, "alone"))


def test_the_job_ends_when_the_first_node_is_lost_and_goes_on_when_it_is_started_again(root: Path) -> None:
    config = config_of(root, "first")
    with started(config) as job:
        wait_for_step(config, job, 30)
        job.kill_node(0)
        # A scheduler starts a job again when it has failed: a survivor that waits for ever would keep it from that.
        assert job.nodes[1].wait(PATIENCE) != 0
        assert "RendezvousConnectionError" in job.told()
    with started(config) as job:
        job.finish()
    assert_same(config, config_of(root, "alone"))


def config_of(root: Path, name: str) -> Config:
    return tiny_config(root, name, training={"max_steps": NUM_STEPS, "checkpoint_every": 20, "epochs": 100})


@contextmanager
def started(config: Config) -> Iterator[Job]:
    """A job; whatever is left of it at the end is stopped."""
    job = Job(config)
    try:
        yield job
    finally:
        for node in job.nodes:
            if node.poll() is None:
                node.terminate()
                node.wait(PATIENCE)


def assert_same(config: Config, undisturbed: Config) -> None:
    """Weights and optimizer to the bit, and the loss of every step."""
    expected, state = (state_of(latest_checkpoint(c.model_dir("checkpoints"))) for c in (undisturbed, config))
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert losses_of(config) == losses_of(undisturbed)


def wait_for_step(config: Config, job: Job, step: int) -> None:
    metrics = config.model_dir("checkpoints") / STEP_METRICS
    deadline = time.monotonic() + PATIENCE
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline, job.told()
        assert all(node.poll() is None for node in job.nodes), job.told()
        time.sleep(0.005)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment() -> dict[str, str]:
    """The jobs are ranks of their own torchrun, not of one that may run these tests."""
    others = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in others}
