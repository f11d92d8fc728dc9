"""The streaming estimate of frequencies against a plain loop and against the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mtmh.distributed.ranks import Ranks, join_ranks
from mtmh.training.frequencies import StreamingFrequencies

NUM_ITEMS, HITS = 120, 60  # of the catalogue; of a step
ZIPF = 1.0 / np.arange(1, NUM_ITEMS + 1)
SHARES = ZIPF / ZIPF.sum()
ROWS = np.arange(1, NUM_ITEMS + 1)  # in the vocabulary


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with join_ranks("cpu") as ranks:
        yield ranks


def stream(shares: np.typing.NDArray[np.float64], steps: int, seed: int = 0) -> Iterator[Tensor]:
    """Hits [NUM_ITEMS] of each step."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield torch.from_numpy(rng.multinomial(HITS, shares))


def observe_all(frequencies: StreamingFrequencies, steps: Iterator[Tensor], first_step: int = 1) -> Tensor:
    everything = torch.arange(NUM_ITEMS)
    for number, hits in enumerate(steps):
        expected = frequencies.observe(first_step + number, frequencies.places(everything), hits)
    return expected


@pytest.mark.parametrize("rate", [1.0, 0.2, 0.02])
def test_equals_a_loop_over_items_in_float64(ranks: Ranks, rate: float) -> None:
    frequencies = StreamingFrequencies(ROWS, NUM_ITEMS + 1, HITS, rate, ranks)
    rng = np.random.default_rng(1)
    state = dict.fromkeys(range(NUM_ITEMS), (NUM_ITEMS / HITS, 0, 1))  # gap, last step, hits
    for step, hits in enumerate(stream(SHARES, 60), start=1):
        items = rng.permutation(NUM_ITEMS)[: NUM_ITEMS // 2]  # the order does not matter
        found = frequencies.observe(step, frequencies.places(torch.from_numpy(items)), hits[items])
        for place, item in enumerate(items.tolist()):
            gap, last, known = state[item]
            count, elapsed = int(hits[item]), step - last
            if count:
                weight = max(1 - (1 - rate) ** count, count / (known + count))
                gap = (1 - weight) * gap + weight * elapsed / count
                known, last, elapsed = min(known + count, math.ceil(1 / rate)), step, 0
            state[item] = gap, last, known
            assert float(found[place]) == pytest.approx(1 / (gap + elapsed / known), rel=2e-5)


def test_few_hits_are_a_plain_mean(ranks: Ranks) -> None:
    """Time over hits, the prior's included, however the hits fall."""
    frequencies = StreamingFrequencies(ROWS[:2], 3, 1, 0.01, ranks)
    for step, hits in ((3, [1, 0]), (4, [2, 0]), (11, [1, 0]), (20, [0, 0])):
        found = frequencies.observe(step, frequencies.places(torch.arange(2)), torch.tensor(hits))
    torch.testing.assert_close(found, torch.tensor([5.0 / (2 + 20), 1.0 / (2 + 20)]))
    assert frequencies.state()["gap"].full_tensor()[ROWS[0]] == pytest.approx((2 + 11) / 5)  # type: ignore[attr-defined]


def test_converges_to_the_true_frequencies(ranks: Ranks) -> None:
    """Of items that come several times a step and of items that come every sixth step."""
    truth = torch.from_numpy(SHARES * HITS)
    found = observe_all(StreamingFrequencies(ROWS, NUM_ITEMS + 1, HITS, 0.005, ranks), stream(SHARES, 3000))
    ratio = found / truth
    assert 0.97 < ratio.mean() < 1.03
    assert ratio.std() < 0.08
    assert ratio[:20].mean() == pytest.approx(1.0, abs=0.03)  # popular: more than one hit a step
    assert ratio[-60:].mean() == pytest.approx(1.0, abs=0.03)


def test_follows_a_change_of_the_distribution(ranks: Ranks) -> None:
    """Also of an item that ceases to come: no hit would ever tell."""
    before, after = SHARES.copy(), SHARES[::-1].copy()
    after[:30] = 0.0
    after /= after.sum()
    frequencies = StreamingFrequencies(ROWS, NUM_ITEMS + 1, HITS, 0.05, ranks)
    observe_all(frequencies, stream(before, 600))
    found = observe_all(frequencies, stream(after, 600, seed=1), first_step=601)
    ratio = found[30:] / torch.from_numpy(after[30:] * HITS)
    assert ratio.log().abs().median() < 0.15
    assert ratio.mean() == pytest.approx(1.0, abs=0.08)
    assert (found[:30] <= 20 / 600).all()  # 1 / rate hits in all the time since


def test_an_early_hit_does_not_make_an_item_frequent(ranks: Ranks) -> None:
    frequencies = StreamingFrequencies(np.arange(1, 1001), 1001, 10, 0.02, ranks)
    found = frequencies.observe(1, frequencies.places(torch.tensor([7])), torch.tensor([1]))
    assert float(found) == pytest.approx(2 / (100 + 1))
