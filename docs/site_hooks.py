"""Parts of the site that are no files of ``docs``: README as its home, notebooks as Markdown, sources of the API."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Seen from ``docs``; a folder is its README.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
SOURCES = ROOT / "build/docs-source"


def on_startup(**_: Any) -> None:
    """Lays the source folders out as they install, which is how docstrings are looked up.

    As copies: a link would be followed, to where ``modules`` is not inside of ``mtmh``. And first of all: a plugin
    passes over a folder that is not there when it is configured.
    """
    shutil.rmtree(SOURCES, ignore_errors=True)
    for source, target in (("mtmh", "mtmh"), ("modules", "mtmh/modules")):
        shutil.copytree(ROOT / source, SOURCES / target, ignore=shutil.ignore_patterns("__pycache__"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=_from_docs((ROOT / source).read_text())))
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        target = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, target, content=_notebook(json.loads(path.read_text()), path.name)))
    return files


def _from_docs(text: str) -> str:
    text = text.replace("](docs/benchmarks)", "](benchmarks/README.md)")
    return re.sub(r"\]\(docs/", "](", text)


def _notebook(notebook: dict[str, Any], name: str) -> str:
    """Text and code as they are, what a cell printed under it."""
    parts = [f"[Download]({name}) and open in Jupyter. What it printed is kept as it was."]
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "text/html" in data:
                parts.append("".join(data["text/html"]))
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    # The title first.
    return "\n\n".join([parts[1], parts[0], *parts[2:]])
