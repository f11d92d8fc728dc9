"""A chain over a scheduler that is told what to do: errors, artifacts that show late, and interrupted training."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from torchx.specs import AppState

from mtmh.artifacts import Artifact, code_of, open_artifact, sealed, write_artifact
from mtmh.chain import run
from mtmh.chain.record import PAGE, RECORD, ChainRecord, Job, Process, StageRecord, load_record
from mtmh.chain.run import Chain
from mtmh.chain.stages import Stage, examine, outlived_checkpoints, stages_of
from mtmh.chain.state import ChainState, StageState
from mtmh.config import Config
from mtmh.index.artifact import AnnRecall, IndexSummary, RankedBy
from mtmh.training.newest import LENGTH, VALIDATION


class Scheduler:
    """Takes the place of `Jobs`: a job does what it is told and is over.

    Args:
        work: done when a stage's state is asked for the first time.
    """

    def __init__(self, work: Callable[[str], None]) -> None:
        self._work = work
        self.submitted: list[str] = []
        self.cancelled: list[str] = []

    def submit(self, stage: str, options: list[str]) -> Job:
        if stage != "prepare":
            raise ValueError("the first stage is all that this test needs")
        self.submitted.append(stage)
        return Job(handle=f"test://x/{stage}", host="here")

    def state(self, job: Job) -> AppState:
        self._work(job.app_id)
        return AppState.SUCCEEDED

    def cancel(self, job: Job) -> None:
        self.cancelled.append(job.app_id)
        raise OSError("the scheduler is still away")

    def processes(self) -> list[Process]:
        return []

    def where_logs_are(self, job: Job) -> str:
        return f"logs of {job.app_id}"


def config_of(root: Path, **chain: object) -> Config:
    return Config.model_validate(
        {"name": "test", "paths": {"root": str(root)}, "data": {"source": "synthetic"}, "chain": chain}
    )


def chain_of(config: Config, scheduler: Scheduler, said: list[str]) -> tuple[Chain, Path]:
    folder = config.model_dir("chain") / "1"
    folder.mkdir(parents=True)
    record = ChainRecord(recipe="test", overrides=[], scheduler="test")
    stop = threading.Event()
    return Chain(config, scheduler, record, folder, ChainState(), stop, said.append), folder


def write(config: Config, path: Path, kind: str, inputs: dict[str, Artifact] | None = None) -> None:
    with write_artifact(path, kind, config=config.model_dump(mode="json"), inputs=inputs):
        pass


def write_without_end(config: Config, checkpoints: Path, step: int) -> None:
    """A checkpoint of a run of ten steps that has not seen the end of T1."""
    path = checkpoints / VALIDATION / f"step-{step:08d}"
    with write_artifact(path, "checkpoint", config=config.model_dump(mode="json")) as writer:
        writer.summary |= {"step": step, LENGTH: 10}


def test_an_error_of_the_scheduler_is_on_the_page_and_its_job_is_cancelled(tmp_path: Path) -> None:
    def lose(stage: str) -> None:
        raise ConnectionError(f"lost while asking for {stage}")

    said: list[str] = []
    scheduler = Scheduler(lose)
    chain, folder = chain_of(config_of(tmp_path), scheduler, said)
    with pytest.raises(ConnectionError, match="lost while asking for prepare"):
        chain.run(None)
    record = load_record(folder)
    assert (record.outcome, record.message) == ("failed", "ConnectionError: lost while asking for prepare")
    assert record.of("prepare").result == "failed"
    assert scheduler.cancelled == ["prepare"]
    assert said[-1] == "prepare: test://x/prepare could not be cancelled: the scheduler is still away"
    page = (folder / PAGE).read_text()
    assert "lost while asking" in page
    assert 'http-equiv="refresh"' not in page


def test_an_artifact_may_show_late(tmp_path: Path) -> None:
    config = config_of(tmp_path, settle_s=60)

    def write_late(stage: str) -> None:
        threading.Timer(0.7, write, (config, config.dataset_dir, "dataset")).start()

    chain, folder = chain_of(config, Scheduler(write_late), [])
    chain.run(None)
    record = load_record(folder)
    assert record.of("prepare").result == "ran"
    assert record.message == "the first stage is all that this test needs"


def test_an_artifact_that_never_shows_is_a_failure(tmp_path: Path) -> None:
    chain, folder = chain_of(config_of(tmp_path, settle_s=0.1), Scheduler(lambda _: None), [])
    chain.run(None)
    record = load_record(folder)
    assert record.of("prepare").result == "failed"
    assert record.message == "prepare ended with success, but nothing there yet"


def test_an_interrupted_training_goes_on_unless_its_data_or_settings_changed(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    learned = config.retrieval.model_copy(update={"sorter": "learned"})
    config = config.model_copy(update={"retrieval": learned})
    stages: dict[str, Stage] = {stage.name: stage for stage in stages_of(config)}
    write(config, tmp_path / "a", "dataset")
    write(config.model_copy(update={"seed": 5}), tmp_path / "b", "dataset")
    old, new = (open_artifact(tmp_path / name, "dataset") for name in "ab")
    folders = {"train": config.model_dir("checkpoints"), "train_preranker": config.preranker_checkpoints}
    for name, folder in folders.items():
        assert outlived_checkpoints(stages[name], config, {"dataset": old}, ChainState()) is None, "nothing there"
        write(config, folder / "step-00000010", "checkpoint", {"dataset": old})
        assert outlived_checkpoints(stages[name], config, {"dataset": old}, ChainState()) is None
        assert outlived_checkpoints(stages[name], config, {"dataset": new}, ChainState()) == folder
        changed = config.model_copy(update={"seed": 5})
        assert outlived_checkpoints(stages[name], changed, {"dataset": old}, ChainState()) == folder
        manifest = folder / "step-00000010/manifest.json"
        whole = manifest.read_text()
        manifest.write_text(whole[:-9])
        assert outlived_checkpoints(stages[name], changed, {"dataset": new}, ChainState()) is None, "training goes back"
        manifest.write_text(whole.replace('"format_version": 1', '"format_version": 9'))
        with pytest.raises(ValueError, match="format version 9"):
            outlived_checkpoints(stages[name], config, {"dataset": old}, ChainState())


@pytest.mark.parametrize(
    ("before", "now", "reasons", "goes_on"),
    [
        ({}, {}, [], True),
        ({"patience": 3}, {"patience": 4}, ["training.patience was 3, is 4"], True),
        ({"patience": 3}, {"patience": 2}, ["training.patience was 3, is 2"], False),
        ({"max_epochs": 9}, {"max_epochs": 20}, ["training.max_epochs was 9, is 20"], True),
        ({"max_epochs": 9}, {"max_epochs": 5}, ["training.max_epochs was 9, is 5"], False),
        ({"final": "keep"}, {"final": "retrain"}, ["training.final was keep, is retrain"], False),
        ({"epochs": 3, "patience": 3}, {"epochs": 3, "patience": 4}, [], True),
        ({"epochs": 3}, {"epochs": 4}, ["training.epochs was 3, is 4"], True),
    ],
)
def test_a_changed_choice_of_the_length_trains_again(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], reasons: list[str], goes_on: bool
) -> None:
    plain = config_of(tmp_path).model_dump()
    trained, config = (Config.model_validate(plain | {"training": training}) for training in (before, now))
    folder = trained.model_dir("checkpoints")
    write(trained, folder / "step-00000010", "checkpoint")
    write_without_end(trained, folder, step=10)
    checkpoint = open_artifact(folder / "step-00000010", "checkpoint")
    ended = ChainState(stages={"train": StageState(digest=checkpoint.manifest.digest, files="")})
    train = next(stage for stage in stages_of(config) if stage.name == "train")
    assert examine(train, config, {}, ended, just_ran=False).reasons == reasons
    assert outlived_checkpoints(train, config, {}, ended) == (None if goes_on else folder)


def test_a_sorter_that_weighs_the_heads_asks_for_the_model_without_the_end_of_t1(tmp_path: Path) -> None:
    plain = config_of(tmp_path).model_dump() | {"training": {"epochs": 3}}
    before, now = (Config.model_validate(plain | {"retrieval": {"sorter": name}}) for name in ("head-score", "learned"))
    folder = now.model_dir("checkpoints")
    write(before, folder / "step-00000010", "checkpoint")
    checkpoint = open_artifact(folder / "step-00000010", "checkpoint")
    ended = ChainState(stages={"train": StageState(digest=checkpoint.manifest.digest, files="")})
    train = next(stage for stage in stages_of(now) if stage.name == "train")

    def reasons(config: Config) -> list[str]:
        return examine(train, config, {}, ended, just_ran=False).reasons

    missing = ["no model as long that has not seen the end of T1, by which the preranker weighs what the heads say"]
    assert reasons(before) == []
    assert reasons(now) == missing
    assert outlived_checkpoints(train, now, {}, ended) is None, "the model that serves stays"
    write_without_end(now, folder, step=6)
    assert reasons(now) == missing, "interrupted"
    write_without_end(now, folder, step=10)
    assert reasons(now) == []


def test_a_run_of_a_given_length_is_not_gone_on_from_where_the_length_is_chosen(tmp_path: Path) -> None:
    plain = config_of(tmp_path).model_dump()
    trained, config = (Config.model_validate(plain | {"training": {"epochs": epochs}}) for epochs in (3, "auto"))
    folder = trained.model_dir("checkpoints")
    write(trained, folder / "step-00000010", "checkpoint")
    train = next(stage for stage in stages_of(config) if stage.name == "train")
    assert outlived_checkpoints(train, config, {}, ChainState()) == folder
    assert outlived_checkpoints(train, trained, {}, ChainState()) is None


@pytest.mark.parametrize(
    ("stage", "overrides", "reasons"),
    [
        ("build_index", {"retrieval": {"alpha": 70, "k": 9, "k_ann": 90}}, []),
        ("build_index", {"retrieval": {"num_probes": 5}}, ["retrieval.num_probes was auto, is 5"]),
        ("build_index", {"retrieval": {"preranker": "history"}}, ["retrieval.preranker was head-score, is history"]),
        ("build_index", {"retrieval": {"sorter": "history"}}, ["retrieval.sorter was learned, is history"]),
        ("train_preranker", {"index": {"tower": "fp16"}}, ["index.tower was int8, is fp16"]),
        ("train_preranker", {"index": {"storage": "sq8"}}, []),
    ],
)
def test_a_changed_setting_runs_the_stages_that_it_is_a_part_of(
    tmp_path: Path, stage: str, overrides: dict[str, Any], reasons: list[str]
) -> None:
    config = config_of(tmp_path)
    learned = {"train_preranker": {"preranker": "learned"}}.get(stage, {})
    before = Config.model_validate(config.model_dump() | {"retrieval": learned})
    now = Config.model_validate(
        before.model_dump() | overrides | {"retrieval": learned | overrides.get("retrieval", {})}
    )
    examined = next(candidate for candidate in stages_of(now) if candidate.name == stage)
    places = {"build_index": before.model_dir("index") / "versions" / "000001"}
    write(before, places.get(stage, before.model_dir("preranker")), examined.kind)
    assert examine(examined, now, {}, ChainState(), just_ran=False).reasons == reasons


@pytest.mark.parametrize(
    ("index", "probes", "reasons"),
    [
        ({"min_recall": 0.7}, "auto", []),
        ({"min_recall": 0.95}, "auto", []),
        ({"min_recall": 0.99}, "auto", ["index.min_recall was 0.9, is 0.99, which its probes do not reach"]),
        ({"min_recall": 0.99}, 7, []),  # fixed in both recipes: another build would change nothing
    ],
)
def test_a_higher_recall_than_the_probes_reach_builds_the_index_anew(
    tmp_path: Path, index: dict[str, Any], probes: Any, reasons: list[str]
) -> None:
    retrieval = {"num_probes": probes}
    plain = config_of(tmp_path).model_dump()
    before = Config.model_validate(plain | {"retrieval": retrieval, "index": {"min_recall": 0.9}})
    now = Config.model_validate(plain | {"retrieval": retrieval, "index": index})
    summary = IndexSummary(
        heads=["engagement"],
        dim=4,
        num_items=3,
        id_type="int64",
        num_clusters=9,
        num_probes=7,
        ranked_by=RankedBy(preranker="head-score", sorter="head-score", temperature=0.1),
        ann_recall={"engagement": AnnRecall(k=100, num_probes=7, num_queries=10, recall=0.96)},
    )
    path = before.model_dir("index") / "versions" / "000001"
    with write_artifact(path, "index", config=before.model_dump(mode="json")) as writer:
        writer.summary |= summary.model_dump()
    stage = next(stage for stage in stages_of(now) if stage.name == "build_index")
    assert examine(stage, now, {}, ChainState(), just_ran=False).reasons == reasons


def test_what_other_code_has_made_is_made_anew_and_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    developing = config_of(tmp_path, ignore_code=True)
    stages = {stage.name: stage for stage in stages_of(config)}
    write(config, config.dataset_dir, "dataset")
    write(config, config.model_dir("checkpoints") / "step-00000010", "checkpoint")
    prepare, train = stages["prepare"], stages["train"]

    def reasons() -> list[str]:
        return examine(prepare, config, {}, ChainState(), just_ran=False).reasons

    assert reasons() == []
    digest = open_artifact(config.dataset_dir, "dataset").manifest.digest
    for folder in (config.dataset_dir, config.model_dir("checkpoints") / "step-00000010"):
        manifest = folder / "manifest.json"
        tree = json.loads(manifest.read_text()) | {"code": "0123456789abcdef"}
        manifest.write_text(json.dumps(sealed(tree)))
    assert open_artifact(config.dataset_dir, "dataset").manifest.digest == digest, "what it holds is the same"
    assert reasons() == [f"made by other code of mtmh (0123456789ab) than this ({code_of('dataset')[:12]})"]
    assert examine(prepare, developing, {}, ChainState(), just_ran=False).reasons == []

    checkpoint = open_artifact(config.model_dir("checkpoints") / "step-00000010", "checkpoint")
    ended = ChainState(stages={"train": StageState(digest=checkpoint.manifest.digest, files="")})
    assert outlived_checkpoints(train, config, {}, ChainState()) is None
    assert outlived_checkpoints(train, config, {}, ended) == config.model_dir("checkpoints")
    assert outlived_checkpoints(train, developing, {}, ended) is None


class Clock(datetime):
    """Says what it is told."""

    hour = 0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Clock:
        return cls(2026, 1, 1, cls.hour, tzinfo=tz)


def leave(folder: Path, stages: list[StageRecord], outcome: str = "running") -> None:
    record = ChainRecord(recipe="test", overrides=[], scheduler="test", stages=stages)
    (folder / RECORD).write_text(record.model_copy(update={"outcome": outcome}).model_dump_json())


def test_the_last_chain_is_the_one_that_began_last_though_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "datetime", Clock)
    begun: list[Path] = []
    hours = [10, 9, 10, 8, 8, 8, 8, 8, 8, 8, 8, 8, 11, 9, 12]
    for hour in hours:
        monkeypatch.setattr(Clock, "hour", hour)
        job = Job(handle=f"test://x/{len(begun)}", host="here")
        if begun:
            left = run._left_behind(tmp_path)
            assert left is not None
            assert left.job == Job(handle=f"test://x/{len(begun) - 1}", host="here")
        begun.append(run._new_folder(tmp_path))
        leave(begun[-1], [StageRecord(stage="prepare", result="running", job=job)])
        assert run._in_order(tmp_path) == begun
    names = [folder.name for folder in begun]
    assert names[:2] == ["2026-01-01_100000", "2026-01-01_100000-2"]
    assert names[11:] == ["2026-01-01_100000-12", "2026-01-01_110000", "2026-01-01_110000-2", "2026-01-01_120000"]


def test_a_job_left_behind_is_found_until_a_chain_has_gone_past_it(tmp_path: Path) -> None:
    assert run._left_behind(tmp_path) is None
    job = Job(handle="test://x/1", host="here")
    waiting = [StageRecord(stage="prepare"), StageRecord(stage="train")]
    leave(run._new_folder(tmp_path), [StageRecord(stage="prepare", result="running", job=job), waiting[1]])
    run._new_folder(tmp_path)  # killed before it had a record
    leave(run._new_folder(tmp_path), waiting)  # killed before it came to await that job
    left = run._left_behind(tmp_path)
    assert left is not None
    assert left.job == job
    leave(run._new_folder(tmp_path), waiting, outcome="stopped")
    assert run._left_behind(tmp_path) is None, "that one was not killed, so it has settled the matter"
