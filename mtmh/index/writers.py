"""Lock of an index folder: one writer at a time, and the next one removes what a killed writer has left."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

_LOCK = ".lock"
_SCRATCH = ".compact-"


@contextmanager
def writing(index_dir: Path) -> Iterator[None]:
    """Holds off the other writers of this folder, in this process and others; a killed holder lets go by itself."""
    index_dir.mkdir(parents=True, exist_ok=True)
    with (index_dir / _LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _remove_abandoned(index_dir)
        yield


@contextmanager
def scratch_folder(index_dir: Path) -> Iterator[Path]:
    """A folder beside the versions for long work; if its process is killed, the next writer removes it.

    Its owner holds a lock on a file in it as long as it lives, and no other lock: writers go on meanwhile.
    """
    with writing(index_dir):
        folder = Path(tempfile.mkdtemp(dir=index_dir, prefix=_SCRATCH))
        file = (folder / _LOCK).open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        _remove(folder)
        file.close()


def _remove_abandoned(index_dir: Path) -> None:
    """Removes scratch folders whose owners are gone; the caller holds the lock of the folder."""
    for folder in index_dir.glob(f"{_SCRATCH}*"):
        try:
            # Not made anew where there is none: it would be in the way of an owner that is removing the folder.
            with (folder / _LOCK).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
        except BlockingIOError:  # at work
            continue
        except FileNotFoundError:  # just done with it, or killed before it had a lock
            _remove(folder)


def _remove(folder: Path) -> None:
    """Removes a folder that another process may be removing too."""

    def unless_gone(_function: object, _path: object, why: tuple[type, BaseException, TracebackType]) -> None:
        if not isinstance(why[1], FileNotFoundError):
            raise why[1]

    shutil.rmtree(folder, onerror=unless_gone)
