"""Models of the papers that read less than the dataset has: trained, embedded, and exported for new items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import state_of, tiny_config, write_inputs

from mtmh.artifacts import open_artifact
from mtmh.config import Config
from mtmh.index.build import build_index
from mtmh.preranking.trainer import train_preranker
from mtmh.tower.artifact import TOWER
from mtmh.tower.embed import embed_catalogue
from mtmh.tower.fresh import Tower
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train

ITEM_CF = {
    "id_features": ["item_id"],
    "float_features": False,
    "head_hidden": None,
    "heads": [{"name": "engagement"}],
    "id_dropout": 0.0,
}


@pytest.fixture(name="root", scope="module")
def fixture_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("papers")
    write_inputs(root)
    return root


def config_of(root: Path, name: str, **model: Any) -> Config:
    return tiny_config(root, name, model=model, training={"epochs": 1, "optimizer": "adagrad"})


def test_item_cf_trains_its_table_alone_and_retrieves_by_it(root: Path) -> None:
    config = config_of(root, "itemcf", **ITEM_CF)
    state = state_of(train(config))
    (name,) = [name for name in state if name.startswith("model.") and name.endswith(".weight")]
    assert name.endswith("embedding_bags.item_id.weight")
    embedded = embed_catalogue(config, config.model_dir("embeddings"))
    found = np.load(embedded.path / "engagement.npy", allow_pickle=False)
    rows = np.load(root / "dataset" / "item_table" / "item_id.values.npy", allow_pickle=False)
    expected = state[name].numpy()[rows]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_features_that_are_not_read_have_no_table_and_change_no_new_item(root: Path) -> None:
    config = config_of(root, "neucf", id_features=["item_id"], heads=[{"name": "engagement"}])
    state = state_of(train(config))
    assert sorted(name.split(".")[-2] for name in state if name.startswith("model.") and "embedding_bags" in name) == [
        "item_id"
    ]
    embed_catalogue(config, config.model_dir("embeddings"))
    index = build_index(config, config.model_dir("index"))
    assert (index.path / TOWER).is_dir()
    tower = Tower(index.path)
    row: dict[str, Any] = dict.fromkeys(tower.features.names) | {"item_id": 10**6}
    assert {"brand", "tags"} <= row.keys(), "the dataset has features beside the id"
    plain, branded = (
        tower.embed(tower.features.table([values]))["engagement"]
        for values in (row, row | {"brand": 300, "tags": ["tag 2"]})
    )
    np.testing.assert_array_equal(plain, branded)


def test_a_feature_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.id_features: no id feature colour"):
        train(config_of(root, "colour", id_features=["item_id", "colour"]))


def test_the_seed_of_training_changes_the_model_and_nothing_else(root: Path) -> None:
    configs = [
        tiny_config(root, f"seed-{seed}", model=ITEM_CF, training={"epochs": 1, "seed": seed}) for seed in (None, 3, 4)
    ]
    assert configs[0].seed == 3
    plain, same, other = (state_of(train(config)) for config in configs)
    assert all((plain[name] == same[name]).all() for name in plain)
    assert any((plain[name] != other[name]).any() for name in plain)
    digests = {
        open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint").manifest.inputs["dataset"]
        for config in configs
    }
    assert len(digests) == 1


def test_a_preranker_that_knows_nothing_of_the_model_serves_another(root: Path) -> None:
    first = config_of(root, "first", **ITEM_CF)
    settings = {"head_embeddings": False, "training": {"batch_size": 48, "num_shards": 6, "epochs": 1}}
    first = first.model_copy(update={"preranker": first.preranker.model_validate(settings)})
    second = first.model_copy(
        update={"name": "second", "paths": first.paths.model_copy(update={"preranker": root / "first"})}
    )
    assert train_preranker(first) == train_preranker(second)
    assert second.model_dir("preranker") == first.model_dir("preranker")
    with pytest.raises(ValueError, match=r"head_embeddings = false"):
        Config.model_validate(second.model_dump(mode="json") | {"preranker": {"head_embeddings": True}})


def test_learned_weights_of_losses_move_and_change_the_model_alone(root: Path) -> None:
    heads = [{"name": "engagement"}, {"name": "relevance", "relevance_weight": 0.5}]
    fixed = state_of(train(config_of(root, "fixed-weights", heads=heads)))
    config = tiny_config(
        root,
        "learned-weights",
        model={"heads": heads},
        loss={"weighting": "uncertainty"},
        training={"epochs": 1, "optimizer": "adagrad"},
    )
    learned = state_of(train(config))
    (name,) = [name for name in learned if name.startswith("loss.")]
    variances = learned[name].numpy()
    assert variances.shape == (3, 2)
    assert (variances[0] != 0).all()
    assert (variances[1, 0], variances[1, 1] != 0, variances[2].any()) == (0.0, True, False)
    assert {name for name in learned if name.startswith("model.")} == {n for n in fixed if n.startswith("model.")}
    embedded = embed_catalogue(config, config.model_dir("embeddings"))
    assert np.load(embedded.path / "relevance.npy", allow_pickle=False).shape[1] == config.model.head_dim
