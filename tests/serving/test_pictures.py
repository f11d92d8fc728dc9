"""Pictures of the items: from a folder, a Parquet file or an address; nothing but pictures, and from nowhere else."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from service_process import ServiceProcess

from mtmh.serving.pictures import kind_of, open_pictures


def picture(kind: str = "PNG", colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.png").write_bytes(picture())
    inside = tmp_path / "pictures"
    (inside / "below").mkdir(parents=True)
    (inside / "a b.png").write_bytes(picture())
    (inside / "below" / "c.jpg").write_bytes(picture("JPEG"))
    (inside / "d.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    (inside / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "loop.png").symlink_to(inside / "loop.png")
    return inside


def test_files_of_a_folder_and_none_outside(folder: Path) -> None:
    pictures = open_pictures(str(folder), folder / "none.parquet")
    assert pictures.origin == ""
    assert pictures.address(7, "a b.png") == "/images/a%20b.png"
    assert pictures.address(7, "") == pictures.address(7, "https://elsewhere.example/x.png") == ""
    assert pictures.read("a b.png") == picture()
    assert pictures.read("below/c.jpg") == picture("JPEG")
    outside = ("../secret.png", "below/../../secret.png", str(folder.parent / "secret.png"), "out.png", "loop.png")
    for name in (*outside, "", ".", "below", "none.png", "a\0b.png", "x" * 5000):
        assert pictures.read(name) is None, name


def test_only_pictures_that_cannot_hold_scripts() -> None:
    kinds = {kind: kind_of(picture(kind)) for kind in ("PNG", "JPEG", "GIF", "WEBP")}
    assert kinds == {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
    assert kind_of(b"\0\0\0\x20ftypavif....") == "image/avif"
    for file in (b"", b"<svg/>", b"<!doctype html>", b"%PDF-1.7", b"RIFF....AVI "):
        assert kind_of(file) is None


def test_addresses_below_one_server() -> None:
    pictures = open_pictures("https://cdn.example/shop/", Path("none"))
    assert pictures.origin == "https://cdn.example"
    assert pictures.address(7, "a b.png") == "https://cdn.example/shop/a%20b.png"
    assert pictures.address(7, "https://cdn.example/other/x.png") == "https://cdn.example/other/x.png"
    for name in (
        "",
        "https://cdn.example.evil/x.png",
        "http://cdn.example/x.png",
        "javascript://cdn.example/%0aalert(1)",
    ):
        assert pictures.address(7, name) == ""
    assert pictures.read("a b.png") is None
    assert open_pictures(None, Path("none")).address(7, "a.png") == ""
    for wrong in ("https://", "https://a.example; script-src *", "https://a b/", "no/such/folder", "x.parquet"):
        with pytest.raises(ValueError, match=r"service\.images"):
            open_pictures(wrong, Path("none"))


@pytest.fixture(scope="module")
def illustrated(served_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> ServiceProcess:
    path = tmp_path_factory.mktemp("images") / "images.parquet"
    files = [picture(), picture("JPEG", "blue"), b"<svg/>", None]
    pq.write_table(pa.table({"item_id": [17, 4, 23, 5], "image": files}), path, row_group_size=2)
    with ServiceProcess(served_recipe, images=str(path)) as running:
        yield running


def test_pictures_over_http(illustrated: ServiceProcess) -> None:
    assert illustrated.call("GET", "/v1/items/17").json["image"] == "/images/17"
    described = illustrated.retrieve(triggers=[17, 4, 23, 5], k=5, describe=True).json["descriptions"]
    assert {item["item"] for item in described if item["image"]} == {17, 4, 23, 5}
    for item, kind, file in ((17, "image/png", picture()), (4, "image/jpeg", picture("JPEG", "blue"))):
        reply = illustrated.call("GET", f"/images/{item}")
        assert (reply.status, reply.headers["Content-Type"], reply.body) == (200, kind, file)
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    for name in ("23", "5", "6", "..%2f..%2fetc%2fpasswd", "%00"):
        assert illustrated.call("GET", f"/images/{name}").status == 404, name


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_the_page_shows_them(illustrated: ServiceProcess, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{illustrated.url}/#item=17")
        browser.wait("document.querySelector('#asked img')?.naturalWidth === 8")
        assert browser.breaches() == []
        browser.open(f"{illustrated.url}/#item=23")
        browser.wait("document.querySelector('#asked h2') !== null && document.querySelector('#asked img') === null")


def test_the_policy_names_the_server_of_the_pictures_and_no_other(served_recipe: Path) -> None:
    with ServiceProcess(served_recipe, images="https://cdn.example/shop") as running:
        policy = running.call("GET", "/").headers["Content-Security-Policy"]
        assert "img-src 'self' https://cdn.example;" in policy
        assert running.call("GET", "/images/17").status == 404
