"""Lets DuckDB read files of object storage through pyarrow, piece by piece, with the readers it has for local files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem

from mtmh.places import AnyPath, RemotePath


class RemoteFiles(AbstractFileSystem):  # type: ignore[misc]
    """Files by their URLs, in the form in which DuckDB asks for them."""

    cachable = False

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.protocol = scheme

    def glob(self, path: str, **_: Any) -> list[str]:
        """The file itself: prepare has expanded all patterns, and escaped what looks like one."""
        return [_unescaped(path)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and time of change."""
        info = RemotePath(_unescaped(path)).info()
        if not info.is_file:
            raise FileNotFoundError(path)
        return {"name": path, "size": info.size, "type": "file", "mtime": info.mtime}

    def modified(self, path: str) -> Any:
        """The time of change."""
        return self.info(path)["mtime"]

    def open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        """The file for reading."""
        assert mode == "rb"
        return RemotePath(_unescaped(path)).open()


def make_reachable(connection: Any, files: Sequence[AnyPath]) -> None:
    """Lets a DuckDB connection read these files."""
    schemes = {file.url.partition("://")[0] for file in files if isinstance(file, RemotePath)}
    for scheme in schemes - set(connection.list_filesystems()):
        connection.register_filesystem(RemoteFiles(scheme))


def _unescaped(path: str) -> str:
    """A path without what ``glob.escape`` has put there."""
    for letter in "*?[":
        path = path.replace(f"[{letter}]", letter)
    return path
