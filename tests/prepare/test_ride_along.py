"""Features that ride along with the events: the same batches and losses as those of the mapped catalogue."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from prepare_helpers import files_of, prepare_tables
from synthetic_dataset import pair_loader
from tiny_run import losses_of, tiny_config
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.config import Config
from mtmh.content.embed import embed_content
from mtmh.data import histories
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.data.item_table import IdColumn
from mtmh.training.trainer import train

NUM_ITEMS = 70
KINDS = ("mapped", "ride_along")
HEADS = [{"name": "engagement"}, {"name": "relevance", "relevance_weight": 0.5}]
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "all_weights": {
        "pairs": {"direction": "both", "sim": {"kind": "feature", "feature": "tags"}},
        "loss": {"propensity": {"count_of": "both"}},
    },
    "content_weights": {"pairs": {"sim": {"kind": "content", "threshold": 0.2}}, "loss": {"mask_history": False}},
    "raw_ids": {"model": {"id_tables": {"item_id": {"rows": 480, "buckets": 12}}}},
}


def config_of(root: Path, kind: str, name: str = "tiny", **sections: Any) -> Config:
    model = {"heads": HEADS, "content_dim": 3} | sections.pop("model", {})
    training = {"max_steps": 3, "epochs": 1} | sections.pop("training", {})
    return tiny_config(root / kind, name, model=model, training=training, **sections)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shop prepared in both ways, with some values missing and some items that are never seen."""
    root = tmp_path_factory.mktemp("ride-along")
    rng = np.random.default_rng(0)
    events = [(f"u{user}", f"i{rng.integers(NUM_ITEMS - 10)}", t) for user in range(50) for t in range(14)]
    vectors = rng.standard_normal((NUM_ITEMS, 6)).astype(np.float32)
    items = pa.table(
        {
            "item_id": [f"i{item}" for item in range(NUM_ITEMS)],
            "brand": [f"b{item % 7}" if item % 11 else None for item in range(NUM_ITEMS)],
            "tags": [[f"t{tag}" for tag in range(item % 4)] for item in range(NUM_ITEMS)],
            "price": [float(item) if item % 5 else None for item in range(NUM_ITEMS)],
            "vector": pa.array([None if item % 9 == 0 else list(row) for item, row in enumerate(vectors)]),
        }
    )
    for kind in KINDS:
        prepare_tables(
            root / kind,
            events,
            items,
            id_features=["brand", "tags"],
            float_features=["price"],
            columns={"content_embedding": "vector"},
            item_features=kind,
            max_history=12,
        )
        config = config_of(root, kind)
        embed_content(config, config.content_dir)
    return root


def test_the_rest_of_the_dataset_is_the_same_byte_for_byte(root: Path) -> None:
    mapped, rides = (files_of(root / kind / "dataset") for kind in KINDS)
    more = rides.keys() - mapped.keys()
    assert all(name.startswith("ride_along/") for name in more)
    assert {"ride_along/items.npy", "ride_along/tags.offsets.npy", "ride_along/known_items.npy"} <= more
    assert "ride_along/item_id.offsets.npy" not in more, "one value an item"
    assert {name: rides[name] for name in mapped} == mapped


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_the_mapped_catalogue(root: Path, case: str, rank: int) -> None:
    loaders = []
    for kind in KINDS:
        config = config_of(root, kind, **{name: dict(section) for name, section in CASES[case].items()})
        dataset = open_dataset(config.dataset_dir)
        assert (dataset.ride_along is None) == (kind == "mapped")
        loaders.append(pair_loader(dataset, config, rank, 3, open_content(config.content_dir, dataset)))
    for mapped, rides in zip(*(loader.iterate(0) for loader in loaders), strict=True):
        for field in fields(mapped):
            expected, found = getattr(mapped, field.name), getattr(rides, field.name)
            if isinstance(expected, KeyedJaggedTensor):
                assert expected.keys() == found.keys()
                assert torch.equal(expected.lengths(), found.lengths())
                expected, found = expected.values(), found.values()
            same = torch.equal(expected, found) if isinstance(expected, torch.Tensor) else expected == found
            assert same, field.name


def test_losses_are_those_of_the_mapped_catalogue_with_content_in_either_storage(root: Path) -> None:
    losses = []
    for kind in KINDS:
        for storage in ("mapped", "table"):
            config = config_of(root, kind, f"losses-{storage}", content={"storage": storage})
            train(config)
            losses.append(losses_of(config))
    assert len(losses[0]) == 3
    assert all(other == losses[0] for other in losses)


def test_features_of_pairs_are_never_looked_up_in_the_catalogue(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without uniform negatives a catalogue of zeros, and histories that cannot be read, change nothing."""
    config = config_of(root, "ride_along", loss={"num_uniform_negatives": 0})
    dataset, mapped = (open_dataset(config_of(root, kind).dataset_dir) for kind in reversed(KINDS))
    expected = [batch.dense for batch in pair_loader(dataset, config).iterate(0)]
    assert all(dense.any() for dense in expected)
    for some in (dataset, mapped):
        some.item_table.float_features = np.zeros_like(some.item_table.float_features)
    assert not next(pair_loader(mapped, config).iterate(0)).dense.any()
    monkeypatch.setattr(histories, "read_column", None)
    found = [batch.dense for batch in pair_loader(dataset, config).iterate(0)]
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_rows_that_ride_along_are_checked_as_they_are_taken(root: Path) -> None:
    config = config_of(root, "ride_along")
    dataset = open_dataset(config.dataset_dir)
    assert dataset.ride_along is not None
    columns = dataset.ride_along.columns
    columns["brand"] = IdColumn(np.full_like(columns["item_id"].values, 99), None)
    with pytest.raises(ValueError, match=r"id feature brand: rows 99 to 99 of 8"):
        next(pair_loader(dataset, config).iterate(0))


def test_a_length_by_measuring_is_refused(root: Path) -> None:
    config = config_of(root, "ride_along", "auto", training={"epochs": "auto", "max_steps": None})
    with pytest.raises(ValueError, match=r"training\.epochs: auto .* ride along"):
        train(config)
