"""Plans for several hosts, by ranks that take themselves for two; training on embeddings that travel rounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forked_ranks import Launcher
from tiny_run import losses_of, tiny_config, write_inputs

from mtmh.config import Config
from mtmh.training.model_builder import load_model
from mtmh.training.newest import latest_checkpoint

STEPS = 4


def config_of(root: Path, name: str, optimizer: str = "rowwise_adagrad", **sharding: object) -> Config:
    training = {"max_steps": STEPS, "num_shards": 12, "optimizer": optimizer}
    return tiny_config(root, name, sharding=sharding, training=training)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hosts")
    write_inputs(root)
    return root


def assert_close(first: Config, other: Config, *, losses: float, weights: float) -> None:
    for step, heads in losses_of(other).items():
        for head, parts in heads.items():
            assert losses_of(first)[step][head] == pytest.approx(parts, rel=losses)
    found, expected = (load_model(latest_checkpoint(c.model_dir("checkpoints"))).state_dict() for c in (first, other))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=weights, atol=weights / 10)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_a_plan_over_hosts_gives_what_one_rank_gives(root: Path, optimizer: str) -> None:
    alone = config_of(root, f"alone-{optimizer}", optimizer)
    spread = config_of(root, f"spread-{optimizer}", optimizer, default="table_row_wise")
    two_hosts, single = Launcher(4, ranks_per_host=2), Launcher(1)
    two_hosts.start(spread).finish()
    single.start(alone).finish()
    assert_close(spread, alone, losses=1e-5, weights=2e-4)
    assert "table_row_wise" in (root / f"{spread.name}.log").read_text(), "the plan, as printed"


@pytest.mark.parametrize(
    ("kind", "forward", "backward", "weights"),
    # Adagrad's first steps are as large for tiny gradients as for others.
    [("row_wise", "fp16", "fp16", 5e-2), ("table_wise", "int8", "bf16", 0.5)],
)
def test_embeddings_that_travel_rounded_cost_their_rounding(
    root: Path, kind: str, forward: str, backward: str, weights: float
) -> None:
    launcher = Launcher(2)
    whole = config_of(root, f"{kind}-fp32", default=kind)
    rounded = config_of(
        root, f"{kind}-{forward}", default=kind, communication={"forward": forward, "backward": backward}
    )
    launcher.start(whole).finish()
    launcher.start(rounded).finish()
    assert_close(rounded, whole, losses=5e-3, weights=weights)
    assert losses_of(rounded) != losses_of(whole), "rounded"
