"""The published index beside the one that is evaluated: the same users, truth and settings, its own items."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtmh.config import MilvusConfig, RetrievalConfig
from mtmh.data.dataset import Dataset
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.protocol import rank_users
from mtmh.evaluation.ranked import RankedCandidates
from mtmh.evaluation.subject import ItemRows, Subject
from mtmh.retrieval.retriever import Retriever


def rank_published(
    index: Path,
    dataset: Dataset,
    cohort: Cohort,
    settings: RetrievalConfig,
    length: int,
    milvus: MilvusConfig | None = None,
) -> RankedCandidates:
    """Ranks what an index of whatever data finds for the users of a dataset.

    Triggers that the index does not know have no answers, as in service, and items that have left the dataset are none.

    Args:
        index: folder of a version.
        dataset: of the cohort.
        cohort: U users; item indices are the dataset's.
        settings: ``retrieval`` of the recipe that asks, by which the index would serve; who ranks is a part of it.
        length: of a user's list.
        milvus: ``index.milvus`` of that recipe.

    Raises:
        ValueError: the index cannot be read, has ids of another type, or knows none of the triggers.
    """
    retriever = Retriever.load(index, settings, milvus)
    rows = ItemRows.match(dataset, retriever.catalogue)
    if not (rows.row_of[cohort.triggers] >= 0).any():
        raise ValueError(
            f"{index}: knows {np.count_nonzero(rows.row_of >= 0):,} of the dataset's {dataset.num_items:,} items, and"
            " none of those that users engaged with last: nothing to compare with"
        )
    return rank_users(cohort, Subject(retriever, rows).pipeline(settings, dataset.num_items), length)
