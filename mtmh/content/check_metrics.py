"""Agreement of similarities with topics: ROC AUC of same-topic pairs, precision of neighbours, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel
from scipy.stats import rankdata

from mtmh.training.metrics import auc_of_ranks

TopicCodes = npt.NDArray[np.int64]  # [N] numbers of the items' topics


class Calibration(BaseModel):
    """Share of same-topic pairs by cosine.

    Attributes:
        edges: [bins + 1], cosine, equal widths over the range seen.
        pairs: [bins], pairs of each bin.
        same: level -> [bins] share of the bin's pairs with the same topic, ``None`` for an empty bin.
    """

    edges: list[float]
    pairs: list[int]
    same: dict[str, list[float | None]]


class Agreement(BaseModel):
    """Agreement of one set of embeddings with topics.

    Attributes:
        name: which embeddings.
        auc: level -> chance that a same-topic pair is more similar than another pair.
        precision: level -> k -> mean share of an item's k nearest neighbours with its topic.
        calibration: shares by cosine.
    """

    name: str
    auc: dict[str, float]
    precision: dict[str, dict[int, float]]
    calibration: Calibration


def agreement(
    name: str,
    embeddings: npt.NDArray[Any],
    topics: Mapping[str, TopicCodes],
    ks: Sequence[int],
    num_bins: int,
) -> Agreement:
    """Compares all pairs of a sample.

    Args:
        name: of the embeddings.
        embeddings: [N, D] unit rows.
        topics: level -> [N] topic numbers.
        ks: numbers of neighbours.
        num_bins: of the calibration.

    Raises:
        ValueError: a level has only same-topic pairs or none, or fewer items than neighbours.
    """
    num_items = len(embeddings)
    if num_items <= max(ks):
        raise ValueError(f"content.check: {num_items} items with content and topics, too few for {max(ks)} neighbours")
    cosine = embeddings.astype(np.float32) @ embeddings.astype(np.float32).T
    first, second = np.triu_indices(num_items, k=1)
    of_pair = cosine[first, second]
    same_pair = {level: numbers[first] == numbers[second] for level, numbers in topics.items()}
    ranks = rankdata(of_pair)
    np.fill_diagonal(cosine, -np.inf)
    nearest = _nearest(cosine, max(ks))
    return Agreement(
        name=name,
        auc={level: _auc(ranks, same, level) for level, same in same_pair.items()},
        precision={
            level: {k: float((numbers[nearest[:, :k]] == numbers[:, None]).mean()) for k in ks}
            for level, numbers in topics.items()
        },
        calibration=_calibration(of_pair, same_pair, num_bins),
    )


def _auc(ranks: npt.NDArray[np.float64], same: npt.NDArray[np.bool_], level: str) -> float:
    found = auc_of_ranks(ranks, same)
    if found is None:
        raise ValueError(f"content.check: all pairs of the sample have {'the same' if same.any() else 'other'} {level}")
    return found


def _nearest(cosine: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """[N, k] the most similar others, best first; of equal ones those that come first."""
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]


def _calibration(
    cosine: npt.NDArray[np.float32], same: Mapping[str, npt.NDArray[np.bool_]], num_bins: int
) -> Calibration:
    edges = np.linspace(float(cosine.min()), float(cosine.max()), num_bins + 1)
    place = np.clip(np.searchsorted(edges, cosine, side="right") - 1, 0, num_bins - 1)
    pairs = np.bincount(place, minlength=num_bins)
    shares = {
        level: [
            hits / count if count else None
            for hits, count in zip(np.bincount(place[flags], minlength=num_bins).tolist(), pairs.tolist(), strict=True)
        ]
        for level, flags in same.items()
    }
    return Calibration(edges=edges.tolist(), pairs=pairs.tolist(), same=shares)
