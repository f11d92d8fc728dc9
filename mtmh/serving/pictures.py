"""Pictures of the items on the explorer page: out of a folder, out of a Parquet file of bytes, or from an address."""

from __future__ import annotations

import string
import threading
from functools import lru_cache
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

import numpy as np
import pyarrow.parquet as pq

from mtmh.data.arrays import ItemId

ROUTE = "/images/"

_HOST_LETTERS = frozenset(f"{string.ascii_letters}{string.digits}.-:[]")
_LARGEST = 16 << 20  # bytes
_CACHED_GROUPS = 2
# By the first bytes, whatever the name says. No SVG: a picture that may hold scripts.
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


class Pictures(Protocol):
    """The place of the pictures.

    Attributes:
        origin: scheme and host from which the page may load them beside its own; empty: none.
    """

    origin: str

    def address(self, item: ItemId, name: str) -> str:
        """Address of the picture of an item; empty: none.

        Args:
            item: its id.
            name: of its file, or its address, as the column ``image`` of the items has it; empty: none.
        """

    def read(self, name: str) -> bytes | None:
        """The file behind the last part of an address below ``ROUTE``; None: there is none. Reads a file."""


def open_pictures(source: str | None, simulated: Path) -> Pictures:
    """Opens the pictures of ``service.images``.

    Args:
        source: a folder, a Parquet file, or an address; None: the simulated ones, if they are there.
        simulated: Parquet file of ``mtmh content simulate``.

    Raises:
        ValueError: nothing is there, or it is of another kind.
    """
    if source is None:
        return _ParquetPictures(simulated) if simulated.is_file() else NO_PICTURES
    if source.startswith(("http://", "https://")):
        return _Elsewhere(source)
    path = Path(source)
    if path.is_dir():
        return _FolderPictures(path)
    if path.suffix == ".parquet" and path.is_file():
        return _ParquetPictures(path)
    raise ValueError(
        f"service.images: {source}: expected a folder, a .parquet file with item_id and image, or an address"
        " (https://...)"
    )


def kind_of(file: bytes) -> str | None:
    """Media type of a picture that browsers show; None: it is none."""
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        return "image/webp"
    if file[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return next((kind for begin, kind in _KINDS.items() if file.startswith(begin)), None)


class _Elsewhere:
    """Pictures below an address: names are relative to it; whole addresses elsewhere are not shown."""

    def __init__(self, base: str) -> None:
        self._base = base
        parts = urlsplit(base)
        self.origin = f"{parts.scheme}://{parts.netloc}" if base else ""
        # It becomes a part of a header and of a policy.
        if base and not (parts.hostname and set(parts.netloc) <= _HOST_LETTERS):
            raise ValueError(f"service.images: {base!r} is no address of a server")

    def address(self, item: ItemId, name: str) -> str:
        del item
        if not (name and self._base):
            return ""
        if "://" in name:
            return name if name.startswith(f"{self.origin}/") else ""
        return f"{self._base.rstrip('/')}/{quote(name.lstrip('/'))}"

    def read(self, name: str) -> bytes | None:
        del name
        return None


class _FolderPictures:
    """Files of a folder; names and links that lead out of it count as missing."""

    origin = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def address(self, item: ItemId, name: str) -> str:
        del item
        return f"{ROUTE}{quote(name)}" if name and "://" not in name else ""

    def read(self, name: str) -> bytes | None:
        try:
            path = (self._folder / name).resolve()
            if not (path.is_relative_to(self._folder) and path.is_file()) or path.stat().st_size > _LARGEST:
                return None
            return path.read_bytes()
        except (OSError, ValueError, RuntimeError):  # not readable; a zero in the name; links in a circle
            return None


class _ParquetPictures:
    """A column of bytes; a picture has the id of its item for a name. Row groups are read as they are needed."""

    origin = ""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        missing = [name for name in ("item_id", "image") if name not in self._file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; expected item_id and image (bytes)")
        ids = self._file.read(columns=["item_id"]).column(0).to_pylist()
        self._rows = {str(item): row for row, item in enumerate(ids)}
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._group = lru_cache(maxsize=_CACHED_GROUPS)(self._read_group)
        self._reading = threading.Lock()

    def address(self, item: ItemId, name: str) -> str:
        del name
        return f"{ROUTE}{quote(str(item))}" if str(item) in self._rows else ""

    def read(self, name: str) -> bytes | None:
        row = self._rows.get(name)
        if row is None:
            return None
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._reading:
            found = self._group(group)[row - int(self._starts[group])]
        return found if isinstance(found, bytes) and len(found) <= _LARGEST else None

    def _read_group(self, group: int) -> list[object]:
        found: list[object] = self._file.read_row_group(group, columns=["image"]).column(0).to_pylist()
        return found


NO_PICTURES: Pictures = _Elsewhere("")
