"""Checkpoints by a writer who means harm: nothing of them runs, nothing outside of their folder is read."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forging import dotted_pickle, fit_manifest, plain_pickle
from tiny_run import tiny_config, write_inputs

from mtmh.config import Config
from mtmh.distributed.state_files import StoredTable, stored_names, stored_pieces, stored_shapes
from mtmh.distributed.state_format import INDEX
from mtmh.tower.embed import embed_catalogue
from mtmh.training.checkpoint import STATE
from mtmh.training.model_builder import load_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train

Tree = dict[str, Any]
DATA = "__0_0.distcp"
TABLE = "model.sparse_nn.ebc.embedding_bags.brand.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("forged")
    write_inputs(root)
    config = tiny_config(root, training={"max_steps": 2})
    train(config)
    return config


@pytest.fixture
def state(trained: Config, tmp_path: Path) -> Path:
    """The state of a checkpoint of its own for each test."""
    shutil.copytree(latest_checkpoint(trained.model_dir("checkpoints")), tmp_path / "step-00000002")
    return tmp_path / "step-00000002" / STATE


@pytest.mark.parametrize("payload", [dotted_pickle, plain_pickle])
def test_the_payloads_do_run_where_pickles_are_read(payload: Callable[[Path], bytes], tmp_path: Path) -> None:
    pickle.loads(payload(tmp_path / "ran"))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("payload", [dotted_pickle, plain_pickle])
@pytest.mark.parametrize("name", [".metadata", INDEX])
def test_a_pickled_index_is_refused(state: Path, name: str, payload: Callable[[Path], bytes], tmp_path: Path) -> None:
    (state / INDEX).unlink()
    (state / name).write_bytes(payload(tmp_path / "ran"))
    fit_manifest(state.parent)
    message = r"state/\.metadata: a pickled index" if name == ".metadata" else r"index\.json: not an index of a state"
    readers = (load_model, lambda path: stored_names(path / STATE), lambda path: stored_shapes(path / STATE))
    for read in readers:
        with pytest.raises(ValueError, match=message):
            read(state.parent)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_index_stops_embed_resume_and_continuation(trained: Config, tmp_path: Path) -> None:
    root = trained.paths.root
    for name in ("dataset", "content"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    config = tiny_config(tmp_path, training={"max_steps": 3})
    following = tiny_config(tmp_path, name="next", training={"continuation": {"check_period": False}})
    folder = latest_checkpoint(config.model_dir("checkpoints")) / STATE
    (folder / INDEX).rename(folder / ".metadata")
    (folder / ".metadata").write_bytes(dotted_pickle(tmp_path / "ran"))
    fit_manifest(folder.parent)
    with pytest.raises(ValueError, match="a pickled index"):
        embed_catalogue(config, tmp_path / "embeddings")
    with pytest.raises(ValueError, match="a pickled index"):
        train(config)
    with pytest.raises(ValueError, match="a pickled index"):
        train(following, continue_from=folder.parent)
    assert not (tmp_path / "ran").exists()


def test_pickles_in_the_place_of_tensors_are_numbers(state: Path, tmp_path: Path) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    archive = tmp_path / "archive"
    torch.save(Forged(), archive)
    length = (state / DATA).stat().st_size
    for payload in (dotted_pickle(tmp_path / "ran"), plain_pickle(tmp_path / "ran"), archive.read_bytes()):
        (state / DATA).write_bytes((payload + bytes(64 - len(payload) % 64)) * (length // len(payload) + 1))
        fit_manifest(state.parent)
        load_model(state.parent)
        assert list(stored_pieces(state, TABLE))
        assert StoredTable(state, TABLE).rows(1, 3).shape == (2, 8)
    assert not (tmp_path / "ran").exists()


def edit(tree: Tree, **changes: Any) -> None:
    tree["tensors"][TABLE]["pieces"][0] |= changes


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda tree: edit(tree, file="../../secret"), r"'\.\./\.\./secret' is not the name of a file of a rank"),
        (lambda tree: edit(tree, file="/etc/passwd"), "'/etc/passwd' is not the name of a file of a rank"),
        (lambda tree: edit(tree, file="a/__0_0.distcp"), "is not the name of a file of a rank"),
        (lambda tree: edit(tree, file="__0_0.distcp\n"), "is not the name of a file of a rank"),
        (lambda tree: edit(tree, file="__7_0.distcp"), r"__7_0\.distcp: missing or not a plain file"),
        (lambda tree: edit(tree, start=1 << 40), r"__0_0\.distcp: .*are not within its"),
        (lambda tree: edit(tree, start=3), r"__0_0\.distcp: .*are not within its"),
        (lambda tree: edit(tree, start=-64), "start: Input should be greater than or equal to 0"),
        (lambda tree: edit(tree, start=True), "start: Input should be a valid integer"),
        (lambda tree: edit(tree, start=1 << 63), "start: Input should be less than"),
        (lambda tree: edit(tree, sizes=[1 << 40, 8]), "is not within the tensor of shape"),
        (lambda tree: edit(tree, offsets=[1, 0]), "is not within the tensor of shape"),
        (lambda tree: edit(tree, sizes=[2]), "is not within the tensor of shape"),
        (lambda tree: edit(tree, sizes=[2, 8]), "do not make up the tensor of shape"),
        (lambda tree: edit(tree, transform_descriptors=["zstd"]), "transform_descriptors: Extra inputs"),
        (lambda tree: tree["tensors"][TABLE].update(pieces=[]), "do not make up the tensor of shape"),
        (lambda tree: tree["tensors"][TABLE].update(pieces=tree["tensors"][TABLE]["pieces"] * 2), "do not make up"),
        (lambda tree: tree["tensors"][TABLE].update(dtype="load"), "no tensor type 'load'"),
        (lambda tree: tree["tensors"].update({"model.bytes": {}}), r"model\.bytes\.dtype: Field required"),
        (lambda tree: tree.update(planner_data={}), "planner_data: Extra inputs"),
        (lambda tree: tree.update(format_version=2), "format_version: Input should be 1"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(state: Path, forge: Callable[[Tree], None], message: str) -> None:
    (state.parent.parent / "secret").write_bytes(bytes(1 << 16))
    tree = json.loads((state / INDEX).read_text())
    forge(tree)
    (state / INDEX).write_text(json.dumps(tree))
    fit_manifest(state.parent)
    with pytest.raises(ValueError, match=message):
        load_model(state.parent)


def test_a_link_to_a_file_elsewhere_is_not_followed(state: Path, tmp_path: Path) -> None:
    (state / DATA).rename(tmp_path / "elsewhere")
    (state / DATA).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"__0_0\.distcp: missing or not a plain file"):
        load_model(state.parent)
