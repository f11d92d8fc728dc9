"""Random generators that depend on what is drawn and on its position only, never on what was drawn before."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Purpose(IntEnum):
    """What a generator is for; two purposes never share a stream of numbers."""

    ROW_GROUP_ORDER = 1
    SHUFFLE_BLOCK = 2
    UNIFORM_NEGATIVES = 3
    ID_DROPOUT = 4
    EVALUATION_USERS = 5
    CONCEPT_PAIRS = 6
    MODALITY_DROPOUT = 7
    CHECK_SAMPLE = 8
    SYNTHETIC_MEDIA = 9


def generator(purpose: Purpose, *key: int) -> np.random.Generator:
    """A counter-based generator (Philox) for one ``key``, such as (seed, epoch, step)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([purpose, *key])))


def chosen(items: npt.NDArray[np.int64], share: float, purpose: Purpose, *key: int) -> npt.NDArray[np.bool_]:
    """Picks each item with probability ``share`` by a hash of ``key`` and item: any rank that has the item agrees.

    The hash is the finaliser of SplitMix64 (a bijection of 64-bit integers that mixes every bit into every other).

    Args:
        items: [U] item indices.
        share: probability, at least 0 and below 1.
        purpose: keeps draws for different uses apart.
        key: for instance (seed, step).

    Returns:
        [U] bool.
    """
    salt = np.random.SeedSequence([purpose, *key]).generate_state(1, np.uint64)
    mixed = (items.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + salt
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed < np.uint64(share * 2.0**64)
