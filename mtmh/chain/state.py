"""Facts that chains of one recipe keep for the next chain, in ``chain/state.json``."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
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
        running: the stage that a process is in, or was in when it was killed; empty: none.
    """

    model_config = ConfigDict(extra="ignore")  # other versions note more

    stages: dict[str, StageState] = {}
    published: list[str] = []
    running: str = ""

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


@contextmanager
def only_chain(folder: Path) -> Iterator[None]:
    """Keeps others out while the stages of a recipe run: two at once would write the same artifacts.

    Raises:
        ValueError: another one is running.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another chain of this recipe is running") from None
        yield
