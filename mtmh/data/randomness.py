"""Random generators that depend on what is drawn and on its position only, never on what was drawn before."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # which takes seconds to import, and generators do without
    from torch import Tensor


class Purpose(IntEnum):
    """The purpose of a generator; two purposes never share a stream of numbers."""

    ROW_GROUP_ORDER = 1
    SHUFFLE_BLOCK = 2
    UNIFORM_NEGATIVES = 3
    ID_DROPOUT = 4
    EVALUATION_USERS = 5
    CONCEPT_PAIRS = 6
    MODALITY_DROPOUT = 7
    CHECK_SAMPLE = 8
    SYNTHETIC_MEDIA = 9
    PSEUDO_LABELS = 10
    HISTORY_CONTEXT = 11
    PRERANKER_CHECK = 12
    VALIDATION_USERS = 13
    SHARED_CANDIDATES = 14


def generator(purpose: Purpose, *key: int) -> np.random.Generator:
    """A counter-based generator (Philox) for one ``key``, such as (seed, epoch, step)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([purpose, *key])))


def chosen(items: npt.NDArray[np.int64], share: float, purpose: Purpose, *key: int) -> npt.NDArray[np.bool_]:
    """Picks each item with probability ``share`` by a hash of ``key`` and item: any rank that has the item agrees.

    Args:
        items: [U] item indices.
        share: probability, at least 0 and below 1.
        purpose: keeps draws for different uses apart.
        key: for instance (seed, step).

    Returns:
        [U] bool.
    """
    import torch

    hashes = mixed(torch.from_numpy(items.astype(np.int64)), salts(purpose, *key, num=1)[0])
    return hashes.numpy().view(np.uint64) < np.uint64(share * 2.0**64)


def salts(purpose: Purpose, *key: int, num: int) -> list[int]:
    """``num`` 64-bit numbers (signed, as torch has them) that make `mixed` another hash for another purpose or key."""
    return [int(salt) for salt in np.random.SeedSequence([purpose, *key]).generate_state(num, np.uint64).view(np.int64)]


def mixed(values: Tensor, salt: int) -> Tensor:
    """Hashes integers by the finaliser of SplitMix64, a bijection that mixes every bit into every other.

    Args:
        values: [n] int64.
        salt: from `salts`.

    Returns:
        [n] int64, on the device of ``values``; arithmetic wraps around as that of unsigned numbers.
    """
    hashes = (values + 1) * _signed(0x9E3779B97F4A7C15) + salt
    hashes = (hashes ^ _shifted(hashes, 30)) * _signed(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ _shifted(hashes, 27)) * _signed(0x94D049BB133111EB)
    return hashes ^ _shifted(hashes, 31)


def uniform(hashes: Tensor) -> Tensor:
    """Draws [n] float32, uniform in [0, 1), from hashes [n]."""
    return _shifted(hashes, 40).float() * 2.0**-24


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifts right and fills up with zeros; torch repeats the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
