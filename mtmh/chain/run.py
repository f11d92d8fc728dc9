"""Runs the chain of a recipe: the story of a release, from raw data to the published index."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from torchx.specs import AppState

from mtmh.artifacts import Artifact, open_artifact
from mtmh.chain.gates import GATES, published_index, to_measure
from mtmh.chain.jobs import Jobs, end_processes
from mtmh.chain.page import save
from mtmh.chain.record import RECORD, ChainRecord, Result, StageRecord, load_record, now
from mtmh.chain.stages import PREVIOUS, Finding, Say, Stage, examine, set_checkpoints_aside, stages_of
from mtmh.chain.state import ChainState, StageState, only_chain
from mtmh.config import Config, load_config
from mtmh.data.raw_files import stamp
from mtmh.index.versions import BelowGateError, publish

_FORGOTTEN = 60.0  # seconds without news of a job, after which it counts as failed


class StoppedError(Exception):
    """The chain ends here: a gate, a job that failed, or Ctrl-C. The record has it all."""


def run_chain(
    recipe: str, overrides: list[str], scheduler: str, cfg: str, say: Say, continue_from: Path | None = None
) -> tuple[ChainRecord, Path]:
    """Runs what has changed, stage after stage, and publishes the index if every gate passes.

    Only this process talks to the scheduler; the stages' artifacts must be on a file system that it shares with the
    jobs, at the same paths.

    Args:
        recipe: as the verbs take it.
        overrides: ``KEY=VALUE`` each, for every stage.
        scheduler: name of one of TorchX's: ``local_cwd``, ``slurm``, ``kubernetes``.
        cfg: its settings, ``partition=gpu,time=60``.
        say: takes a line for people.
        continue_from: checkpoint of the period before, as `mtmh train` takes it; what its model has embedded is kept
            where it can be.

    Returns:
        What happened, and the folder with its page.

    Raises:
        ValueError: recipe, scheduler, state or checkpoint do not fit, or another chain of this recipe is running.
    """
    config = load_config(recipe, overrides)
    previous = _open_previous(config, continue_from)
    chain_dir = config.model_dir("chain")
    with only_chain(chain_dir), _ctrl_c() as stop:
        left = _left_behind(chain_dir)
        folder = _new_folder(chain_dir)
        with Jobs(config, recipe, overrides, scheduler, cfg, folder / "logs") as jobs:
            record = ChainRecord(recipe=recipe, overrides=overrides, scheduler=scheduler, started_at=now())
            record.continued_from = str(continue_from or "")
            Chain(config, jobs, record, folder, ChainState.load(chain_dir), stop, say, previous).run(left)
    return record, folder


class Chain:
    """One run over all stages.

    Args:
        config: the recipe.
        jobs: the scheduler.
        record: to fill.
        folder: of record and page.
        state: what earlier chains noted; kept up to date.
        stop: set by Ctrl-C.
        say: takes a line for people.
        previous: the checkpoint that training continues from.
    """

    def __init__(
        self,
        config: Config,
        jobs: Jobs,
        record: ChainRecord,
        folder: Path,
        state: ChainState,
        stop: threading.Event,
        say: Say,
        previous: Artifact | None = None,
    ) -> None:
        self._config = config
        self._jobs = jobs
        self._record = record
        self._folder = folder
        self._state = state
        self._stop = stop
        self._say = say
        self._previous = previous
        self._found: dict[str, Artifact] = {}
        self._published: Artifact | None = None  # the published version as the evaluation begins
        self._begun = time.monotonic()

    def run(self, left: StageRecord | None) -> None:
        """All stages, their gates, then publication; an error that is not the user's is recorded, and raised again.

        Args:
            left: the stage that was running when the chain before this one was killed.
        """
        stages = stages_of(self._config)
        self._record.stages = [StageRecord(stage=stage.name) for stage in stages]
        self._save()
        try:
            if left is not None:
                self._await_left(left)
            for stage in stages:
                self._run_stage(stage)
                self._pass_gate(stage)
            self._check_stop()
            self._publish()
        except StoppedError:
            pass
        except ValueError as error:
            self._fail(str(error))
        except BaseException as error:
            self._fail(f"{type(error).__name__}: {error}")
            raise
        self._save()
        self._say(f"{self._record.outcome}: {self._record.message}")

    def _fail(self, message: str) -> None:
        """Writes down what is wrong, and ends the job that nobody would follow any more."""
        self._end("failed", message)
        followed = [line for line in self._record.stages if line.result == "running"]
        for line in followed:
            line.result = "failed"
        try:
            self._save()
        finally:
            for line in followed:
                if line.job is not None:
                    self._say(f"{line.stage}: cancelling {line.job.handle}")
                    try:
                        self._jobs.cancel(line.job)
                    except Exception as error:
                        self._say(f"{line.stage}: {line.job.handle} could not be cancelled: {error}")

    def _await_left(self, left: StageRecord) -> None:
        """Gets a killed chain's job out of the way: it would write where ours will."""
        assert left.job is not None
        if left.job.handle.startswith("local"):
            if left.job.host == socket.gethostname():
                ended = end_processes(left.processes)
                self._say(f"{left.stage}: ended {ended} processes that a killed chain had left")
            return
        if self._jobs.state(left.job) in (AppState.SUBMITTED, AppState.PENDING, AppState.RUNNING):
            self._say(f"{left.stage}: waiting for {left.job.handle}, which a killed chain had submitted")
            line = self._record.of(left.stage)
            line.job, line.result = left.job, "running"
            self._save()
            self._wait(line)
            line.job, line.result = None, "waiting"

    def _run_stage(self, stage: Stage) -> None:
        line = self._record.of(stage.name)
        inputs = _inputs_of(stage, self._found, self._previous)
        if stage.name == "evaluate":
            self._published = published_index(self._config)
            inputs |= to_measure(self._found["build_index"], self._published)
        finding = examine(stage, self._config, inputs, self._state, just_ran=False)
        # Before the job: a file that changes while the job reads makes the next chain run it again.
        files = stamp(stage.files(self._config))
        if finding.reasons:
            self._check_stop(line)
            aside = set_checkpoints_aside(stage, self._config, inputs, self._state)
            if aside is not None:
                self._say(f"{stage.name}: another run; the checkpoints of the one before are in {aside}")
            line.reasons = finding.reasons
            ended = self._run_job(stage, line)
            finding = self._left_by(stage, inputs, line, patient=ended is AppState.SUCCEEDED)
            # The check of the teacher ends with an error if it misses a gate; its artifact tells the gate all.
            if ended is not AppState.SUCCEEDED and (finding.reasons or stage.name != "content_check"):
                assert line.job is not None
                line.result, line.tail = "failed", self._jobs.tail(line.job)
                self._end("failed", f"the job of {stage.name} ended as {ended.name}; logs: {line.logs}")
                raise StoppedError
            if finding.reasons:
                line.result = "failed"
                self._end("failed", f"{stage.name} ended with success, but {'; '.join(finding.reasons)}")
                raise StoppedError
            line.result = "ran"
            self._say(f"{stage.name}: ran, {line.seconds:.0f} s")
        else:
            line.result = "unchanged"
            self._say(f"{stage.name}: unchanged")
        assert finding.artifact is not None
        line.output = str(finding.artifact.path)
        self._found[stage.name] = finding.artifact
        self._state.stages[stage.name] = StageState(digest=finding.artifact.manifest.digest, files=files)
        self._state.save(self._config.model_dir("chain"))
        self._save()

    def _left_by(self, stage: Stage, inputs: dict[str, Artifact], line: StageRecord, *, patient: bool) -> Finding:
        """The artifact that a job has left; a shared file system may show it late."""
        end = time.monotonic() + (self._config.chain.settle_s if patient else 0.0)
        while True:
            finding = examine(stage, self._config, inputs, self._state, just_ran=True)
            if not finding.reasons or time.monotonic() >= end:
                return finding
            self._stop.wait(0.5)
            self._check_stop(line)

    def _run_job(self, stage: Stage, line: StageRecord) -> AppState:
        self._say(f"{stage.name}: {'; '.join(line.reasons)}")
        line.started_at, begun = now(), time.monotonic()
        line.job = self._jobs.submit(stage.name, self._options(stage))
        line.result, line.logs = "running", self._jobs.where_logs_are(line.job)
        self._save()
        try:
            return self._wait(line)
        finally:
            line.seconds = round(time.monotonic() - begun, 1)
            line.processes = []

    def _options(self, stage: Stage) -> list[str]:
        if stage.name == "build_index":
            return ["--publish", "False"]
        if stage.name == "evaluate":
            index = self._found["build_index"]
            beside = to_measure(index, self._published).values()
            options = [word for other in beside for word in ("--published_version", other.path.name)]
            return ["--index_version", index.path.name, *options]
        if stage.name == "train" and self._previous is not None:
            return ["--continue_from", str(self._previous.path)]
        if stage.name == "embed" and self._previous is not None:
            return self._delta(self._previous)
        return []

    def _delta(self, previous: Artifact) -> list[str]:
        """Embeds what has changed, or all if there is nothing to keep from the period before."""
        from mtmh.tower.delta import open_period  # brings torch with it

        try:
            open_period(previous)
        except ValueError as error:
            self._say(f"embed: the whole catalogue: {error}")
            return []
        return ["--delta_from", str(previous.path)]

    def _wait(self, line: StageRecord) -> AppState:
        """Follows a job to its end; failures must be seen twice, because a scheduler may start the job again."""
        assert line.job is not None
        pause, last_news, failed_before = 0.2, time.monotonic(), False
        while True:
            if self._stop.wait(pause):
                self._say(f"{line.stage}: cancelling {line.job.handle}")
                self._jobs.cancel(line.job)
                line.result = "cancelled"
                self._end("cancelled", f"cancelled during {line.stage}; the same command goes on from there")
                raise StoppedError
            state = self._jobs.state(line.job)
            if state is AppState.SUCCEEDED or (state in (AppState.FAILED, AppState.CANCELLED) and failed_before):
                return state
            failed_before = state in (AppState.FAILED, AppState.CANCELLED)
            if state is not AppState.UNKNOWN:
                last_news = time.monotonic()
            elif time.monotonic() - last_news > _FORGOTTEN:
                return state
            processes = self._jobs.processes()
            if processes != line.processes:
                line.processes = processes
                self._save()
            pause = min(1.5 * pause, 2.0)

    def _pass_gate(self, stage: Stage) -> None:
        gate = GATES.get(stage.name)
        if gate is None:
            return
        if stage.name == "build_index":
            self._record.version = self._found[stage.name].path.name
        verdict = gate(self._config, self._found[stage.name], self._published)
        self._record.gates.append(verdict)
        self._say(f"gate, {verdict.gate}: {'passed' if verdict.passed else 'MISSED'}: {'; '.join(verdict.figures)}")
        if not verdict.passed:
            self._end("stopped", f"gate missed: {verdict.gate}. {'; '.join(verdict.figures)}")
            raise StoppedError

    def _publish(self) -> None:
        index, before = self._found["build_index"], self._published
        digest = index.manifest.digest
        if before is not None and before.manifest.digest == digest:
            self._end("unchanged", f"index {before.path.name} is the published one already")
            return
        if digest in self._state.published:
            self._end(
                "unchanged",
                f"index {index.path.name} was published before and taken back since, so it is not published again;"
                f" `mtmh index publish {self._record.recipe} {index.path.name}` does",
            )
            return
        settings = self._config.index
        try:
            # Over the version that it was compared with, or not at all.
            over = before.path.name if before else ""
            published = publish(
                index.path,
                min_recall=settings.min_recall,
                keep=settings.keep_versions,
                over=over,
                milvus=settings.milvus,
            )
        except BelowGateError as error:
            self._end("stopped", str(error))
            return
        self._state.published.append(digest)
        self._state.save(self._config.model_dir("chain"))
        was = f", after {before.path.name}" if before else ""
        self._end("published", f"index {published.name}{was}")

    def _check_stop(self, line: StageRecord | None = None) -> None:
        """Ends the chain before a stage, or before publication, if Ctrl-C was pressed since the last job."""
        if not self._stop.is_set():
            return
        if line is not None:
            line.result = "cancelled"
        step = "publication" if line is None else line.stage
        self._end("cancelled", f"cancelled before {step}; the same command goes on from there")
        raise StoppedError

    def _end(self, outcome: Any, message: str) -> None:
        self._record.outcome, self._record.message = outcome, message

    def _save(self) -> None:
        self._record.seconds = round(time.monotonic() - self._begun, 1)
        save(self._record, self._folder)


