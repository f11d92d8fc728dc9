"""Tables of raw ids in the trainer, in one process: resumed, continued, evicted, counted, embedded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mtmh.modules.id_tables import NO_ROW, HashIdRows, scrambled
from prepare_helpers import prepare_tables
from tiny_run import NUM_ITEMS, losses_of, state_of, tiny_config, write_inputs
from torchrec import KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.data.ids import raw_ids
from mtmh.distributed.optimizers import build_optimizer
from mtmh.distributed.ranks import join_ranks
from mtmh.distributed.raw_id_tables import IdTables, first_values
from mtmh.distributed.sharding import local_shards, shard
from mtmh.distributed.state_files import State
from mtmh.tower.embed import embed_catalogue
from mtmh.training.checkpoint import training_state
from mtmh.training.model_builder import build_model, load_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.progress import STEP_METRICS
from mtmh.training.task import TrainTask, items_per_step
from mtmh.training.trainer import train

LRU = {"rows": 96, "buckets": 12, "eviction": "lru"}  # 180 items are trained on
ROOM = {"rows": 2400, "buckets": 12}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


@pytest.fixture
def root(inputs: Path, tmp_path: Path) -> Path:
    for name in ("dataset", "content"):
        (tmp_path / name).symlink_to(inputs / name)
    return tmp_path


def id_config(root: Path, table: dict[str, Any], name: str = "tiny", **training: Any) -> Config:
    return tiny_config(root, name, model={"id_tables": {"item_id": table}}, training={"max_steps": 6} | training)


def counts_of(config: Config) -> list[dict[str, float]]:
    lines = (config.model_dir("checkpoints") / STEP_METRICS).read_text().splitlines()
    return [json.loads(line)["id_tables"] for line in lines]


def test_a_table_with_room_gives_each_item_of_a_batch_a_row_at_first_sight(root: Path) -> None:
    config = id_config(root, ROOM, max_steps=20, epochs=20, checkpoint_every=20, learning_rate=0.2)
    checkpoint = train(config)
    counts = counts_of(config)
    assert counts[0]["item_id/inserts"] == counts[0]["item_id/lookups"] > 0
    assert all(count["item_id/collisions"] == count["item_id/evictions"] == 0 for count in counts)
    assert counts[-1]["item_id/occupancy"] == sum(count["item_id/inserts"] for count in counts) / ROOM["rows"]
    dataset = open_dataset(config.dataset_dir)
    known = scrambled(torch.from_numpy(raw_ids(dataset.item_ids[dataset.item_table.train_count > 0])))
    (rows,) = (module for module in load_model(checkpoint).modules() if isinstance(module, HashIdRows))
    owners = rows.identities[rows.identities != NO_ROW]
    assert torch.isin(owners, known).all(), "an id that is not of the training period"
    assert len(owners.unique()) == len(owners) > 0.9 * len(known)
    losses = losses_of(config)
    assert losses[20]["engagement"]["engagement"] < losses[1]["engagement"]["engagement"]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_a_resumed_run_equals_one_without_a_break(root: Path, optimizer: str) -> None:
    whole = id_config(root, LRU, "whole", optimizer=optimizer)
    train(whole)
    train(id_config(root, LRU, "broken", optimizer=optimizer, max_steps=3))
    broken = id_config(root, LRU, "broken", optimizer=optimizer)
    train(broken)
    expected, state = (state_of(latest_checkpoint(run.model_dir("checkpoints"))) for run in (whole, broken))
    assert state.keys() == expected.keys()
    assert any(name.endswith("item_id._hash_zch_identities") for name in state)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert losses_of(broken) == losses_of(whole)
    assert counts_of(broken) == counts_of(whole)
    assert counts_of(whole)[-1]["item_id/evictions"] > 0


class _Sharded:
    """A sharded model that is fed ids by hand; every step pulls all outputs up."""

    def __init__(self, config: Config, ranks: Any) -> None:
        features = open_dataset(config.dataset_dir).summary.features
        model = build_model(config.model, features, ranks.device, tables=torch.device("meta"))
        self.model, _ = shard(
            TrainTask(model, config.loss),
            config.sharding,
            ranks,
            items_per_step=items_per_step(config.training, config.loss),
            training=config.training,
            seed=config.seed,
        )
        self.optimizer = build_optimizer(self.model, config.training)
        self.tables = IdTables(self.model)
        (self.rows,) = (module for module in self.model.modules() if isinstance(module, HashIdRows))

    def step(self, ids: list[int]) -> dict[str, torch.Tensor]:
        """One step; the state of the table of ids afterwards."""
        none = [0] * len(ids)
        features = KeyedJaggedTensor(
            keys=["item_id", "brand", "tags"], values=torch.tensor(ids), lengths=torch.tensor([1] * len(ids) + 2 * none)
        )
        self.tables.tick()
        self.optimizer.zero_grad()
        sparse_nn = self.model.module.model.sparse_nn
        pooled = sparse_nn(features)
        pooled.sum().backward()
        self.optimizer.step()
        state: State = training_state(self.model, self.optimizer)
        return {name: whole(value) for name, value in state.items() if "item_id" in name}


def whole(value: Any) -> torch.Tensor:
    ((_, piece),) = local_shards(value)
    return piece.clone()


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_an_evicted_row_starts_afresh(root: Path, optimizer: str) -> None:
    table = {"rows": 2, "buckets": 1, "eviction": "lru"}
    config = id_config(root, table, optimizer=optimizer)
    with join_ranks("cpu") as ranks:
        sharded = _Sharded(config, ranks)
        for _ in range(3):
            sharded.step([11, 22])
        before = sharded.step([11])
        (old,) = torch.nonzero(sharded.rows.identities == scrambled(torch.tensor(22)))[0].tolist()
        after = sharded.step([11, 33])
        assert sharded.rows.identities[old] == scrambled(torch.tensor(33))
        (weight,) = (name for name in after if name.endswith("item_id.weight"))
        (sums,) = (name for name in after if "optimizer" in name and "item_id.weight.item_id" in name)
        scale = 0.5 / 8**0.5
        settings = EmbeddingBagConfig(
            name="item_id", num_embeddings=2, embedding_dim=8, weight_init_min=-scale, weight_init_max=scale
        )
        fresh = first_values(scrambled(torch.tensor([33])), settings, config.seed)[0]
        # One step with gradient 1 in each column: Adagrad's sum is 1, the step is the rate of the first step.
        rate = dict(sharded.optimizer.optimizers)["tables"].param_groups[0]["lr"]
        torch.testing.assert_close(after[weight][old], fresh - rate, rtol=0.0, atol=1e-6)
        for row, state, expected in ((old, before, 3.0), (old, after, 1.0), (1 - old, after, 5.0)):
            torch.testing.assert_close(state[sums][row], torch.full_like(state[sums][row], expected))
        assert not torch.equal(before[weight][1 - old], after[weight][1 - old])


def test_first_values_are_uniform_and_an_ids_own() -> None:
    table = EmbeddingBagConfig(
        name="item_id", num_embeddings=1, embedding_dim=64, weight_init_min=-0.25, weight_init_max=0.75
    )
    values = first_values(torch.arange(4096), table, seed=1).double()
    assert -0.25 <= float(values.min()) < -0.249
    assert 0.749 < float(values.max()) <= 0.75
    assert abs(float(values.mean()) - 0.25) < 0.003
    assert abs(float(values.std()) - 1 / 12**0.5) < 0.002
    correlation = torch.corrcoef(values.T) - torch.eye(64, dtype=torch.float64)
    assert float(correlation.abs().max()) < 0.08
    assert torch.equal(values[[7, 5]], first_values(torch.tensor([7, 5]), table, seed=1).double())
    assert not torch.equal(values, first_values(torch.arange(4096), table, seed=2).double())


def test_ids_and_clock_go_on_in_a_run_that_continues(tmp_path: Path) -> None:
    table = {"rows": 96, "buckets": 12, "eviction": "ttl", "ttl_steps": 3}
    configs = []
    for period, steps, items in (("monday", 6, range(120)), ("tuesday", 2, range(60, 180))):
        rng = np.random.default_rng(steps)
        events = [(f"u{user}", f"i{rng.choice(items)}", t) for user in range(40) for t in range(12)]
        catalogue = {"item_id": [f"i{item}" for item in items], "brand": [f"b{item // 5}" for item in items]}
        prepare_tables(tmp_path / period, events, catalogue, id_features=["brand"], split={"kind": "user"})
        configs.append(
            tiny_config(
                tmp_path / period,
                model={"id_tables": {"item_id": table}, "heads": [{"name": "engagement"}]},
                training={"max_steps": steps},
            )
        )
    first, second = configs
    checkpoint = train(first)
    train(second, continue_from=checkpoint)
    before, after = (state_of(latest_checkpoint(run.model_dir("checkpoints"))) for run in (first, second))
    (name,) = (name for name in before if name.endswith("_hash_zch_metadata"))
    assert int(before[name].max()) == 6 + 3
    assert int(after[name].max()) == 6 + 2 + 3
    (ids,) = (name for name in before if name.endswith("_hash_zch_identities"))
    kept = (before[ids] == after[ids]) & (before[ids] != NO_ROW)
    assert int(kept.sum()) > 20
    (weight,) = (name for name in before if name.endswith("item_id.weight") and name.startswith("model."))
    untouched = (kept & (before[name] == after[name])).squeeze(1)
    assert untouched.any()
    assert torch.equal(before[weight][untouched], after[weight][untouched])


def test_the_catalogue_is_embedded_without_inserting(root: Path) -> None:
    config = id_config(root, ROOM, max_steps=20, epochs=20, checkpoint_every=20)
    checkpoint = train(config)
    embed_catalogue(config, root / "embeddings")
    found = np.load(root / "embeddings" / "engagement.npy")
    dataset = open_dataset(config.dataset_dir)
    model = load_model(checkpoint)
    (rows,) = (module for module in model.modules() if isinstance(module, HashIdRows))
    before = rows.identities.clone()
    every = np.arange(NUM_ITEMS)
    features, dense = dataset.item_table.gather(every, raw={"item_id"})
    expected = model(features, dense)["engagement"]
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)
    assert torch.equal(rows.identities, before)
    # An id that was never seen embeds as one that is hidden.
    fresh = np.flatnonzero(~torch.isin(scrambled(torch.from_numpy(raw_ids(dataset.item_ids))), before).numpy())
    assert len(fresh)
    hidden, dense = dataset.item_table.gather(fresh, np.ones(len(fresh), bool), raw={"item_id"})
    torch.testing.assert_close(model(hidden, dense)["engagement"], expected[torch.from_numpy(fresh)])


def test_settings_that_cannot_be_honoured_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"buckets \(48\), such as 144"):
        id_config(root, {"rows": 100})
    with pytest.raises(ValueError, match="raw ids of item_id alone, got brand"):
        tiny_config(root, model={"id_tables": {"brand": ROOM}})
    column_wise = tiny_config(
        root, model={"id_tables": {"item_id": ROOM}}, sharding={"tables": {"item_id": "column_wise"}}
    )
    with pytest.raises(ValueError, match=r"a table of raw ids .* is cut row_wise, not column_wise"):
        train(column_wise)
