"""The state of raw files, by size and time: files that no manifest describes and that people may change in place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def stamp(paths: Iterable[Path]) -> str:
    """Identity of raw files, without reading them: digest over name, size and time of change, folders with all in them.

    Names in a folder count from there, so that a folder that moves as a whole keeps its stamp.
    """
    digest = hashlib.sha256()
    for path in paths:
        for name, file in _files(path):
            try:
                facts = file.stat()
            except FileNotFoundError:
                digest.update(f"{name}\0absent\n".encode())
                continue
            digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Name and place of each file, one folder at a time: there may be millions."""
    if not path.is_dir():
        yield path.name, path
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        inside = Path(folder).relative_to(path)
        for name in sorted(files):
            yield str(inside / name), Path(folder, name)
