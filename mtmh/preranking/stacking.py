"""Learns how evidence about candidates is combined, on events at the end of T1 that the tables have not seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtmh.config import PrerankerConfig
from mtmh.data.arrays import Floats, Indices
from mtmh.data.histories import last_distinct
from mtmh.data.item_vectors import ItemVectors, StackedVectors
from mtmh.data.randomness import Purpose, generator
from mtmh.data.validation import ValidationDataset
from mtmh.modules.combination import Combination
from mtmh.preranking.evidence import Evidence
from mtmh.preranking.neighbours import cosine_neighbours, engagements, item_popularity, linear_neighbours, pair_keys
from mtmh.preranking.scorer import Scorer
from mtmh.preranking.user_ranker import distinct

logger = logging.getLogger(__name__)

_TRIGGERS = 10  # of a user, whose nearest items are candidates
_NEAREST = 100  # candidates of a trigger under a head
_PROPOSED = 500  # candidates of a user's query, and of each table
_MAX_HISTORY = 1000
_STEPS = 300
_USERS = 128  # of a step
_LEARNING_RATE = 0.02
# Of squared weights, against the sum of all users' losses: evidence that adds nothing loses its weight, and few users
# are followed less closely than many (docs/preranker.md).
_DECAY = 5.0


class Judged(NamedTuple):
    """Candidates of users and what is known of them.

    Attributes:
        evidence: [U, C, F].
        held_out: [U, C] which of them the user engaged with afterwards.
        present: [U, C] which are candidates, and not padding.
        num_held_out: [U] held-out items that the user had not seen, among the candidates or not.
        names: of the kinds of evidence.
    """

    evidence: Floats
    held_out: npt.NDArray[np.bool_]
    present: npt.NDArray[np.bool_]
    num_held_out: npt.NDArray[np.int64]
    names: list[str]


def judged_candidates(
    settings: PrerankerConfig,
    view: ValidationDataset,
    scorer: Scorer,
    heads: Mapping[str, ItemVectors],
    seed: int,
    *,
    shown: int = 400,
) -> Judged:
    """The candidates that serving would have for users whose last events are held back, with the evidence on them.

    Args:
        settings: ``check_users`` and the sizes of the evidence.
        view: training histories without the events held back, which are its test events.
        scorer: the user-to-item model.
        heads: embeddings of the heads that are evidence.
        seed: of the sample of users, and of the candidates that are left out.
        shown: candidates of a user besides the held-out ones.
    """
    users = view.evaluation_users(settings.check_users, seed)
    histories = last_distinct(users.histories, _MAX_HISTORY)
    reader = view.history_reader()
    engaged = engagements(reader, view.num_items)
    cosines = cosine_neighbours(engaged, settings.neighbours)
    linear = linear_neighbours(engaged, settings.neighbours, settings.linear_items)
    popularity = StackedVectors(item_popularity(reader, view.num_items))
    evidence = Evidence(heads, cosines, linear, popularity, settings.history_length)
    triggers = histories[:, :_TRIGGERS]
    queries, biases = scorer.queries(histories, np.arange(len(histories)), histories[:, 0])
    sums = evidence.sums(histories)
    found = [
        *evidence.proposed(sums, _PROPOSED),
        _nearest(queries[:, 0], scorer.vectors[:], _PROPOSED),
    ]
    for vectors in heads.values():
        known, place = np.unique(triggers, return_inverse=True)
        nearest = _nearest(vectors[known], vectors[:], _NEAREST)[place.reshape(triggers.shape)]
        found.append(np.where(triggers[:, :, None] >= 0, nearest, -1).reshape(len(triggers), -1))
    row = np.arange(len(histories))
    asking = np.repeat(row, np.diff(users.test.offsets))
    test = pair_keys(asking, users.test.items)
    past = pair_keys(np.repeat(row, np.diff(users.histories.offsets)), users.histories.items)
    candidates = distinct(np.concatenate(found, axis=1))
    keys = pair_keys(row[:, None], candidates)
    # An item that was not there was passed over by nobody.
    present = (candidates >= 0) & view.items_there[candidates] & ~np.isin(keys, past)
    held_out = present & np.isin(keys, test)
    # Held-out candidates first, then others in random order.
    draws = generator(Purpose.PRERANKER_CHECK, seed).random(candidates.shape, np.float32)
    width = shown + int(held_out.sum(axis=1).max())
    order = np.argsort(np.where(present, draws - held_out, np.float32(2.0)), axis=1)[:, :width]
    candidates, present = np.take_along_axis(candidates, order, axis=1), np.take_along_axis(present, order, axis=1)
    held_out = np.take_along_axis(held_out, order, axis=1)
    candidates = np.where(present, candidates, -1)
    logits = np.empty(candidates.shape, np.float32)
    for rows, found_logits in scorer.logits(queries, biases, candidates):
        logits[rows] = found_logits[:, 0]
    num_held_out = np.bincount(asking, ~np.isin(test, past), len(row)).astype(np.int64)
    return Judged(evidence(histories, candidates, logits, sums), held_out, present, num_held_out, evidence.names)


def _nearest(queries: Floats, vectors: Floats, k: int) -> Indices:
    k = min(k, len(vectors))
    return np.asarray(faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)[1], np.int64)


def fit_combination(judged: Judged, hidden: int, seed: int) -> Combination:
    """Fits by listwise softmax: a held-out candidate against those of its user that are not held out.

    The bias is set so that the probabilities of a user's candidates, ``exp`` of their logits, sum to 1 on average.

    Args:
        judged: candidates.
        hidden: width of the combination's network.
        seed: of its first weights.

    Returns:
        the combination; where no candidate was held out, one that goes by the model's logits alone.
    """
    shown, positive = judged.present, judged.held_out
    users = np.flatnonzero(positive.any(axis=1) & (shown & ~positive).any(axis=1))
    if not len(users):
        logger.warning(
            "preranker: none of the events held back at the end of T1 is among the candidates; candidates are ranked by"
            " the model alone"
        )
        return logits_alone(judged.evidence.shape[2])
    inputs, positives, present = (torch.from_numpy(array[users]) for array in (judged.evidence, positive, shown))
    inputs = inputs.masked_fill(~present[:, :, None], 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Combination(inputs.shape[2], hidden)
    model.standardise(inputs[present])
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, _STEPS)
    draws = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(users), generator=draws) for _ in range(-(-_STEPS * _USERS // len(users)))])
    for part in torch.split(order, _USERS)[:_STEPS]:
        # Fewer users than a step takes are drawn several times: each is computed once and counts as often.
        few = len(users) < _USERS
        rows, times = part.unique(return_counts=True) if few else (part, 1)  # type: ignore[no-untyped-call]
        squares = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        losses = _listwise(model(inputs[rows]), positives[rows], present[rows])
        loss = (losses * times).sum() / len(part) + _DECAY / len(users) * squares
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        model.linear.bias.sub_(model(inputs).masked_fill(~present, -torch.inf).logsumexp(dim=1).mean())
    return model.eval()


def logits_alone(num_inputs: int) -> Combination:
    """A combination that passes on the first kind of evidence, the model's logit."""
    model = Combination(num_inputs, 0)
    model.scale.fill_(0.01)  # so that no logit is clipped
    with torch.no_grad():
        model.linear.weight[0, 0] = 100.0
    return model.eval()


def _listwise(logits: Tensor, positive: Tensor, shown: Tensor) -> Tensor:
    """Of each user [U] the mean over the held-out candidates."""
    negatives = logits.masked_fill(positive | ~shown, -torch.inf).logsumexp(dim=1, keepdim=True)
    losses = torch.where(positive, torch.logaddexp(negatives, logits) - logits, 0.0)
    return losses.sum(dim=1) / positive.sum(dim=1)
