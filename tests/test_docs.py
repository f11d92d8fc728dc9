"""Names in the docs: files and folders that they speak of exist, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Files of this repository; a capital word, as in sources/NAME.py, stands for one that the reader makes.
NAMED = re.compile(r"(?<![\w./-])((?:mtmh|modules|torchx_apps|benchmarks|tests|docs|requirements)/[\w./-]*\w/?)")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = {name for name in NAMED.findall(page.read_text()) if not re.search(r"\b[A-Z]{2,}\b", name)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = set(LINK.findall(page.read_text()))
    assert [link for link in sorted(links) if not (page.parent / link).exists()] == []


def test_the_architecture_page_knows_every_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = [f"mtmh/{path.name}/" for path in (ROOT / "mtmh").iterdir() if (path / "__init__.py").is_file()]
    assert [room for room in rooms if f"`{room}`" not in text] == []


def test_the_citation_is_yaml() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "Apache-2.0"
    assert "version" not in citation, "the version stands in mtmh/__init__.py alone"
