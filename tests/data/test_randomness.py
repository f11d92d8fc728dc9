"""Hashes in torch against SplitMix64 in NumPy's unsigned arithmetic."""

from __future__ import annotations

import numpy as np
import torch

from mtmh.data.randomness import Purpose, chosen, mixed, salts, uniform


def test_hashes_are_those_of_splitmix64() -> None:
    values = np.concatenate([np.arange(1000), np.random.default_rng(0).integers(-(2**63), 2**63, 1000)])
    for salt in (0, *salts(Purpose.PSEUDO_LABELS, 7, num=3)):
        expected = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.int64(salt).view(
            np.uint64
        )
        expected = (expected ^ (expected >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        expected = (expected ^ (expected >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        expected ^= expected >> np.uint64(31)
        found = mixed(torch.from_numpy(values), salt)
        np.testing.assert_array_equal(found.numpy().view(np.uint64), expected)
        np.testing.assert_array_equal(uniform(found).numpy(), (expected >> np.uint64(40)) / np.float32(2**24))


def test_draws_are_uniform_and_differ_by_purpose_and_key() -> None:
    items = np.arange(20_000)
    shares = [
        chosen(items, 0.3, purpose, *key)
        for purpose in (Purpose.ID_DROPOUT, Purpose.PSEUDO_LABELS)
        for key in ((0, 1), (0, 2))
    ]
    for number, share in enumerate(shares):
        assert abs(share.mean() - 0.3) < 0.015
        for other in shares[:number]:
            assert abs((share & other).mean() - 0.09) < 0.01
