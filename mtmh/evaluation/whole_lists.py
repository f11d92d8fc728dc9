"""Lists of users out of scores of the whole catalogue, as a yardstick makes them that needs no triggers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from mtmh.data.arrays import Scores
from mtmh.evaluation.cohort import Cohort
from mtmh.preranking.neighbours import engagement_matrix

_BLOCK_SCORES = 16_777_216  # users x catalogue at a time (64 MiB)


def whole_lists(
    cohort: Cohort, score: Callable[[sparse.csr_matrix], Scores], num_items: int, length: int
) -> npt.NDArray[np.int64]:
    """The best items of the catalogue for each user's whole training history; seen items are left out.

    Args:
        cohort: U users.
        score: [B, I] histories of some users (1: engaged) -> [B, I] scores, -inf: never recommended.
        num_items: I.
        length: of the lists, at most I.

    Returns:
        [U, length] item indices, best first, -1: none.
    """
    lists = np.full((cohort.num_users, length), -1, np.int64)
    block = max(1, _BLOCK_SCORES // num_items)
    for start in range(0, cohort.num_users, block):
        end = min(start + block, cohort.num_users)
        scores = score(engagement_matrix(cohort.histories.users(start, end), num_items))
        seen = cohort.seen.users(start, end)
        scores[np.repeat(np.arange(end - start), np.diff(seen.offsets)), seen.items] = -np.inf
        best, items = torch.topk(torch.from_numpy(scores), length, dim=1)
        lists[start:end] = np.where(np.isfinite(best.numpy()), items.numpy(), -1)
    return lists
