"""Images from files, from a tar and from a Parquet column: the same bytes, and the same account of what is missing."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from tiny_catalogue import png, write_dataset

from mtmh.content.images import decode, is_blank, open_images
from mtmh.data.dataset import Dataset

RED, BLUE = png((255, 0, 0)), png((0, 0, 255))
ITEMS = [4, 0, 1, 3, 2, 0]
EXPECTED = [BLUE, RED, None, RED[:40], b"", RED]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Item 0 and 4 have a picture, 1 none, 2 names one that is not there, 3 a broken one."""
    folder = tmp_path / "pictures" / "sub"
    folder.mkdir(parents=True)
    (folder / "red.png").write_bytes(RED)
    (folder / "blue.png").write_bytes(BLUE)
    (folder / "cut.png").write_bytes(RED[:40])
    names = ["sub/red.png", None, "sub/gone.png", "sub/cut.png", "sub/blue.png"]
    return write_dataset(tmp_path / "dataset", {"item_id": [9, 8, 7, 6, 5], "image": names})


def test_folder(dataset: Any, tmp_path: Path) -> None:
    assert open_images(dataset, tmp_path / "pictures").read(ITEMS) == EXPECTED


def test_paths_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(RED)
    names = [str(tmp_path / "red.png"), "", "no/such.png"]
    dataset = write_dataset(tmp_path / "dataset", {"item_id": [1, 2, 3], "image": names})
    assert open_images(dataset, None).read([0, 1, 2]) == [RED, None, b""]


def test_names_that_leave_the_folder_count_as_broken(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in (tmp_path / "secret.png", folder / "red.png"):
        path.write_bytes(RED)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    names = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "circle.png",
        "pipe.png",
        "red.png",
        "a/../red.png",
    ]
    dataset = write_dataset(tmp_path / "dataset", {"item_id": list(range(len(names))), "image": names})
    assert open_images(dataset, folder).read(range(len(names))) == [b""] * 5 + [RED] * 2


@pytest.mark.parametrize("prefix", ["", "./"])
def test_tar(dataset: Any, tmp_path: Path, prefix: Any) -> None:
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        archive.add(tmp_path / "pictures" / "sub", f"{prefix}sub")
    assert open_images(dataset, tmp_path / "pictures.tar").read(ITEMS) == EXPECTED


@pytest.mark.parametrize("in_struct", [False, True])
def test_parquet_column_in_any_order_and_several_row_groups(dataset: Any, tmp_path: Path, in_struct: Any) -> None:
    values = [BLUE, RED[:40], None, b"of another catalogue", b"", RED]
    column = pa.array(values, pa.binary())
    if in_struct:
        column = pa.array([{"bytes": value, "path": None} for value in values])
    table = pa.table({"item_id": [5, 6, 8, 1000, 7, 9], "image": column})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=2)
    store = open_images(dataset, tmp_path / "images.parquet")
    assert store.read(ITEMS) == EXPECTED
    assert store.read([1]) == [None]


def test_parquet_leaves_items_out(dataset: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [9], "image": [RED]}), tmp_path / "images.parquet")
    assert open_images(dataset, tmp_path / "images.parquet").read([1, 0, 4]) == [None, RED, None]


def test_decode() -> None:
    image = decode(RED)
    assert image is not None
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 4), (255, 0, 0))
    assert decode(b"") is None
    assert decode(b"no picture") is None
    assert decode(RED[:40]) is None


def test_what_cannot_be_read_is_an_error(dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_images(dataset, tmp_path / "gone.tar")
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="neither a folder nor"):
        open_images(dataset, tmp_path / "images.zip")
    with tarfile.open(tmp_path / "pictures.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "pictures" / "sub", "sub")
    with pytest.raises(ValueError, match="compressed tar"):
        open_images(dataset, tmp_path / "pictures.tar.gz")
    for table, message in (
        (pa.table({"item_id": [1]}), "no column image"),
        (pa.table({"item_id": [1], "image": ["a.png"]}), "expected bytes"),
        (pa.table({"item_id": [1], "image": [{"path": "a.png"}]}), "struct with a field bytes"),
    ):
        pq.write_table(table, tmp_path / "images.parquet")
        with pytest.raises(ValueError, match=message):
            open_images(dataset, tmp_path / "images.parquet")


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def test_a_small_file_of_too_many_pixels_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def header(width: int, height: int) -> bytes:
        body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
        return RED[:8] + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + RED[33:]

    loaded: list[Image.Image] = []
    monkeypatch.setattr(PngImageFile, "load", lambda image: loaded.append(image))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own word on it
        assert decode(header(13_000, 13_000)) is None
        assert decode(header(60_000, 60_000)) is None
    assert not loaded, "no memory was taken for the pixels"


def corners(picture: Image.Image | None) -> list[tuple[int, int, int]]:
    assert picture is not None
    assert picture.mode == "RGB"
    right, bottom = picture.width - 1, picture.height - 1
    return [picture.getpixel(place) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]


def test_greys_of_more_than_8_bits_keep_their_range() -> None:
    ramp = np.array([[0, 16_384], [32_768, 65_535]])
    expected = [(0, 0, 0), (64, 64, 64), (128, 128, 128), (255, 255, 255)]
    assert corners(decode(encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"))) == expected
    assert corners(decode(encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF"))) == expected
    for white in (1.0, 255.0, 65_535.0):
        floats = (ramp / 65_535 * white).astype(np.float32)
        assert corners(decode(encoded(Image.fromarray(floats), "TIFF"))) == expected
    floats[0, 0] = np.nan
    assert decode(encoded(Image.fromarray(floats), "TIFF")) is None


def test_transparent_pictures_lie_on_white() -> None:
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 0, 128))
    found = corners(decode(encoded(image, "PNG")))
    assert found == [(255, 255, 255), (255, 0, 0), (255, 0, 0), (127, 127, 127)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    assert corners(decode(encoded(palette, "PNG", transparency=0)))[:2] == [(255, 255, 255), (10, 20, 30)]


def test_pictures_are_upright() -> None:
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    picture = decode(encoded(image, "PNG", exif=exif))
    assert picture is not None
    assert picture.size == (8, 16)
    assert corners(picture) == [(0, 0, 0), (0, 0, 0), (255, 255, 255), (255, 255, 255)]


def test_pictures_of_one_colour_are_blank() -> None:
    assert is_blank(Image.new("RGB", (3, 3), "red"))
    image = Image.new("RGB", (3, 3), "red")
    image.putpixel((1, 1), (254, 0, 0))
    assert not is_blank(image)
