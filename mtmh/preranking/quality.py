"""Quality of the tasks: how well they foretell T2, from histories of T1 alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmh.config import PrerankerConfig
from mtmh.data.dataset import Dataset
from mtmh.data.histories import Histories
from mtmh.data.randomness import Purpose, generator
from mtmh.preranking.artifact import TaskQuality
from mtmh.preranking.forward import probability, sigmoid
from mtmh.preranking.labels import Labels
from mtmh.preranking.scorer import Scorer
from mtmh.training.metrics import auc, normalized_entropy


@dataclass(frozen=True)
class Questions:
    """Questions about T2, one row a <user, item>.

    Attributes:
        histories: [U, H] the last items of T1, latest first, -1: padding.
        users: [N] row of the user.
        items: [N] items of T2, then uniform draws.
        labels: [N, 1 + L] whether the row is of T2, and its labels.
        negatives: draws for each item of T2.
    """

    histories: npt.NDArray[np.int64]
    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    labels: npt.NDArray[np.float32]
    negatives: int


def questions(settings: PrerankerConfig, dataset: Dataset, labels: Labels, seed: int) -> Questions:
    """Items of T2 and draws from the whole catalogue, fresh items included; of neither those that the user has seen.

    Args:
        settings: how many users and draws.
        dataset: the dataset artifact.
        labels: of the tasks.
        seed: of the choice of users and of the draws.
    """
    users = dataset.evaluation_users(settings.check_users, seed, labels=True)
    row = np.repeat(np.arange(len(users.user_index)), np.diff(users.test.offsets))
    rng = generator(Purpose.PRERANKER_CHECK, seed)
    drawn = rng.integers(0, dataset.num_items, len(row) * settings.check_negatives)
    answers = np.zeros((len(row) + len(drawn), 1 + len(labels.names)), np.float32)
    answers[: len(row)] = np.concatenate([np.ones((len(row), 1), np.float32), labels(users.test)], axis=1)
    asking = np.concatenate([row, np.repeat(row, settings.check_negatives)])
    items = np.concatenate([users.test.items, drawn]).astype(np.int64)
    past = users.histories
    seen = np.repeat(np.arange(len(users.user_index)), np.diff(past.offsets)) * dataset.num_items + past.items
    new = ~np.isin(asking * dataset.num_items + items, seen)
    return Questions(
        padded_latest_first(past, settings.history_length),
        asking[new],
        items[new],
        answers[new],
        settings.check_negatives,
    )


def measure(scorer: Scorer, posed: Questions) -> dict[str, TaskQuality]:
    """AUC and normalised entropy of each task.

    The draws are uniform, ``negatives`` for each item of T2, so that the probability of a row to be of T2 is the
    sigmoid of its logit less ``log(negatives / I)``, the same correction as in training.
    """
    triggers = posed.histories[:, 0]
    queries, biases = scorer.queries(posed.histories, np.arange(len(triggers)), triggers)
    shift = float(np.log(posed.negatives / len(scorer.vectors)))
    logits = np.empty((len(posed.items), queries.shape[1]), np.float32)
    for start in range(0, len(posed.items), _ROWS):
        part = slice(start, start + _ROWS)
        users = posed.users[part]
        products = queries[users] @ scorer.vectors[posed.items[part]][:, :, None]
        logits[part] = products[:, :, 0] + biases[users]
    logits[:, 0] -= shift
    engaged = posed.labels[:, 0] > 0.5
    found: dict[str, TaskQuality] = {}
    for task in scorer.tasks:
        label = task.label
        chance = probability(logits.T, label)
        truth = posed.labels[:, 0] if label is None else posed.labels[:, 1 + label]
        quality = TaskQuality(
            auc=auc(chance, truth), normalized_entropy=normalized_entropy(chance, truth), rate=_rate(truth)
        )
        if label is not None:
            given = sigmoid(logits[engaged, 1 + label])
            quality.engaged_auc = auc(given, truth[engaged])
            quality.engaged_normalized_entropy = normalized_entropy(given, truth[engaged])
            quality.engaged_rate = _rate(truth[engaged])
        found[task.name] = quality
    return found


def _rate(truth: npt.NDArray[np.float32]) -> float:
    return float(truth.mean()) if len(truth) else 0.0


def padded_latest_first(histories: Histories, length: int) -> npt.NDArray[np.int64]:
    """The last ``length`` items of each history [U, length], latest first, -1: padding."""
    counts = np.minimum(np.diff(histories.offsets), length)
    places = histories.offsets[1:, None] - 1 - np.arange(length)
    filled = np.arange(length) < counts[:, None]
    items: npt.NDArray[Any] = np.where(filled, histories.items[np.where(filled, places, 0)], -1).astype(np.int64)
    return items


_ROWS = 65_536  # rows whose queries are gathered at a time
