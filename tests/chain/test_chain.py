"""A chain on this machine, by the verb: killed, cancelled, finished, run again, changed, and stopped by gates."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from mtmh.artifacts import open_artifact
from mtmh.chain.record import PAGE, RECORD, ChainRecord, load_record
from mtmh.chain.run import plan_chain
from mtmh.config import load_config
from mtmh.index.versions import current_version, list_versions

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
evaluation: {num_users: 50, recall_at: [5, 50]}
chain:
  stages: {content_embed: {j: 1x1}, train: {j: 1x2}, embed: {j: 1x1}, build_index: {j: 1x1}}
"""
# A run that lasts until it is stopped.
SLOW = ["--set", "training.max_steps=1000000", "--set", "training.epochs=100000"]
# An index that tells few vectors apart, with whatever probes it is asked.
COARSE = [
    word
    for setting in ("storage=pq", "pq.m=1", "pq.bits=4", "refine_factor=0")
    for word in ("--set", f"index.{setting}")
]
PATIENCE = 240.0  # seconds, on a machine that is busy with other things
STAGES = ["prepare", "content_embed", "train", "embed", "build_index", "evaluate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("chain")
    (path / "tiny.yaml").write_text(RECIPE)
    return path


@pytest.fixture(autouse=True)
def _nothing_stays_behind(folder: Path) -> Iterator[None]:
    yield
    for process in of_this_chain(folder):
        process.kill()


def test_a_killed_chain_leaves_what_the_next_one_ends(folder: Path) -> None:
    killed = start(folder, *SLOW)
    training = wait_for(killed, lambda: ranks_of(folder), 2)
    assert "another chain of this recipe is running" in run(folder, 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert len([process for process in training if process.is_running()]) == 2, "SIGKILL lets nobody clean up"

    after = start(folder, *SLOW)
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


def test_the_same_command_goes_on_to_a_published_index(folder: Path) -> None:
    printed = run(folder, 0)
    record = last_record(folder)
    assert record.outcome == "published"
    assert results(record) == ["unchanged", "unchanged", "ran", "ran", "ran", "ran"]
    assert [gate.passed for gate in record.gates] == [True, True]
    assert current_version(folder / "runs/mtmh/index").name == record.version == "000001"
    page = last_page(folder)
    assert str(page.relative_to(folder)) in printed
    text = page.read_text()
    assert "nothing is published yet" in text
    assert all(f"<td>{stage}</td>" in text for stage in STAGES)
    assert "http" not in text.replace('http-equiv="refresh"', ""), "the page needs nothing from elsewhere"
    assert (Path(folder, record.of("train").logs) / "train/0/stderr.log").is_file()


def test_nothing_changed_nothing_runs(folder: Path) -> None:
    run(folder, 0)
    record = last_record(folder)
    assert record.outcome == "unchanged"
    assert results(record) == ["unchanged"] * 6
    assert all(line.job is None for line in record.stages)


def test_what_would_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    same = plan_chain(load_config("tiny.yaml", ["training.log_every=7", "chain.max_match_drop=0.5"]))
    assert same == [(stage, "unchanged", []) for stage in STAGES], "no stage reads these"
    assert [line.split() for line in run(folder, 0, "--dry-run").splitlines()] == [[s, "unchanged"] for s in STAGES]

    other = plan_chain(load_config("tiny.yaml", ["model.head_dim=12"]))
    assert other == [
        ("prepare", "unchanged", []),
        ("content_embed", "unchanged", []),
        ("train", "waiting", ["model.head_dim was 8, is 12"]),
        ("embed", "waiting", ["after train"]),
        ("build_index", "waiting", ["after embed"]),
        ("evaluate", "waiting", ["after build_index"]),
    ]


def test_an_index_below_its_recall_stops_the_chain(folder: Path) -> None:
    printed = run(folder, 1, "--set", "index.min_recall=1.0", *COARSE)
    record = last_record(folder)
    assert record.outcome == "stopped"
    assert "gate missed: recall of the index" in printed
    assert results(record) == ["unchanged"] * 4 + ["ran", "waiting"]
    assert "index.storage was flat, is pq" in record.of("build_index").reasons
    assert record.version == "000002"
    assert current_version(folder / "runs/mtmh/index").name == "000001"


def test_worse_figures_than_the_published_ones_stop_the_chain(folder: Path) -> None:
    settings = ["--set", "index.min_recall=0", *COARSE]
    printed = run(folder, 1, *settings, "--set", "chain.max_match_drop=0")
    record = last_record(folder)
    assert results(record) == ["unchanged"] * 5 + ["ran"], "the index that missed a gate is still there"
    assert record.outcome == "stopped"
    assert "gate missed: against the published version" in printed
    assert "too low" in record.message
    text = last_page(folder).read_text()
    assert "Stopped at a gate" in text
    assert "may be lower by 0 points: too low" in text
    assert current_version(folder / "runs/mtmh/index").name == "000001"

    run(folder, 0, *settings, "--set", "chain.max_recall_drop=1", "--set", "chain.max_match_drop=1")
    record = last_record(folder)
    assert results(record) == ["unchanged"] * 6, "the gate alone was in the way"
    assert record.outcome == "published"
    assert record.message == "index 000002, after 000001"
    assert [version.state for version in list_versions(folder / "runs/mtmh/index")] == ["current", "published"]


def test_an_index_that_was_taken_back_is_not_published_again(folder: Path) -> None:
    subprocess.run([program("mtmh"), "index", "rollback", "tiny.yaml"], cwd=folder, check=True, timeout=PATIENCE)
    settings = ["--set", "index.min_recall=0", *COARSE]
    drops = ["--set", "chain.max_recall_drop=1", "--set", "chain.max_match_drop=1"]
    printed = run(folder, 0, *settings, *drops)
    assert "was published before and taken back since" in printed
    assert current_version(folder / "runs/mtmh/index").name == "000001"


def test_the_next_period_continues_from_this_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = Path("runs/mtmh/checkpoints/step-00000020")
    settings = ["paths.root=runs/next", "data.split.test_fraction=0.15", "embedding.max_drift=1"]
    # A gate that it misses spares the time of evaluation.
    settings += ["index.min_recall=1.0", "retrieval.num_probes=1"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    run(folder, 1, *arguments, "--continue-from", str(before))
    trained = open_artifact(Path("runs/next/mtmh/checkpoints/step-00000020"), "checkpoint")
    assert trained.manifest.inputs["previous"] == open_artifact(before, "checkpoint").manifest.digest
    embedded = open_artifact(Path("runs/next/mtmh/embeddings"), "embeddings")
    assert (
        embedded.manifest.inputs["previous"]
        == open_artifact(Path("runs/mtmh/embeddings"), "embeddings").manifest.digest
    )
    page = max(Path("runs/next/mtmh/chain").glob("2*/")) / PAGE
    assert f"<b>{before}</b><span>continued from</span>" in page.read_text()

    config = load_config("tiny.yaml", settings)
    assert plan_chain(config, before)[:5] == [(stage, "unchanged", []) for stage in STAGES[:5]]
    afresh = {stage: reasons for stage, _, reasons in plan_chain(config)}
    assert afresh["train"] == ["continued from an earlier model, and none is given now"]
    assert plan_chain(load_config("tiny.yaml"), None)[2][1] == "unchanged", "the period before is as it was"
    with pytest.raises(ValueError, match="a checkpoint of this very recipe"):
        plan_chain(config, trained.path)


def test_a_teacher_that_cannot_tell_topics_apart_stops_the_chain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    tiny = {"name": "teacher", "extends": "synthetic+teacher-tiny"}
    Path("taught.yaml").write_text(yaml.safe_dump(yaml.safe_load(RECIPE) | tiny | {"paths": {"root": "runs/taught"}}))
    few = ["content.encoder.training.epochs=1", "content.check.num_items=100"]
    gates = [*few, "content.check.min_auc_l1=0.9999", "content.check.min_auc_l2=null"]
    printed = run(folder, 1, *(word for setting in gates for word in ("--set", setting)), recipe="taught.yaml")
    assert "gate, teacher: MISSED: ROC AUC of text and image at topic_l1 is 0." in printed
    (ran,) = Path("runs/taught/teacher/chain").glob("2*/")
    record = load_record(ran)
    assert record.outcome == "stopped"
    assert [line.stage for line in record.stages][:5] == [
        "prepare", "content_simulate", "content_train", "content_check", "content_embed"
    ]  # fmt: skip
    assert results(record) == ["ran"] * 4 + ["waiting"] * 5
    text = (ran / PAGE).read_text()
    assert "Stopped at a gate" in text
    assert "below content.check.min_auc_l1 = 0.9999" in text

    others = plan_chain(load_config("taught.yaml", [*few, "content.check.min_auc_l1=0.1"]))
    assert [row[1] for row in others[:5]] == ["unchanged"] * 3 + ["waiting"] * 2, "the teacher is not trained again"


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


def wait_for(job: subprocess.Popen[str], found: Callable[[], list], number: int) -> list:
    deadline = time.monotonic() + PATIENCE
    while len(files := found()) < number:
        assert time.monotonic() < deadline
        if job.poll() is not None:
            raise AssertionError(job.communicate()[0])
        time.sleep(0.1)
    return files


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


def last_folder(folder: Path) -> Path:
    return max(path for path in (folder / "runs/mtmh/chain").iterdir() if path.is_dir())


def last_record(folder: Path) -> ChainRecord:
    assert (last_folder(folder) / RECORD).is_file()
    return load_record(last_folder(folder))


def last_page(folder: Path) -> Path:
    return last_folder(folder) / PAGE


def results(record: ChainRecord) -> list[str]:
    return [line.result for line in record.stages]
