"""Settings of the chain: resources of each stage's job, and the limits that a new index must keep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from mtmh.config.base import NonNegative, Settings

StageName = Literal[
    "prepare",
    "content_simulate",
    "content_train",
    "content_check",
    "content_embed",
    "train",
    "embed",
    "build_index",
    "train_preranker",
    "evaluate",
]


class JobConfig(Settings):
    """Resources that one stage's job asks of the scheduler; a field left out has the component's default."""

    j: Annotated[str, Field(pattern=r"^\d+x\d+$")] | None = None  # nodes x processes
    h: str | None = None  # named host
    max_retries: Annotated[int, Field(ge=0)] = 0
    cfg: dict[str, str] = {}  # of the scheduler, over those of the command line: partition, time, queue


class ChainConfig(Settings):
    """``mtmh chain``. The drops are differences of shares: 0.01 lets recall@500 fall from 0.46 to 0.45."""

    stages: dict[StageName, JobConfig] = {}
    image: str = ""  # container image of all jobs (kubernetes)
    env: dict[str, str] = {}
    mounts: list[str] = []  # as the components take them, one word each: type=volume,src=runs,dst=/work/runs
    max_recall_drop: NonNegative = 0.01  # of recall at the largest cut-off, against the published version
    max_match_drop: NonNegative = 0.02  # of topic match, L1 and L2 each
    # How long the chain waits to see what a job that ended with success has written: shared file systems show it late.
    settle_s: Annotated[float, Field(ge=0.0)] = 60.0
    ignore_code: bool = False  # skip stages too whose artifact other code of mtmh has made
    allow_unmeasured: bool = False  # publish too where the published version could not be measured on the new data

    @field_validator("env")
    @classmethod
    def _no_commas(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if "," in value:
                raise ValueError(f"{name}={value}: a value cannot hold a comma, because TorchX splits at it")
        return env
