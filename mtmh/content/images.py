"""Image bytes of items, from files, from a tar or from a Parquet column, and their pixels."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from mtmh.data.dataset import Dataset

_CACHED_GROUPS = 4  # row groups of a Parquet file of images


class ImageStore(Protocol):
    """The place of the encoded images of a catalogue."""

    def read(self, items: Sequence[int]) -> list[bytes | None]:
        """The files of some items by index; ``None``: the item has no image. Empty bytes: it should, and is not there.

        The empty file then counts as a broken image, which is what it is.
        """
        ...


def open_images(dataset: Dataset, source: Path | None) -> ImageStore:
    """Opens the images of a dataset.

    Args:
        dataset: the catalogue; its items' ``image`` names each one's file, null: none.
        source: a folder or a tar in which ``image`` is looked up, or a Parquet file with ``item_id`` and ``image``
            (bytes, or the struct of bytes and path that the ``datasets`` library writes). Without it ``image`` is a
            path. In a folder, a name that leads out of it counts as a broken image.

    Raises:
        ValueError: no such file or folder, or columns missing.
    """
    setting = "content.encoder.images"
    if source is not None and not source.exists():
        raise ValueError(f"{setting}: {source} does not exist; expected a folder, a .tar or a .parquet file")
    if source is not None and source.suffix == ".parquet":
        return _ParquetImages(dataset, source)
    names = dataset.items(["image"]).column("image").combine_chunks()
    if names.type not in (pa.string(), pa.large_string(), pa.null()):
        raise ValueError(f"{dataset.artifact.path}: column image is {names.type}, expected file names")
    return named_images(names, source)


def named_images(names: pa.Array, source: Path | None) -> ImageStore:
    """Opens images that are files of a folder or members of a tar.

    Args:
        names: [I] strings, null: no image.
        source: as in `open_images`, but no Parquet file.

    Raises:
        ValueError: there is something else.
    """
    setting = "content.encoder.images"
    if source is None or source.is_dir():
        return _Files(names, source)
    if not tarfile.is_tarfile(source):
        raise ValueError(f"{setting}: {source} is neither a folder nor a .tar nor a .parquet file")
    return _Tar(names, source)


def decode(file: bytes) -> Image.Image | None:
    """The picture as people see it, in RGB, or ``None`` if the file is no picture, cut off or too large.

    Upright, on white where it is transparent, and with its whole range of greys where these have more than 8 bits.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            # A small file may hold far more pixels than memory; Pillow's limit alone only warns up to twice as many.
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
                return None
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _on_white(upright) if upright.has_transparency_data else _in_8_bits(upright).convert("RGB")
    # What Pillow raises for damaged files, by format; a bomb is a picture too large to be one.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def is_blank(picture: Image.Image) -> bool:
    """True if all pixels of an RGB picture have one colour, so that it shows nothing."""
    return all(low == high for low, high in cast(tuple[tuple[int, int], ...], picture.getextrema()))


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 and 32 bits and of floats, which Pillow's ``convert`` would cut off at 255."""
    if image.mode[0] not in "IF":
        return image
    greys = np.asarray(image, np.float64)
    if not np.isfinite(greys).all():
        raise ValueError("greys that are no finite numbers")
    # Floats from 0 to 1, bytes, 16 bits: white is what the largest value takes; beyond those, the largest value.
    largest = float(greys.max(initial=0.0))
    ranges = (1.0, 255.0, 65_535.0, largest) if image.mode == "F" else (65_535.0, largest)
    white = next(limit for limit in ranges if largest <= limit)
    return Image.fromarray(np.clip(greys * (255.0 / white), 0.0, 255.0).round().astype(np.uint8))


class _Files:
    """Names are paths, relative to a folder if one is given."""

    def __init__(self, names: pa.Array, folder: Path | None) -> None:
        self._names = names
        self._folder = folder or Path()
        self._within = folder.resolve() if folder else None

    def read(self, items: Sequence[int]) -> list[bytes | None]:
        names = self._names.take(pa.array(items, pa.int64())).to_pylist()
        return [None if not name else self._read(name) for name in names]

    def _read(self, name: str) -> bytes:
        try:
            path = (self._folder / name).resolve()
            inside = self._within is None or path.is_relative_to(self._within)
            return path.read_bytes() if inside and path.is_file() else b""
        except (OSError, ValueError, RuntimeError):  # not readable; a zero in the name; links in a circle
            return b""


class _Tar:
    """Names are members of an uncompressed tar; its index is read once, its bytes where they lie."""

    def __init__(self, names: pa.Array, path: Path) -> None:
        self._names = names
        try:
            with tarfile.open(path, "r:") as archive:
                self._members = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in archive if m.isfile()}
        except tarfile.ReadError:
            raise ValueError(f"{path}: compressed tar; unpack it or pack it without compression") from None
        self._file = path.open("rb")

    def read(self, items: Sequence[int]) -> list[bytes | None]:
        names = self._names.take(pa.array(items, pa.int64())).to_pylist()
        return [None if not name else self._member(name) for name in names]

    def _member(self, name: str) -> bytes:
        offset, size = self._members.get(name.removeprefix("./"), (0, 0))
        return os.pread(self._file.fileno(), size, offset)


class _ParquetImages:
    """A column of bytes; the row of each item is looked up once, row groups are read as they are needed."""

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        schema = self._file.schema_arrow
        missing = [name for name in ("item_id", "image") if name not in schema.names]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; expected item_id and image (bytes)")
        kind = schema.field("image").type
        self._in_struct = pa.types.is_struct(kind)
        if self._in_struct and kind.get_field_index("bytes") < 0:
            raise ValueError(f"{path}: column image is {kind}, expected bytes or a struct with a field bytes")
        if not (self._in_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ValueError(f"{path}: column image is {kind}, expected bytes")
        ids = self._file.read(columns=["item_id"]).column(0).to_numpy()
        found = dataset.find(ids)
        self._row = np.full(dataset.num_items, -1)
        self._row[found[found >= 0]] = np.flatnonzero(found >= 0)
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._group = lru_cache(maxsize=_CACHED_GROUPS)(self._read_group)

    def read(self, items: Sequence[int]) -> list[bytes | None]:
        rows = self._row[np.asarray(items, np.int64)]
        files: list[bytes | None] = [None] * len(rows)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups[rows >= 0]):
            here = np.flatnonzero((groups == group) & (rows >= 0))
            values = self._group(int(group)).take(pa.array(rows[here] - self._starts[group])).to_pylist()
            for place, value in zip(here, values, strict=True):
                files[place] = value
        return files

    def _read_group(self, group: int) -> pa.ChunkedArray:
        column = self._file.read_row_group(group, columns=["image"]).column(0)
        return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks]) if self._in_struct else column
