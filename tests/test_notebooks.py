"""Notebooks of the docs: every cell runs, in an empty folder, and says nothing that a reader would stumble over."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_runs_without_warnings(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    written = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not any("Warning" in text or "Traceback" in text for text in written), written
    assert notebook.cells[-1].outputs[0]["data"]["text/plain"] == "True", "the loaded model answers as the fitted one"


def test_there_is_a_notebook_and_its_outputs_name_no_folder_of_the_author() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert not any(home in path.read_text() for home in ("/home/", "/root/", "/tmp/", "/Users/"))
