"""The state of raw files and tables, by size and time: no manifest describes them, and people may change them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mtmh.data.lake import open_lake
from mtmh.places import AnyPath, LakeTable, RemotePath


def stamp(paths: Iterable[AnyPath | LakeTable]) -> str:
    """Identity of raw files, without reading them: digest over name, size and time of change, folders with all in them.

    Names in a folder count from there, so that a folder that moves as a whole keeps its stamp.
    """
    digest = hashlib.sha256()
    for path in paths:
        for name, _, facts in _files(path):
            state = ("absent",) if facts is None else facts
            digest.update(("\0".join(map(str, (name, *state))) + "\n").encode())
    return digest.hexdigest()


def changed_since(paths: Iterable[AnyPath | LakeTable], instant: float) -> str | None:
    """A file that was written after an instant (seconds since 1970), in any of the folders or itself."""
    for path in paths:
        for _, place, facts in _files(path):
            if facts is not None and facts[1] > instant * 10**9:
                return place
    return None


def _files(path: AnyPath | LakeTable) -> Iterator[tuple[str, str, tuple[int, int] | None]]:
    """Name, place, and (size, time of change in ns) of each file, one folder at a time: there may be millions.

    A table of a lake is one file, with its version in the place of a size.
    """
    if isinstance(path, LakeTable):
        found = open_lake(path)
        yield str(path), str(found.table), (found.table.version or 0, found.changed_ns)
        return
    if isinstance(path, RemotePath):
        files = path.files() or [path.info()]
        for info in files:
            name = str(info.path).removeprefix(path.path).lstrip("/") or path.name
            yield name, f"{path.url}/{name}", (info.size, info.mtime_ns or 0) if info.is_file else None
        return
    if not path.is_dir():
        yield path.name, str(path), _facts(path)
        return
    for folder, folders, files_here in os.walk(path):
        folders.sort()
        inside = Path(folder).relative_to(path)
        for name in sorted(files_here):
            yield str(inside / name), str(Path(folder, name)), _facts(Path(folder, name))


def _facts(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_size, facts.st_mtime_ns