def plan_chain(config: Config, continue_from: Path | None = None) -> list[tuple[str, Result, list[str]]]:
    """Steps that a chain would take now: name, ``unchanged`` or ``waiting`` and why, for each stage; starts nothing.

    A stage behind one that must run is compared with the artifacts that are there, so it may yet turn out unchanged.

    Args:
        config: the recipe.
        continue_from: as `run_chain` takes it.

    Raises:
        ValueError: no such checkpoint, or the chain's state is damaged.
    """
    previous = _open_previous(config, continue_from)
    state, found = ChainState.load(config.model_dir("chain")), dict[str, Artifact]()
    rows: list[tuple[str, Result, list[str]]] = []
    running: set[str] = set()
    for stage in stages_of(config):
        first = [source for source in stage.inputs.values() if source in running]
        missing = [source for source in stage.inputs.values() if source not in found]
        inputs = _inputs_of(stage, found, previous)
        if stage.name == "evaluate":
            inputs |= to_measure(found.get("build_index"), published_index(config))
        finding = examine(stage, config, inputs, state, just_ran=False)
        reasons = [*finding.reasons, *(f"after {source}" for source in dict.fromkeys([*first, *missing]))]
        if reasons:
            running.add(stage.name)
        if finding.artifact is not None:
            found[stage.name] = finding.artifact
        rows.append((stage.name, "waiting" if reasons else "unchanged", reasons))
    return rows


