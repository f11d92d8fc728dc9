"""Python blocks of README and docs: each runs as it stands, those of a page one after the other.

A block under a line ``<!-- not run: WHY -->`` is left out: it needs a cluster, a GPU or a service, or is a part of a
program. All pages run in one folder: ``events.parquet`` and ``items.parquet`` of a small shop, and ``runs/demo``, a
model whose items have numbers for ids.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from small_shop import SETTINGS, shop_events, shop_items

import mtmh

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?P<mark><!-- not run: [^\n]+ -->\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S)
PAGES = [
    page for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]) if BLOCK.search(page.read_text())
]


def blocks_of(text: str) -> list[tuple[int, str]]:
    """First line and code of the blocks that run."""
    return [
        (text.count("\n", 0, block.start("code")), block["code"]) for block in BLOCK.finditer(text) if not block["mark"]
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("world"))
    pq.write_table(shop_events(), folder / "events.parquet")
    pq.write_table(shop_items(), folder / "items.parquet")
    mtmh.fit(numbered(shop_events()), numbered(shop_items()), folder=folder / "runs/demo", settings=SETTINGS)
    return folder


def numbered(table: pa.Table) -> pa.Table:
    """The table with numbers for ids of items."""
    numbers = pc.cast(pc.replace_substring(table["sku"], "SKU-", ""), pa.int64())
    return table.set_column(table.column_names.index("sku"), "item_id", numbers)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks_of(page.read_text()):
        # Blank lines before it, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), names)


def test_marked_blocks_are_left_out_and_others_are_not() -> None:
    text = "a\n```python\nx = 1\n```\n<!-- not run: needs a GPU -->\n```python\nx = 2\n```\n```sh\nls\n```\n"
    assert blocks_of(text) == [(2, "x = 1\n")]
