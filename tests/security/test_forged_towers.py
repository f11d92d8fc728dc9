"""Towers by a writer who means harm: nothing of them runs, and none is taken that does not fit."""

import json
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forging import code, dotted_pickle, fit_manifest, plain_pickle
from tiny_run import tiny_config, write_inputs

from mtmh.index.build import build_index
from mtmh.preranking.artifact import USER_TOWER
from mtmh.tower.artifact import TOWER
from mtmh.tower.embed import embed_catalogue
from mtmh.tower.fresh import Tower
from mtmh.tower.item_features import FEATURES
from mtmh.tower.quantised import SETTINGS, WEIGHTS
from mtmh.tower.weights import fill_weights
from mtmh.training.trainer import train

Tree = dict[str, Any]
ROW = {"item_id": 1, "brand": 100, "tags": ["tag 1"], "price": 1.0, "age": None}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("towers")
    write_inputs(root)
    config = tiny_config(root, training={"max_steps": 2})
    train(config)
    embed_catalogue(config, config.model_dir("embeddings"))
    build_index(config, config.model_dir("index"))
    return config.model_dir("index")


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """The index, a copy for each test."""
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


def embed(index: Path) -> dict[str, Any]:
    fit_manifest(index)
    tower = Tower(index)
    return tower.embed(tower.features.table([ROW]))


def exported_program(path: Path, mark: Path) -> None:
    """A program by torch.export whose only fault is a size, which is a Python expression."""

    class Sums(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values.sum(dim=1)

    program = torch.export.export(
        Sums(), (torch.ones(3, 4),), dynamic_shapes=({0: torch.export.Dim("size", min=2)},), strict=False
    )
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (model,) = (name for name in entries if name.endswith("models/model.json"))

    def forged(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: code(mark) if key == "expr_str" else forged(value) for key, value in node.items()}
        return [forged(value) for value in node] if isinstance(node, list) else node

    entries[model] = json.dumps(forged(json.loads(entries[model]))).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_an_exported_program_is_not_read(index: Path, tmp_path: Path) -> None:
    exported_program(tmp_path / "tower.pt2", tmp_path / "ran")
    with suppress(Exception):  # whatever torch says when it has run the size
        torch.export.load(tmp_path / "tower.pt2")
    assert (tmp_path / "ran").exists(), "the payload would run"
    (tmp_path / "ran").unlink()
    shutil.copy(tmp_path / "tower.pt2", index / TOWER / "tower.pt2")
    embed(index)
    shutil.copy(tmp_path / "tower.pt2", index / TOWER / WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.safetensors: no readable safetensors"):
        embed(index)
    (index / TOWER / SETTINGS).unlink()
    with pytest.raises(ValueError, match=r"model\.json: missing; build the index"):
        embed(index)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("payload", [dotted_pickle, plain_pickle])
def test_pickles_are_no_weights_and_no_settings(index: Path, payload: Callable[[Path], bytes], tmp_path: Path) -> None:
    content = payload(tmp_path / "ran")
    (index / TOWER / WEIGHTS).write_bytes(content + bytes(1 << 20))
    with pytest.raises(ValueError, match=r"model\.safetensors: no readable safetensors"):
        embed(index)
    (index / TOWER / SETTINGS).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.json: not the settings of a tower"):
        embed(index)
    (index / TOWER / FEATURES).write_bytes(content)
    with pytest.raises(ValueError, match=r"features\.json: not the features of a tower"):
        embed(index)
    (tmp_path / USER_TOWER).write_bytes(content + bytes(1 << 20))
    with pytest.raises(ValueError, match=r"user_tower\.safetensors: no readable safetensors"):
        fill_weights(torch.nn.Linear(2, 2), tmp_path / USER_TOWER)
    assert not (tmp_path / "ran").exists()


def edit_rows(tree: Tree, rows: int) -> None:
    tree["features"]["id_features"][1]["num_rows"] = rows


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda tree: tree["model"].update(embedding_dim=1 << 40), "missing, or too small for the"),
        (lambda tree: tree["model"].update(head_hidden=[1 << 30]), "missing, or too small for the"),
        (lambda tree: edit_rows(tree, 1 << 40), "missing, or too small for the"),
        (lambda tree: edit_rows(tree, 2), r"brand\.weight: expected torch\.uint8 of shape"),
        (lambda tree: tree.update(tables="int2"), "tables: Input should be 'int8' or 'fp16'"),
        (lambda tree: tree["model"]["heads"][0].update(name="../x"), "name: String should match pattern"),
        (lambda tree: tree["model"]["heads"][0].update(name="other"), "not the weights of this model, differs in"),
        (lambda tree: tree["model"].update(id_tables={"item_id": {"rows": 48}}), "no tables of raw ids"),
        (lambda tree: tree["features"]["id_features"][1].update(name="other"), "not the features that the tower"),
        (lambda tree: tree["features"]["float_features"].reverse(), "not the features that the tower"),
        (lambda tree: tree.update(code="x"), "code: Extra inputs are not permitted"),
    ],
)
def test_settings_that_do_not_fit_are_refused(index: Path, forge: Callable[[Tree], None], message: str) -> None:
    path = index / TOWER / SETTINGS
    tree = json.loads(path.read_text())
    forge(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=message):
        embed(index)


def test_features_name_no_files_elsewhere(index: Path) -> None:
    path = index / TOWER / FEATURES
    path.write_text(path.read_text().replace('"brand"', '"../../brand"'))
    with pytest.raises(ValueError, match=r"'\.\./\.\./brand' names a file outside of the folder"):
        embed(index)


@pytest.mark.parametrize("row", [1 << 30, -5, -(1 << 31)])
def test_rows_beyond_a_table_read_no_memory_beyond_it(index: Path, row: int) -> None:
    path = index / TOWER / "brand.parquet"
    table = pq.read_table(path)
    rows = pa.array([row] * len(table), table.schema.field("row").type)
    pq.write_table(table.set_column(table.column_names.index("row"), "row", rows), path)
    unknown = Tower(index).embed(Tower(index).features.table([ROW | {"brand": None}]))
    for head, vectors in embed(index).items():
        np.testing.assert_array_equal(vectors, unknown[head])
