"""A chain on this machine, by the verb: finished, run again, changed, stopped by gates, and continued."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import yaml
from tiny_chain import PATIENCE, RECIPE, JobsInThisProcess, last_page, last_record, results, run, run_here

from mtmh.artifacts import open_artifact
from mtmh.chain.record import PAGE, load_record
from mtmh.chain.run import plan_chain, run_chain
from mtmh.cli import app
from mtmh.config import load_config
from mtmh.evaluation.results import load_evaluation
from mtmh.index.versions import current_version, list_versions

# An index that tells few vectors apart, with whatever probes it is asked.
COARSE = [
    word
    for setting in ("storage=pq", "pq.m=1", "pq.bits=4", "refine_factor=0")
    for word in ("--set", f"index.{setting}")
]
STAGES = ["prepare", "content_embed", "train", "embed", "build_index", "evaluate"]


def test_a_chain_from_nothing_ends_in_a_published_index(folder: Path) -> None:
    printed = run(folder, 0)
    record = last_record(folder)
    assert record.outcome == "published"
    assert results(record) == ["ran"] * 6
    assert [gate.passed for gate in record.gates] == [True, True]
    assert current_version(folder / "runs/mtmh/index").name == record.version == "000001"
    page = last_page(folder)
    assert str(page.relative_to(folder)) in printed
    text = page.read_text()
    assert "nothing is published yet" in text
    assert all(f"<td>{stage}</td>" in text for stage in STAGES)
    assert "http" not in text.replace('http-equiv="refresh"', ""), "the page needs nothing from elsewhere"
    assert (Path(folder, record.of("train").logs) / "train/0/stderr.log").is_file()


def test_what_the_jobs_have_made_is_a_report_and_an_index_that_answers_without_torchrec(folder: Path) -> None:
    steps = (folder / "runs/mtmh/checkpoints/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [20]
    report = (folder / "runs/mtmh/evaluation/report.html").read_text()
    assert "<svg" in report
    elsewhere = ("http://www.w3.org", "http://purl.org", "http://creativecommons.org")
    assert "http://" not in reduce(lambda text, name: text.replace(name, ""), elsewhere, report)
    found = load_evaluation(folder / "runs/mtmh/evaluation")
    kinds = {"merged", "head", "own-score", "alpha", "preranking", "exact", "yardstick"}
    assert {row.kind for row in found.rows} == kinds
    assert found.merged.recall[50].value > 0.0
    asking = "app(['retrieve', 'tiny.yaml', '--trigger=7', '--k=3'], standalone_mode=False)"
    code = f"import sys; from mtmh.cli import app; {asking}; print('torchrec' in sys.modules)"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    assert {"engagement", "relevance"} <= set(shown.split())
    assert shown.splitlines()[-1] == "False", "retrieval imports what only models need, which takes seconds"


def test_nothing_changed_nothing_runs(folder: Path) -> None:
    run_here(folder, 0)
    record = last_record(folder)
    assert record.outcome == "unchanged"
    assert results(record) == ["unchanged"] * 6
    assert all(line.job is None for line in record.stages)


def test_what_would_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    same = plan_chain(load_config("tiny.yaml", ["training.log_every=7", "chain.max_match_drop=0.5"]))
    assert same == [(stage, "unchanged", []) for stage in STAGES], "no stage reads these"
    shown = run_here(folder, 0, "--dry-run").splitlines()
    assert [line.split() for line in shown] == [[stage, "unchanged"] for stage in STAGES]

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
    printed = run_here(folder, 1, "--set", "index.min_recall=1.0", *COARSE)
    record = last_record(folder)
    assert record.outcome == "stopped"
    assert "gate missed: recall of the index" in printed
    assert results(record) == ["unchanged"] * 4 + ["ran", "waiting"]
    assert "index.storage was flat, is pq" in record.of("build_index").reasons
    assert record.version == "000002"
    assert current_version(folder / "runs/mtmh/index").name == "000001"


def test_worse_figures_than_the_published_ones_stop_the_chain(folder: Path) -> None:
    settings = ["--set", "index.min_recall=0", *COARSE]
    printed = run_here(folder, 1, *settings, "--set", "chain.max_match_drop=0")
    record = last_record(folder)
    assert results(record) == ["unchanged"] * 5 + ["ran"], "the index that missed a gate is still there"
    assert record.outcome == "stopped"
    assert "gate missed: against the published version" in printed
    assert "too low" in record.message
    text = last_page(folder).read_text()
    assert "Stopped at a gate" in text
    assert "may be lower by 0 points: too low" in text
    assert current_version(folder / "runs/mtmh/index").name == "000001"

    run_here(folder, 0, *settings, "--set", "chain.max_recall_drop=1", "--set", "chain.max_match_drop=1")
    record = last_record(folder)
    assert results(record) == ["unchanged"] * 6, "the gate alone was in the way"
    assert record.outcome == "published"
    assert record.message == "index 000002, after 000001"
    assert [version.state for version in list_versions(folder / "runs/mtmh/index")] == ["current", "published"]


def test_an_index_that_was_taken_back_is_not_published_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    app(["index", "rollback", "tiny.yaml"], standalone_mode=False)
    settings = ["--set", "index.min_recall=0", *COARSE]
    drops = ["--set", "chain.max_recall_drop=1", "--set", "chain.max_match_drop=1"]
    printed = run_here(folder, 0, *settings, *drops)
    assert "was published before and taken back since" in printed
    assert current_version(folder / "runs/mtmh/index").name == "000001"


def test_the_next_period_continues_from_this_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = Path("runs/mtmh/checkpoints/step-00000020")
    settings = ["paths.root=runs/next", "data.split.test_fraction=0.15", "embedding.max_drift=1"]
    # A gate that it misses spares the time of evaluation.
    settings += ["index.min_recall=1.0", "retrieval.num_probes=1"]
    monkeypatch.setattr("mtmh.chain.run.Jobs", JobsInThisProcess)
    said: list[str] = []
    record, _ = run_chain("tiny.yaml", settings, "local_cwd", "", said.append, before)
    assert record.outcome == "stopped", said
    assert "gate missed: recall of the index" in record.message
    trained = open_artifact(Path("runs/next/mtmh/checkpoints/step-00000020"), "checkpoint")
    assert trained.manifest.inputs["previous"] == open_artifact(before, "checkpoint").manifest.digest
    embedded = open_artifact(Path("runs/next/mtmh/embeddings"), "embeddings")
    assert (
        embedded.manifest.inputs["previous"]
        == open_artifact(Path("runs/mtmh/embeddings"), "embeddings").manifest.digest
    )
    page = max(Path("runs/next/mtmh/chain").glob("2*/")) / PAGE
    assert f"<b>{before}</b><span>continued from</span>" in page.read_text()

    arguments = [word for setting in settings for word in ("--set", setting)]
    planned = run_here(folder, 0, *arguments, "--dry-run", "--continue-from", str(before)).splitlines()
    assert [line.split() for line in planned[:5]] == [[stage, "unchanged"] for stage in STAGES[:5]]
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
