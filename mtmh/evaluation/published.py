"""The published index beside the one that is evaluated: the same users, truth and settings, its own items."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from mtmh.config import RetrievalConfig
from mtmh.data.dataset import Dataset
from mtmh.evaluation.protocol import Answers, Cohort, merged_answers, prerank_users
from mtmh.evaluation.subject import ItemRows, Subject
from mtmh.serving.retriever import Retriever


def published_answers(index: Path, dataset: Dataset, cohort: Cohort, settings: RetrievalConfig) -> Answers:
    """What an index of whatever data answers to the users of a dataset.

    Triggers that the index does not know have no answers, as in service, and items that have left the dataset are none.

    Args:
        index: folder of a version.
        dataset: of the cohort.
        cohort: U users; item indices are the dataset's.
        settings: ``retrieval`` of the recipe that asks, by which the index would serve; who ranks is a part of it.

    Returns:
        of all triggers; item indices are the dataset's.

    Raises:
        ValueError: the index cannot be read, has ids of another type, or knows none of the triggers.
    """
    retriever = Retriever.load(index, settings)
    rows = ItemRows.match(dataset, retriever.catalogue)
    if not (rows.row_of[cohort.triggers] >= 0).any():
        raise ValueError(
            f"{index}: knows {np.count_nonzero(rows.in_dataset):,} of the dataset's {dataset.num_items:,} items, and"
            " none of those that users engaged with last: nothing to compare with"
        )
    subject, k_ann, k = Subject(retriever, rows), settings.k_ann, settings.k
    kept, scores, requests = prerank_users(
        cohort,
        {head: partial(subject.search, head, k_ann=k_ann, num_probes=settings.num_probes) for head in subject.heads},
        subject.preranker,
        subject.sorter,
        num_items=dataset.num_items,
        k_ann=k_ann,
        k=k,
        shared=settings.preranking == "shared",
    )
    return merged_answers(kept, scores, requests, alpha=settings.alpha if len(subject.heads) > 1 else 100.0, k=k)
