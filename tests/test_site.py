"""The site of the docs: it builds without a warning, and a reader's browser fetches nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FETCHED = re.compile(
    r"<(?:script|img|iframe)[^>]*\bsrc=[\"']?https?:|<link[^>]*rel=[\"']?(?:stylesheet|preconnect)[^>]*https?:"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("site"))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_the_docs_is_there_and_fetches_nothing(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    pages |= {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.ipynb")}
    for page in pages:
        name = page.with_name("index") if page.name == "README" else page
        text = (site / name).with_suffix(".html").read_text()
        assert not (found := FETCHED.search(text)), (page, found)


def test_the_home_is_the_readme_and_the_api_has_its_docstrings(site: Path) -> None:
    title = (ROOT / "README.md").read_text().splitlines()[0].removeprefix("# ")
    assert title in (site / "index.html").read_text()
    api = (site / "api/mtmh.html").read_text()
    for name in ("fit", "load", "Model.similar_items", "Model.recommend", "Model.evaluate", "Model.save"):
        assert f'id="mtmh.start.model.{name}"' in api
    assert "percent of the answers from the engagement head" in api
    modules = (site / "api/modules.html").read_text()
    assert all(f"mtmh.modules.{name}" in modules for name in ("MTMH", "SparseNN", "contrastive_losses"))
