"""The tower of an index: raw features in, embeddings of the trained tower out; what does not fit is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from prepare_helpers import prepare_tables
from tiny_run import tiny_config, write_inputs

from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.index.artifact import IndexSummary
from mtmh.index.build import build_index
from mtmh.tower.artifact import TOWER
from mtmh.tower.embed import embed_catalogue
from mtmh.tower.fresh import Tower
from mtmh.tower.item_features import ItemFeatures, write_features
from mtmh.tower.quantised import SETTINGS, WEIGHTS
from mtmh.training.model_builder import load_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train


def test_raw_rows_become_the_inputs_that_prepare_made(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tags = [rng.choice(["x", "y", "z", "rare"], rng.integers(0, 4)).tolist() for _ in range(40)]
    table = pa.table(
        {
            "item_id": [f"i{item}" for item in range(40)],
            "brand": [int(brand) if brand else None for brand in rng.integers(0, 5, 40)],
            "tags": pa.array(
                [None if item % 13 == 0 else values for item, values in enumerate(tags)], pa.list_(pa.string())
            ),
            "price": [None if item % 7 == 0 else float("inf") if item % 11 == 0 else item * 1.5 for item in range(40)],
        }
    )
    # Items 30 to 39 come after the cut: their values are in no vocabulary and no statistic.
    events = [(user, f"i{(7 * user + step) % 30}", step) for user in range(12) for step in range(10)]
    events += [(user, f"i{30 + user % 10}", 500 + user) for user in range(12)]
    artifact = prepare_tables(
        tmp_path,
        events,
        table,
        split={"kind": "time", "cutoff": 400},
        id_features=["brand", "tags"],
        float_features=["price"],
        min_feature_count=2,
    )
    dataset = open_dataset(artifact.path)
    write_features(tmp_path, dataset, hidden_rows=1)
    features = ItemFeatures(tmp_path)
    assert features.names == ["brand", "tags", "price"]
    rows = {row["item_id"]: row for row in table.to_pylist()}
    rows = {item: row | {"price": None if row["price"] == float("inf") else row["price"]} for item, row in rows.items()}
    order = dataset.item_ids.tolist()
    values, lengths, dense = features.encode(features.table([rows[item] for item in order]))
    expected, expected_dense = dataset.item_table.gather(np.arange(40), hide_id=np.ones(40, bool))
    np.testing.assert_array_equal(values, expected.values())
    np.testing.assert_array_equal(lengths.ravel(), expected.lengths())
    np.testing.assert_array_equal(dense[:, 0], expected_dense[:, 0])
    assert not dense[:, 1:].any(), "counts and ages of an unseen item are missing"
    one_value = features.table([{"item_id": "n", "brand": [3], "tags": "x", "price": 2}])
    assert one_value.select(["brand", "tags", "price"]).to_pylist() == [{"brand": [3], "tags": ["x"], "price": 2.0}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("tower")
    write_inputs(root)
    config = tiny_config(root, training={"max_steps": 6})
    train(config)
    embed_catalogue(config, config.model_dir("embeddings"))
    build_index(config, config.model_dir("index"))
    return config


def raw_row(item_id: Any, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "brand": int(rng.integers(1, 9)) * 100,
        "tags": [f"tag {tag}" for tag in rng.integers(1, 12, rng.integers(0, 4))],
        "price": float(rng.normal()),
        "age": None if rng.random() < 0.2 else float(rng.normal()),
    }


def test_the_exported_tower_is_the_trained_one(trained: Config) -> None:
    folder = trained.model_dir("index")
    tower = Tower(folder)
    rng = np.random.default_rng(0)
    rows = tower.features.table([raw_row(item, rng) for item in range(37)])
    found = tower.embed(rows)
    values, lengths, dense = tower.features.encode(rows)
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    sparse = KeyedJaggedTensor(
        keys=["item_id", "brand", "tags"],
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(lengths.ravel()),
    )
    with torch.no_grad():
        expected = load_model(latest_checkpoint(trained.model_dir("checkpoints")))(sparse, torch.from_numpy(dense))
    for head, vectors in found.items():
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        assert (vectors * expected[head].numpy()).sum(axis=1).min() > 0.999
        alone = tower.embed(rows.slice(5, 1))[head]
        np.testing.assert_allclose(alone, vectors[5:6], atol=1e-6)


def test_the_build_records_the_cosine(trained: Config) -> None:
    from mtmh.artifacts import open_artifact

    artifact = open_artifact(trained.model_dir("index"), "index")
    tower = IndexSummary.model_validate(artifact.summary).tower
    assert tower is not None
    assert (tower.tables, tower.num_items) == ("int8", 200)
    for head in ("engagement", "relevance"):
        assert 0.999 < tower.least_cosine[head] <= tower.mean_cosine[head] <= 1.0 + 1e-6
    assert {str(TOWER / SETTINGS), str(TOWER / WEIGHTS)} <= artifact.manifest.files.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": ...}, "item 1: price is missing"),
        ({"colour": "red"}, "item 1: colour is no field of an item"),
        ({"item_id": "a"}, "item 'a': item_id is 'a', expected a 64-bit integer"),
        ({"item_id": True}, "item_id is True"),
        ({"item_id": 2**63}, "expected a 64-bit integer"),
        ({"item_id": None}, "item in row 1: item_id is null"),
        ({"brand": "Acme"}, "item 1: brand is 'Acme', expected a 64-bit integer"),
        ({"tags": ["a", 3]}, "item 1: tags is 3, expected a string"),
        ({"price": "cheap"}, "item 1: price is 'cheap', expected a finite number"),
        ({"price": float("nan")}, "expected a finite number"),
        ({"text": 3}, "item 1: text is 3, expected a string"),
        ({"first_seen": 1.5}, "expected a 64-bit integer"),
    ],
)
def test_rows_that_do_not_fit(trained: Config, change: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(0)
    bad = {name: value for name, value in (raw_row(1, rng) | change).items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        Tower(trained.model_dir("index")).features.table([raw_row(0, rng), bad])
