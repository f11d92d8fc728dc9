"""The record of a chain: written as it goes, for its page, for programs, and for the chain after a killed one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mtmh import __version__
from mtmh.config import StageName

RECORD = "record.json"
PAGE = "report.html"

Result = Literal["waiting", "running", "ran", "unchanged", "failed", "cancelled"]
Outcome = Literal["running", "published", "unchanged", "stopped", "failed", "cancelled"]


class Process(BaseModel):
    """A process of a job on this machine; the time of its start tells it from a later one of the same id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    started: float  # seconds since 1970


class Job(BaseModel):
    """A job at a scheduler.

    Attributes:
        handle: as TorchX names it, ``slurm://torchx/17``.
        host: of the chain that submitted it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    handle: str
    host: str

    @property
    def app_id(self) -> str:
        """The scheduler's own name of the job."""
        return self.handle.rsplit("/", 1)[-1]


class StageRecord(BaseModel):
    """One line of the page.

    Attributes:
        stage: its name.
        result: how it ended.
        reasons: why it ran.
        started_at: when its job was submitted.
        seconds: from then to the end of the job.
        job: at the scheduler.
        processes: of the job while it runs on this machine.
        logs: where they are.
        output: folder of its artifact.
        tail: the last lines of the logs of a job that failed.
    """

    model_config = ConfigDict(extra="forbid")

    stage: StageName
    result: Result = "waiting"
    reasons: list[str] = []
    started_at: str = ""
    seconds: float = 0.0
    job: Job | None = None
    processes: list[Process] = []
    logs: str = ""
    output: str = ""
    tail: str = ""


class Verdict(BaseModel):
    """The verdict of a gate.

    Attributes:
        gate: for people.
        passed: ``False`` stops the chain.
        figures: what was compared with what, a line each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gate: str
    passed: bool
    figures: list[str]


class ChainRecord(BaseModel):
    """The content of ``record.json``.

    Attributes:
        recipe: as given.
        overrides: settings changed on the command line.
        continued_from: checkpoint of the period before; empty: training starts afresh.
        scheduler: where jobs ran.
        mtmh_version: of the chain.
        outcome: how it ended.
        message: why, for people.
        started_at: when it began.
        seconds: how long it took.
        stages: all stages of the recipe.
        gates: those that were reached.
        version: of the index that the chain was about.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: str
    overrides: list[str]
    continued_from: str = ""
    scheduler: str
    mtmh_version: str = __version__
    outcome: Outcome = "running"
    message: str = ""
    started_at: str = ""
    seconds: float = 0.0
    stages: list[StageRecord] = []
    gates: list[Verdict] = []
    version: str = ""

    def of(self, stage: StageName) -> StageRecord:
        """The line of a stage."""
        return next(line for line in self.stages if line.stage == stage)


def load_record(folder: Path) -> ChainRecord:
    """Reads a record.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / RECORD
    try:
        return ChainRecord.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: not readable: {error.errors()[0]['msg']}") from None


def now() -> str:
    """The time, for records."""
    return datetime.now(UTC).isoformat(timespec="seconds")
