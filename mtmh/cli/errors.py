"""One line in place of a traceback, for errors that the user can mend: settings, disks, permissions, extras."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

# What a verb may miss -> the extra that brings it.
EXTRAS = {
    "PIL": "train",
    "duckdb": "train",
    "fsspec": "train",
    "tensorboard": "train",
    "transformers": "train",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "psutil": "launch",
    "torchx": "launch",
    "matplotlib": "report",
    "scipy": "report",
    "cryptography": "sign",
}
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
# Libraries in C++ raise errors of their own, with the system's words in them; NumPy with these.
_FULL_TOLD = (os.strerror(errno.ENOSPC), " requested and ")
_CLOSED = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOTDIR: "a file stands where a folder is needed",
}


def describe(error: BaseException) -> str | None:
    """The line for the user; None: a fault of ours, for which only the traceback will do.

    An error knows the file or folder by its ``filename``; what more is known about it, such as how many bytes were
    needed, stands in its notes.
    """
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(missing)
        return f"the package {missing} is not installed: pip install 'mtmh[{extra}]'" if extra else None
    for cause in _with_causes(error):
        line = _of_files(cause)
        if line is not None:
            return "; ".join([line, *getattr(cause, "__notes__", [])])
    return None


def _of_files(error: BaseException) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    path = error.filename if isinstance(error, OSError) and isinstance(error.filename, str | os.PathLike) else None
    if number in _FULL or any(words in f"{error} {error.args}" for words in _FULL_TOLD):
        folder = _existing(Path(path)) if path is not None else _fullest()
        usage = shutil.disk_usage(folder)
        return (
            f"{path or folder}: {_FULL.get(number or errno.ENOSPC, 'the disk is full')}: {decimal(usage.free)} of"
            f" {decimal(usage.total)} are free now"
        )
    if number in _CLOSED and path is not None:
        return f"{path}: {_CLOSED[number]}; choose another folder (paths.root of the recipe, --out or TMPDIR)"
    return None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _existing(path: Path) -> Path:
    """The folder nearest to a path that may not exist."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _fullest() -> Path:
    """Of the working folder and that of temporary files, the one on the disk with less room."""
    return min(Path.cwd(), Path(tempfile.gettempdir()), key=lambda folder: shutil.disk_usage(folder).free)
