"""Facts that chains of one recipe keep for the next chain, in ``chain/state.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mtmh.artifacts import write_atomically

STATE_FILE = "state.json"


class StageState(BaseModel):
    """A stage that a chain has seen end with success.

    Attributes:
        digest: of its artifact.
        files: stamp of the raw files that it read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    files: str


class ChainState(BaseModel):
    """The whole of it.

    Attributes:
        stages: by name of the stage.
        published: digests of the indexes that chains have published, the latest last.
    """

    model_config = ConfigDict(extra="ignore")  # other versions note more

    stages: dict[str, StageState] = {}
    published: list[str] = []

    @classmethod
    def load(cls, folder: Path) -> ChainState:
        """Reads it; a first chain starts from nothing.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / STATE_FILE
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
        write_atomically(folder / STATE_FILE, self.model_dump_json(indent=2))
