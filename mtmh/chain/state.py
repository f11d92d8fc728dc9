"""What chains of one recipe note for the next one, in ``chain/state.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mtmh.artifacts import write_atomically
from mtmh.evaluation.results import Evaluation, Protocol

STATE = "state.json"


class StageState(BaseModel):
    """A stage that a chain has seen end with success.

    Attributes:
        digest: of its artifact.
        files: stamp of the raw files that it read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    files: str


class Figures(BaseModel):
    """What an evaluation found for one version of the index; shares from 0 to 1.

    Attributes:
        version: name of the version.
        protocol: figures of different protocols are not compared.
        recall: at the largest cut-off of the protocol.
        match_l1: of merged answers; None: no topics.
        match_l2: likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    protocol: Protocol
    recall: float
    match_l1: float | None
    match_l2: float | None

    @classmethod
    def of(cls, evaluation: Evaluation, version: str) -> Figures:
        """The figures of the merged answers."""
        merged = evaluation.merged
        return cls(
            version=version,
            protocol=evaluation.protocol,
            recall=merged.recall[max(evaluation.protocol.recall_at)].value,
            match_l1=None if merged.match_l1 is None else merged.match_l1.value,
            match_l2=None if merged.match_l2 is None else merged.match_l2.value,
        )


class State(BaseModel):
    """The whole of it.

    Attributes:
        stages: by name of the stage.
        figures: by digest of the index.
        published: digests of the indexes that chains have published, the latest last.
    """

    model_config = ConfigDict(extra="forbid")

    stages: dict[str, StageState] = {}
    figures: dict[str, Figures] = {}
    published: list[str] = []

    @classmethod
    def load(cls, folder: Path) -> State:
        """Reads it; a first chain starts from nothing.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / STATE
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            raise ValueError(
                f"{path}: not readable: {error.errors()[0]['msg']}; remove it, and the chain compares manifests alone"
            ) from None

    def save(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        write_atomically(folder / STATE, self.model_dump_json(indent=2))
