from __future__ import annotations

from types import SimpleNamespace

import pytest
from torchrec.optim.keyed import CombinedOptimizer

from mtmh.config import TrainingConfig
from mtmh.distributed.optimizers import set_learning_rates


@pytest.mark.parametrize(("warmup", "expected"), [(0, [1.0, 1.0, 1.0]), (2, [0.5, 1.0, 1.0]), (4, [0.25, 0.5, 0.75])])
def test_rates_rise_linearly_and_stay(warmup: int, expected: list[float]) -> None:
    training = TrainingConfig(learning_rate=0.2, dense_learning_rate=0.1, warmup_steps=warmup)
    tables, towers = ([{"lr": None}] for _ in range(2))
    parts = [("tables", SimpleNamespace(param_groups=tables)), ("towers", SimpleNamespace(param_groups=towers))]
    optimizer = CombinedOptimizer([])
    optimizer._optims = parts
    for step, share in enumerate(expected):
        set_learning_rates(optimizer, training, step)
        assert tables[0]["lr"] == pytest.approx(0.2 * share)
        assert towers[0]["lr"] == pytest.approx(0.1 * share)
