"""Items that a continued run leaves as they were: against a loop over items, values and rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mtmh.modules.id_tables import HashIdRows, scrambled
from prepare_helpers import prepare_tables
from tiny_run import state_of, tiny_config
from typer.testing import CliRunner

from mtmh.artifacts import open_artifact
from mtmh.cli import app
from mtmh.config import Config, EmbeddingConfig
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.ids import raw_ids
from mtmh.data.schema import vocabulary_file
from mtmh.tower.artifact import EmbeddingsSummary
from mtmh.tower.delta import NO_ITEM, find_delta
from mtmh.tower.embed import embed_catalogue
from mtmh.training.model_builder import load_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train

FEATURES = ("item_id", "brand", "tags")


def write_period(root: Path, items: range, active: range, *, rebranded: int | None = None) -> None:
    """Every item is seen once, by a user of its own; the other users keep to the active ones."""
    rng = np.random.default_rng(3)
    events: list[Any] = [(f"u{user}", f"i{rng.choice(active)}", t) for user in range(40) for t in range(12)]
    events += [(f"v{item}", f"i{item}", t) for item in items for t in (0, 1)]
    table = {
        "item_id": [f"i{item}" for item in items],
        "brand": [f"b{item if item == rebranded else item // 5}" for item in items],
        "tags": [[f"t{item // 3}", f"t{item // 4}"] for item in items],
        "price": [float(item % 7) for item in items],
    }
    prepare_tables(
        root,
        events,
        table,
        id_features=["brand", "tags"],
        float_features=["price"],
        popularity_features=False,
        split={"kind": "user", "test_fraction": 0.1},
        min_user_events=1,
    )


def config_of(root: Path, name: str = "tiny", **sections: Any) -> Config:
    return tiny_config(
        root,
        name,
        model={"heads": [{"name": "engagement"}], "id_dropout": 0.0} | sections.pop("model", {}),
        loss={"num_uniform_negatives": 0},
        training={"max_steps": 4, "warmup_steps": 0} | sections.pop("training", {}),
        **sections,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("delta")
    write_period(root / "one", range(90), range(90))
    write_period(root / "two", range(10, 100), range(60, 100), rebranded=30)
    first = config_of(root / "one")
    train(first)
    embed_catalogue(first, first.model_dir("embeddings"))
    frozen = config_of(root / "two", training={"continuation": {"freeze_towers": True}})
    train(frozen, continue_from=previous(root))
    return root


def previous(root: Path) -> Path:
    return latest_checkpoint(config_of(root / "one").model_dir("checkpoints"))


def described(dataset: Dataset, vocabularies: Path) -> dict[str, dict[str, list[str]]]:
    """item id -> feature -> sorted values; row 0 is the value ''."""
    found: dict[str, dict[str, list[str]]] = {}
    for feature in FEATURES:
        table = pq.read_table(vocabularies / vocabulary_file(feature)).to_pydict()
        value_of = {0: ""} | dict(zip(table["row"], table["value"], strict=True))
        for index, item in enumerate(dataset.item_ids.tolist()):
            values, _ = dataset.item_table.columns[feature].gather(np.array([index]))
            found.setdefault(item, {})[feature] = sorted(value_of[row] for row in values.tolist())
    return found


def weights_by_value(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    state = state_of(checkpoint)
    found = {}
    for feature in FEATURES:
        (name,) = [key for key in state if key.startswith("model.") and f"embedding_bags.{feature}." in key]
        table = pq.read_table(checkpoint / vocabulary_file(feature)).to_pydict()
        found[feature] = {"": state[name][0]} | {
            value: state[name][row] for value, row in zip(table["value"], table["row"], strict=True)
        }
    return found


@pytest.mark.parametrize("watched", [None, ["item_id"], []])
def test_equals_a_loop_over_items(root: Path, watched: list[str] | None) -> None:
    config = config_of(root / "two")
    checkpoint = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    now, then = open_dataset(config.dataset_dir), open_dataset(root / "one" / "dataset")
    delta = find_delta(now, checkpoint, previous(root), EmbeddingConfig(watch_tables=watched))

    items, old_items = described(now, checkpoint.path), described(then, previous(root))
    weights, old_weights = weights_by_value(checkpoint.path), weights_by_value(previous(root))
    expected = []
    for item, features in items.items():
        same = item in old_items and features == old_items[item]
        for feature, values in features.items():
            for value in values if watched is None or feature in watched else ():
                known = value in old_weights[feature]
                same = same and known and torch.equal(weights[feature][value], old_weights[feature][value])
        expected.append(then.item_ids.tolist().index(item) if same else NO_ITEM)
    assert delta.source.tolist() == expected
    assert 0 < delta.num_kept < len(expected)
    every = find_delta(now, checkpoint, previous(root), EmbeddingConfig()).num_kept
    assert delta.num_kept == every if watched is None else delta.num_kept > every
    assert delta.source[now.item_ids.tolist().index("i30")] == NO_ITEM  # another brand
    assert delta.source[now.item_ids.tolist().index("i95")] == NO_ITEM  # new


def test_watched_floats_change_with_the_statistics_of_the_period(root: Path) -> None:
    config = config_of(root / "two")
    checkpoint = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    assert (
        find_delta(
            open_dataset(config.dataset_dir), checkpoint, previous(root), EmbeddingConfig(watch_floats=True)
        ).num_kept
        == 0
    )


@pytest.mark.parametrize("eviction", ["none", "lru"])
@pytest.mark.parametrize("watched", [None, ["brand", "tags"]])
def test_rows_of_raw_ids_are_compared_wherever_they_lie(
    tmp_path: Path, eviction: str, watched: list[str] | None
) -> None:
    """A table with fewer rows than there are items: some have no row, and with eviction they change hands."""
    write_period(tmp_path / "one", range(90), range(90))
    write_period(tmp_path / "two", range(10, 100), range(60, 100))
    model = {"id_tables": {"item_id": {"rows": 60, "buckets": 6, "eviction": eviction}}}
    first = config_of(tmp_path / "one", model=model)
    second = config_of(tmp_path / "two", model=model, training={"continuation": {"freeze_towers": True}})
    train(first)
    embed_catalogue(first, first.model_dir("embeddings"))
    before = latest_checkpoint(first.model_dir("checkpoints"))
    train(second, continue_from=before)
    checkpoint = open_artifact(latest_checkpoint(second.model_dir("checkpoints")), "checkpoint")
    now, then = open_dataset(second.dataset_dir), open_dataset(first.dataset_dir)
    watch = EmbeddingConfig(watch_tables=watched)
    delta = find_delta(now, checkpoint, before, watch)
    rows, old_rows = rows_by_id(checkpoint.path), rows_by_id(before)
    without = find_delta(now, checkpoint, before, EmbeddingConfig(watch_tables=["brand", "tags"])).source
    expected = []
    for item, raw_id, kept in zip(now.item_ids.tolist(), raw_ids(now.item_ids).tolist(), without.tolist(), strict=True):
        row, old = rows.get(raw_id), old_rows.get(raw_id)
        same = (row is None and old is None) or (row is not None and old is not None and torch.equal(row, old))
        assert kept == NO_ITEM or kept == then.item_ids.tolist().index(item)
        expected.append(kept if watched is not None or same else NO_ITEM)
    assert delta.source.tolist() == expected
    assert 0 < delta.num_kept < len(expected)
    assert rows.keys() != old_rows.keys()
    out = embed_catalogue(second, tmp_path / "delta", delta_from=before)
    whole = embed_catalogue(second, tmp_path / "whole")
    if watched is None:
        anew = delta.source == NO_ITEM
        found, full = (np.load(artifact.path / "engagement.npy") for artifact in (out, whole))
        assert np.allclose(found[anew], full[anew], atol=1e-6)


def rows_by_id(checkpoint: Path) -> dict[int, torch.Tensor]:
    """Weights by raw id, of the model as it is loaded."""
    model = load_model(checkpoint)
    (ids,) = (module for module in model.modules() if isinstance(module, HashIdRows))
    (weight,) = (value for name, value in model.state_dict().items() if name.endswith("embedding_bags.item_id.weight"))
    every = raw_ids([f"i{item}" for item in range(100)])
    row_of = {identity: row for row, identity in enumerate(ids.identities.tolist())}
    scrambled_ids = scrambled(torch.from_numpy(every)).tolist()
    return {
        raw: weight[row_of[identity]]
        for raw, identity in zip(every.tolist(), scrambled_ids, strict=True)
        if identity in row_of
    }


def test_what_does_not_belong_together_is_refused(root: Path, tmp_path: Path) -> None:
    config = config_of(root / "two")
    now = open_dataset(config.dataset_dir)
    checkpoint = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    with pytest.raises(ValueError, match="was not continued from"):
        find_delta(now, checkpoint, checkpoint.path, EmbeddingConfig())
    with pytest.raises(ValueError, match="no id feature shop; there are item_id, brand, tags"):
        find_delta(now, checkpoint, previous(root), EmbeddingConfig(watch_tables=["shop"]))
    embeddings = config_of(root / "one").model_dir("embeddings")
    embeddings.rename(tmp_path / "aside")
    try:
        with pytest.raises(ValueError, match="no embeddings artifact here"):
            find_delta(now, checkpoint, previous(root), EmbeddingConfig())
    finally:
        (tmp_path / "aside").rename(embeddings)


def embed(rank: int, world_size: int, root: Path, out: Path) -> None:
    if world_size > 1:
        store = dist.FileStore(str(out.with_suffix(".store")), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    embed_catalogue(config_of(root / "two"), out, delta_from=previous(root))
    if world_size > 1:
        dist.destroy_process_group()


def test_kept_items_keep_their_vectors_and_the_others_get_the_models(root: Path, tmp_path: Path) -> None:
    config = config_of(root / "two")
    whole = embed_catalogue(config, tmp_path / "whole")
    embed(0, 1, root, tmp_path / "one")
    mp.start_processes(embed, (2, root, tmp_path / "two"), start_method="forkserver", nprocs=2)
    checkpoint = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    delta = find_delta(open_dataset(config.dataset_dir), checkpoint, previous(root), EmbeddingConfig())
    kept = delta.source != NO_ITEM
    full, alone, two, old = (
        np.load(path / "engagement.npy")
        for path in (whole.path, tmp_path / "one", tmp_path / "two", config_of(root / "one").model_dir("embeddings"))
    )
    assert np.array_equal(alone[kept], old[delta.source[kept]])
    assert np.allclose(alone[~kept], full[~kept], atol=1e-6)
    assert np.allclose(two, alone, atol=1e-6)
    assert np.array_equal(two[kept], alone[kept])
    assert not list(tmp_path.glob("*.delta"))
    artifact = open_artifact(tmp_path / "one", "embeddings")
    made = EmbeddingsSummary.model_validate(artifact.summary).delta
    assert made is not None
    assert (made.num_kept, made.num_sampled) == (kept.sum(), kept.sum())
    drift = 1.0 - (full[kept].astype(np.float64) * alone[kept]).sum(axis=1)
    assert made.mean_drift == pytest.approx(drift.mean(), abs=1e-6)
    assert made.max_drift == pytest.approx(drift.max(), abs=1e-6)
    assert made.mean_drift > 0.0  # the prices were standardised anew
    assert artifact.manifest.inputs["previous"] == delta.embeddings.manifest.digest


def test_kept_embeddings_that_have_drifted_are_not_written(root: Path, tmp_path: Path) -> None:
    config = config_of(root / "two", embedding={"max_drift": 0.0})
    with pytest.raises(ValueError, match=r"training\.continuation\.freeze_towers=true"):
        embed_catalogue(config, tmp_path / "out", delta_from=previous(root))
    assert not (tmp_path / "out").exists()


def test_verb_says_how_many(root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config_of(root / "two").model_dump_json())
    words = ["embed", str(recipe), "--out", str(tmp_path / "out"), "--delta-from", str(previous(root))]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    assert " of 90 items embedded anew" in ran.output
