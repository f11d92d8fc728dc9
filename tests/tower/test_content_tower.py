"""A tower that takes content in: trained, embedded, exported, and asked for an item that it has not seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import state_of, tiny_config, write_inputs

from mtmh.artifacts import open_artifact, write_artifact
from mtmh.config import Config
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.errors import RequestError
from mtmh.index.build import build_index
from mtmh.tower.embed import embed_catalogue
from mtmh.tower.fresh import Tower
from mtmh.training.model_builder import load_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train

ROW = {"item_id": 7, "brand": None, "tags": None, "price": None, "age": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("content")
    write_inputs(root)
    config = tiny_config(root, model={"content_dim": 4}, training={"max_steps": 6})
    train(config)
    embed_catalogue(config, config.model_dir("embeddings"))
    build_index(config, config.model_dir("index"))
    return config


def test_embeddings_are_those_of_the_model_fed_with_content(trained: Config) -> None:
    dataset = open_dataset(trained.dataset_dir)
    content = open_content(trained.content_dir, dataset).gather(np.arange(dataset.num_items))
    model = load_model(latest_checkpoint(trained.model_dir("checkpoints")))
    assert model.content_nn is not None
    assert model.content_nn.missing.any(), "a tenth of the items have no content, so this was learned"
    sparse, dense = dataset.item_table.gather(np.arange(dataset.num_items))
    with torch.no_grad():
        expected = model(sparse, dense, content)
        without = model(sparse, dense, torch.zeros_like(content))
    for head, rows in expected.items():
        found = np.load(trained.model_dir("embeddings") / f"{head}.npy")
        np.testing.assert_allclose(found, rows.numpy(), atol=1e-6)
        assert not np.allclose(found, without[head].numpy(), atol=1e-3)


def test_a_run_that_was_killed_goes_on_with_the_same_components(trained: Config) -> None:
    """Resumed runs equal whole ones: the components come from the checkpoint."""
    half, whole = (
        trained.model_copy(update={"name": name, "training": trained.training.model_copy(update={"max_steps": steps})})
        for name, steps in (("half", 3), ("whole", 6))
    )
    train(half)
    resumed = train(half.model_copy(update={"training": whole.training}))
    expected = state_of(latest_checkpoint(trained.model_dir("checkpoints")))
    for name, value in state_of(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_a_fresh_item_is_known_by_its_content(trained: Config) -> None:
    tower = Tower(trained.model_dir("index"))
    dataset = open_dataset(trained.dataset_dir)
    content = open_content(trained.content_dir, dataset).embeddings
    a, b = content[np.flatnonzero(content.any(axis=1))[:2]].tolist()
    rows = [ROW | {"content_embedding": value} for value in (a, b, None)] + [dict(ROW)]
    rows.append(ROW | {"content_embedding": [3.0 * number for number in a]})
    found = tower.embed(tower.features.table(rows))["engagement"]
    assert (found[0] @ found[1]) < 0.999
    np.testing.assert_allclose(found[2], found[3])
    np.testing.assert_allclose(found[0], found[4], atol=1e-5)
    for wrong in ([1.0], "no", [None] * 6, [float("nan")] * 6):
        with pytest.raises(RequestError, match="content_embedding"):
            tower.features.table([ROW | {"content_embedding": wrong}])


def test_other_content_embeddings_are_refused(trained: Config, tmp_path: Path) -> None:
    dataset = open_dataset(trained.dataset_dir)
    embeddings = np.array(open_content(trained.content_dir, dataset).embeddings[::-1])
    with write_artifact(tmp_path / "content", "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / "embeddings.npy", embeddings)
    paths = trained.paths.model_copy(update={"content": tmp_path / "content"})
    with pytest.raises(ValueError, match="other content embeddings"):
        embed_catalogue(trained.model_copy(update={"paths": paths}), tmp_path / "embeddings")
    assert open_artifact(trained.model_dir("embeddings"), "embeddings").manifest.inputs.keys() == {
        "dataset",
        "checkpoint",
        "content",
    }
