"""A chain over a small simulated catalogue, by the verb, and what it has left."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from mtmh.torchx_apps import components
from torchx.specs import AppState
from torchx.specs.builders import materialize_appdef
from typer.testing import CliRunner

from mtmh.chain.record import PAGE, RECORD, ChainRecord, Job, Process, load_record
from mtmh.cli import app

RECIPE = """
name: mtmh
paths: {root: runs}
data:
  source: synthetic
  options: {num_users: 200, num_items: 300, num_events: 8000, num_topics_l1: 4, num_topics_l2: 3}
model: {embedding_dim: 8, dense_hidden: [8], dense_dim: 4, head_hidden: [16], head_dim: 8}
loss: {num_uniform_negatives: 48}
training: {batch_size: 384, max_steps: 20, checkpoint_every: 20, learning_rate: 0.5, dense_learning_rate: 0.05}
retrieval: {sorter: head-score}
evaluation: {num_users: 50, recall_at: [5, 50], alphas: [30, 50], yardsticks: [popularity]}
chain:
  stages: {content_embed: {j: 1x1}, train: {j: 1x2}, embed: {j: 1x1}, build_index: {j: 1x1}}
"""
PATIENCE = 240.0  # seconds, on a machine that is busy with other things


class JobsInThisProcess:
    """Takes the place of `Jobs`: the verb of a component runs here, which spares the starts of a dozen Pythons."""

    def __init__(self, config: Any, recipe: str, overrides: list[str], *_: Any) -> None:
        self._words = ["--recipe", recipe, *overrides]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, stage: str, options: list[str]) -> Job:
        (role,) = materialize_appdef(getattr(components, stage), [*options, *self._words]).roles
        words = shlex.split(role.args[-1]) if role.entrypoint == "bash" else role.args
        app(words[words.index("mtmh.cli") + 1 :], standalone_mode=False)
        return Job(handle=f"here://x/{stage}", host="here")

    def state(self, job: Job) -> AppState:
        return AppState.SUCCEEDED

    def processes(self) -> list[Process]:
        return []

    def where_logs_are(self, job: Job) -> str:
        return job.app_id


def program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def environment() -> dict[str, str]:
    programs = Path(sys.executable).parent
    return os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str, recipe: str = "tiny.yaml") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [program("mtmh"), "chain", recipe, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, code: int, *arguments: str, recipe: str = "tiny.yaml") -> str:
    job = start(folder, *arguments, recipe=recipe)
    printed = job.communicate(timeout=2 * PATIENCE)[0]
    assert job.returncode == code, printed
    return printed


def run_here(folder: Path, code: int, *arguments: str) -> str:
    """The verb and its jobs in this process: for what it decides, and not how jobs are started and followed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("mtmh.chain.run.Jobs", JobsInThisProcess)
        done = CliRunner().invoke(app, ["chain", "tiny.yaml", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def of_this_chain(folder: Path) -> list[psutil.Process]:
    """All processes that work in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()) == folder:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def last_folder(folder: Path) -> Path:
    return max(path for path in (folder / "runs/mtmh/chain").iterdir() if path.is_dir())


def last_record(folder: Path) -> ChainRecord:
    assert (last_folder(folder) / RECORD).is_file()
    return load_record(last_folder(folder))


def last_page(folder: Path) -> Path:
    return last_folder(folder) / PAGE


def results(record: ChainRecord) -> list[str]:
    return [line.result for line in record.stages]
