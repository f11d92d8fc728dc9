"""The whole path by the verbs a user types: prepare to report, trained by TorchX on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtmh.evaluation.results import load_evaluation

RECIPE = """
name: mtmh
description: The smallest run of the whole path.
paths: {root: runs/tiny}
data:
  source: synthetic
  options: {num_users: 300, num_items: 400, num_events: 12000, num_topics_l1: 4, num_topics_l2: 3}
model: {embedding_dim: 8, dense_hidden: [16], dense_dim: 8, head_hidden: [32], head_dim: 16}
loss: {num_uniform_negatives: 96}
training: {batch_size: 384, max_steps: 30, checkpoint_every: 20, learning_rate: 0.5, dense_learning_rate: 0.05}
evaluation: {num_users: 60, recall_at: [5, 50]}
"""


def run(folder: Path, *command: str, code: int = 0) -> str:
    """Runs a program of this environment in ``folder`` and returns what it printed."""
    programs = Path(sys.executable).parent
    environment = {
        **os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "120"
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("end_to_end")
    (folder / "tiny.yaml").write_text(RECIPE)
    run(folder, "mtmh", "prepare", "tiny.yaml")
    run(folder, "mtmh", "content", "embed", "tiny.yaml")
    printed = run(
        folder, "torchx", "run", "--scheduler", "local_cwd", "mtmh.train", "-j", "1x2", "--recipe", "tiny.yaml"
    )
    assert "Trained 30 steps" in printed
    return folder


def test_two_processes_shared_the_tables(trained: Path) -> None:
    lines = (trained / "runs/tiny/mtmh/checkpoints/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 30]
    plan = json.loads((trained / "runs/tiny/mtmh/checkpoints/step-00000030/manifest.json").read_text())
    assert plan["kind"] == "checkpoint"


def test_the_rest_of_the_path_ends_in_a_report(trained: Path) -> None:
    run(trained, "mtmh", "embed", "tiny.yaml")
    run(trained, "mtmh", "build-index", "tiny.yaml")
    shown = run(trained, "mtmh", "retrieve", "tiny.yaml", "--trigger", "7", "--k", "3")
    assert "engagement" in shown
    assert "relevance" in shown
    printed = run(trained, "mtmh", "evaluate", "tiny.yaml")
    assert "report.html" in printed
    folder = trained / "runs/tiny/mtmh/evaluation"
    report = (folder / "report.html").read_text()
    assert "<svg" in report
    assert "http://" not in report.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    found = load_evaluation(folder)
    kinds = {"merged", "head", "own-score", "alpha", "preranking", "exact", "yardstick", "candidates"}
    assert {row.kind for row in found.rows} == kinds
    assert found.merged.recall[50].value > 0.0


def test_what_the_user_got_wrong_is_one_line_and_exit_code_2(trained: Path) -> None:
    assert run(trained, "mtmh", "train", "nowhere", code=2).startswith("error: no recipe nowhere")
    unknown = run(trained, "mtmh", "embed", "tiny.yaml+single-task", code=2)
    assert unknown.startswith("error: ")
    assert "single-task/checkpoints" in unknown
    assert "Traceback" not in unknown