def _inputs_of(stage: Stage, found: dict[str, Artifact], previous: Artifact | None) -> dict[str, Artifact]:
    """Inputs of a stage, as far as they are there."""
    inputs = {name: found[source] for name, source in stage.inputs.items() if source in found}
    if stage.name == "train" and previous is not None:
        inputs[PREVIOUS] = previous
    return inputs


def _open_previous(config: Config, path: Path | None) -> Artifact | None:
    if path is None:
        return None
    if path.resolve().is_relative_to(config.model_dir("checkpoints").resolve()):
        raise ValueError(
            f"--continue-from {path}: a checkpoint of this very recipe, which training would replace; give the new"
            f" period another paths.root or name"
        )
    return open_artifact(path, "checkpoint")


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Set by SIGINT or SIGTERM: a signal that raises could get between a job and its handle."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _left_behind(chain_dir: Path) -> StageRecord | None:
    """The stage that the last chain was running when it was killed, or one before it that it did not come to await."""
    for folder in reversed(_in_order(chain_dir)):
        record = load_record(folder) if (folder / RECORD).is_file() else None
        if record is None or (record.outcome == "running" and all(line.result == "waiting" for line in record.stages)):
            continue  # killed before it ran anything
        return next((line for line in record.stages if line.result == "running" and line.job), None)
    return None


def _new_folder(chain_dir: Path) -> Path:
    """Makes the folder of a chain, named by the time, but after all others where the clock has gone back."""
    time, number = datetime.now(UTC).strftime("%Y-%m-%d_%H%M%S"), 1
    for folder in _in_order(chain_dir)[-1:]:
        last, number_of_last = _place(folder)
        if last >= time:
            time, number = last, number_of_last + 1
    folder = chain_dir / (time if number == 1 else f"{time}-{number}")
    folder.mkdir()
    return folder


def _in_order(chain_dir: Path) -> list[Path]:
    """The folders of all chains, the last one last."""
    return sorted((path for path in chain_dir.glob("[0-9]*") if path.is_dir()), key=_place)


def _place(folder: Path) -> tuple[str, int]:
    """Time and number in the name of a chain's folder."""
    time, number = re.fullmatch(r"(.*?_\d{6}|.*)(?:-(\d+))?", folder.name).groups()  # type: ignore[union-attr]
    return time, int(number or 1)
