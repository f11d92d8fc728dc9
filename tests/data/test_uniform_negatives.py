"""Uniform negatives and the log probability of the mix."""

from __future__ import annotations

import numpy as np
import pytest

from mtmh.data.uniform_negatives import (
    CountedItems,
    NegativeLogProbability,
    UniformNegatives,
    find_known_items,
    known_bytes,
    known_items,
)

COUNTS = np.array([0, 3, 1, 0, 7, 2, 0, 5], np.int64)
KNOWN = [1, 2, 4, 5, 7]


@pytest.mark.parametrize("num_draws", [0, 1, 10, 2048])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_shares_of_the_ranks_are_the_draws_of_the_step(num_draws: int, world_size: int) -> None:
    negatives = UniformNegatives(known_items(COUNTS), num_draws, seed=5)
    whole = negatives.draw(1, 17, 0, 1)
    shares = [negatives.draw(1, 17, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == whole.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("num_items", [1, 128, 1000, 3 * (128 << 13) + 57])
def test_items_that_are_looked_up_are_those_that_are_held(num_items: int) -> None:
    counts = np.random.default_rng(num_items).integers(0, 3, num_items)
    counts[-1] = 1
    counts[300:700] = 0  # blocks without any
    held, counted = known_items(counts), CountedItems(counts)
    assert len(counted) == len(held)
    numbers = np.concatenate([[0, len(held) - 1], np.random.default_rng(0).integers(0, len(held), 5000)])
    assert np.array_equal(counted[numbers], held[numbers])
    assert counted[numbers].dtype == held.dtype
    draws = [UniformNegatives(known, 500, seed=5).draw(0, 3, 1, 2).tolist() for known in (held, counted)]
    assert draws[0] == draws[1]


def test_a_very_large_catalogue_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_bytes(2_000_000_000) == 125_000_000
    assert isinstance(find_known_items(COUNTS), np.ndarray)
    monkeypatch.setattr("mtmh.data.uniform_negatives._HELD_ITEMS", len(COUNTS) - 1)
    assert isinstance(find_known_items(COUNTS), CountedItems)
    assert find_known_items(COUNTS)[np.arange(5)].tolist() == KNOWN


def test_draws_depend_on_seed_epoch_and_step_only() -> None:
    negatives = UniformNegatives(known_items(COUNTS), 100, seed=5)
    reference = negatives.draw(0, 0, 0, 1).tolist()
    assert negatives.draw(0, 1, 0, 1).tolist() != reference
    assert negatives.draw(1, 0, 0, 1).tolist() != reference
    assert UniformNegatives(known_items(COUNTS), 100, seed=6).draw(0, 0, 0, 1).tolist() != reference
    assert negatives.draw(0, 0, 0, 1).tolist() == reference


def test_items_without_training_events_are_never_drawn_and_the_others_equally() -> None:
    drawn = UniformNegatives(known_items(COUNTS), 50_000, seed=0).draw(0, 0, 0, 1)
    frequency = np.bincount(drawn, minlength=len(COUNTS)) / len(drawn)
    assert np.flatnonzero(frequency).tolist() == KNOWN
    np.testing.assert_allclose(frequency[KNOWN], 0.2, atol=0.01)


@pytest.mark.parametrize(
    ("in_batch", "num_uniform"), [(True, 10), (True, 0), (False, 10)], ids=["mix", "in-batch", "uniform"]
)
def test_log_q_is_the_log_of_the_mix(in_batch: bool, num_uniform: int) -> None:
    batch_size = 96 if in_batch else 0
    expected = [
        np.log((batch_size * COUNTS[item] / 18 + num_uniform / 5) / (batch_size + num_uniform)) for item in KNOWN
    ]
    log_q = NegativeLogProbability(
        num_events=int(COUNTS.sum()), num_known=len(KNOWN), in_batch=batch_size, uniform=num_uniform
    )(COUNTS[KNOWN])
    assert log_q.dtype == np.float32
    np.testing.assert_allclose(log_q, expected, rtol=1e-6)
    assert np.exp(log_q).sum() == pytest.approx(1.0)
