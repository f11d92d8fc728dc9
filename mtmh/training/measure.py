"""Recall of a model in training on held-back items, by exact search over all heads: the measure of early stopping.

A user's list is that of serving without the losses of an index: each head ranks the catalogue by the largest similarity
to any of the user's latest items, the first head gives half of the list, the others share the rest, and the similarity
of the first head sorts it. So it always has its full length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from mtmh.data.arrays import Indices
from mtmh.data.content_store import ContentEmbeddings
from mtmh.data.randomness import Purpose, generator
from mtmh.data.validation import ValidationDataset
from mtmh.distributed.ranks import Ranks, gather_numbers

CUTS = (5, 20, 100, 500)
NUM_TRIGGERS = 10  # the latest events of a user
_MAX_ITEMS = 50_000  # beyond, a sample of the catalogue that holds all answers: the cost stays bounded
# From one measurement to the next, at most: an epoch of long histories has twenty pairs of each event.
_PAIRS_OF_EVENT = 2.0
_LEAST_STEPS = 200  # of these; what fewer change is chance
_CHUNK_ITEMS = 4096
_BLOCK_SCORES = 1 << 24

Embed = Callable[[npt.NDArray[np.int64]], Mapping[str, Tensor]]


class ValidationMeasure:
    """Users of the end of T1, and how well a model finds what they engaged with there.

    Args:
        view: the dataset whose histories end earlier.
        num_users: at most so many are asked for.
        seed: of their sample.
        ranks: this process among the others; users and items are dealt out to all.
    """

    def __init__(self, view: ValidationDataset, num_users: int, seed: int, ranks: Ranks) -> None:
        users = view.evaluation_users(num_users, seed)
        self._ranks = ranks
        self._num_events = view.summary.num_train_events
        answers, past = users.test, users.histories.select(np.arange(len(users.user_index)), last=NUM_TRIGGERS)
        self.items = np.arange(view.num_items)
        if view.num_items > _MAX_ITEMS:
            drawn = generator(Purpose.VALIDATION_USERS, seed, 1).choice(view.num_items, _MAX_ITEMS, replace=False)
            self.items = np.unique(np.concatenate([drawn, answers.items, past.items]))
        # Most triggers first: those of a place in the history then are those of the first users.
        order = np.argsort(-np.diff(past.offsets), kind="stable")[ranks.rank :: ranks.world_size]
        self._triggers = past.select(order)
        self._answers = answers.select(order)
        self._seen = users.histories.select(order)

    def __call__(self, embed: Embed) -> dict[str, float]:
        """Measures a model; all ranks call it together and get the same.

        Args:
            embed: items [N] to head -> [N, D] of unit length; all ranks call it as often.

        Returns:
            ``recall@K`` by cut-off, and ``score``, their geometric mean, which weighs a tenth more of each alike.
        """
        vectors = self._embed_all(embed)
        hits, num_users = torch.zeros(len(CUTS) + 1, dtype=torch.float64), len(self._triggers.offsets) - 1
        block = max(1, _BLOCK_SCORES // len(self.items))
        for first in range(0, num_users, block):
            hits += self._recalls(vectors, first, min(num_users, first + block))
        total = torch.tensor(gather_numbers(hits.to(self._ranks.device))).sum(dim=0)
        recalls = (total[:-1] / total[-1].clamp_min(1.0)).tolist()
        score = math.exp(sum(math.log(recall + 1e-4) for recall in recalls) / len(recalls))
        return {f"recall@{cut}": recall for cut, recall in zip(CUTS, recalls, strict=True)} | {"score": score}

    def interval(self, steps_per_epoch: int, batch_size: int, num_uniform: int) -> int:
        """Steps from one measurement to the next: a quarter of an epoch, or two pairs of each event if that is sooner.

        Of the latter 200 steps at least. More where it keeps the cost to a tenth, but never more than an epoch: a small
        log of a large catalogue is measured all the same.

        Both costs are counted in similarities of one head: a step takes those of its pairs and negatives three times,
        forward and backward.
        """
        own = torch.tensor([len(self._triggers.items) * len(self.items)], dtype=torch.float64)
        measured = sum(number for (number,) in gather_numbers(own.to(self._ranks.device)))
        step = 3.0 * batch_size * (batch_size + num_uniform)
        shown = max(_LEAST_STEPS, math.ceil(_PAIRS_OF_EVENT * self._num_events / batch_size))
        return max(1, min(steps_per_epoch // 4, shown), min(steps_per_epoch, math.ceil(10.0 * measured / step)))

    def _embed_all(self, embed: Embed) -> list[Tensor]:
        """[I, D] of each head, of all candidates, on every rank."""
        ranks = self._ranks
        share = -(-len(self.items) // ranks.world_size)
        own = self.items[ranks.rank * share : (ranks.rank + 1) * share]
        own = np.concatenate([own, np.repeat(self.items[:1], share - len(own))])  # equal shares, so that all keep step
        parts = [embed(own[start : start + _CHUNK_ITEMS]) for start in range(0, share, _CHUNK_ITEMS)]
        found = [torch.cat([part[head] for part in parts]) for head in parts[0]]
        if ranks.world_size == 1:
            return found
        gathered = []
        for rows in found:
            whole = rows.new_empty(share * ranks.world_size, rows.shape[1])
            torch.distributed.all_gather_into_tensor(whole, rows.contiguous())
            gathered.append(whole[: len(self.items)])
        return gathered

    def _recalls(self, vectors: list[Tensor], first: int, end: int) -> Tensor:
        """Sums of users' recalls by cut-off, and how many users have an answer they had not seen."""
        device = vectors[0].device
        triggers, answers, seen = (part.users(first, end) for part in (self._triggers, self._answers, self._seen))
        hidden = self._cells(seen.items, seen.offsets).to(device)
        truth = self._cells(answers.items, answers.offsets)
        wanted = torch.zeros(end - first, len(self.items), dtype=torch.bool, device=device)
        wanted.view(-1)[truth.to(device)] = True
        wanted.view(-1)[hidden] = False
        by_head = []
        for rows in vectors:
            scores = self._nearest(rows, triggers.items, triggers.offsets)
            scores.view(-1)[hidden] = -math.inf
            by_head.append(scores)
        length = min(CUTS[-1], len(self.items))
        listed, present = _merged(by_head, length)
        found = (wanted.gather(1, listed) & present).double().cumsum(dim=1)
        known = wanted.sum(dim=1).double()
        counts = known > 0
        recalls = [(found[counts, min(cut, length) - 1] / known[counts]).sum() for cut in CUTS]
        return torch.stack([*recalls, counts.sum().double()]).cpu()

    def _nearest(self, rows: Tensor, triggers: Indices, offsets: npt.NDArray[np.int64]) -> Tensor:
        """[U, I] the largest similarity of each item to any trigger of each user."""
        counts = np.diff(offsets)
        places = torch.from_numpy(np.searchsorted(self.items, triggers)).to(rows.device)
        best = rows.new_full((len(counts), len(rows)), -math.inf)
        for place in range(int(counts.max(initial=0))):
            num = int((counts > place).sum())
            at = torch.from_numpy(offsets[:num] + place).to(rows.device)
            torch.maximum(best[:num], rows[places[at]] @ rows.T, out=best[:num])
        return best

    def _cells(self, items: Indices, offsets: npt.NDArray[np.int64]) -> Tensor:
        """Places in the flattened [U, I] of users' items, as far as they are candidates."""
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        places = np.minimum(np.searchsorted(self.items, items), len(self.items) - 1)
        present = self.items[places] == items
        return torch.from_numpy(users[present] * len(self.items) + places[present])


@dataclass(frozen=True)
class CatalogueEmbedder:
    """A model in training as what embeds items, between two steps of its pipeline.

    Attributes:
        pipeline: trains the model; it changes how tables are looked up, which is undone while items are embedded.
        sharded: the training task.
        view: features of the items.
        content: embeddings of the teacher, if there are any.
        device: where the model takes its inputs.
        raw: features that the model takes as raw ids.
    """

    pipeline: TrainPipelineSparseDist[Any, Any]
    sharded: DistributedModelParallel
    view: ValidationDataset
    content: ContentEmbeddings | None
    device: torch.device
    raw: frozenset[str]

    def measured(self, measure: ValidationMeasure) -> dict[str, float]:
        """The figures of the model as it is."""
        model = self.pipeline.detach()
        model.eval()
        try:
            return measure(self._embed)
        finally:
            model.train()
            self.pipeline.attach(model)

    @torch.no_grad()
    def _embed(self, items: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        sparse, dense = self.view.item_table.gather(items, raw=self.raw)
        content = None if self.content is None else self.content.gather(items).to(self.device).float()
        task = self.sharded.module
        embedded = task.model(sparse.to(self.device), dense.to(self.device), content)
        return {head: nn.functional.normalize(rows.float(), dim=1) for head, rows in embedded.items()}


def _merged(by_head: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """The first head's best half, then the other heads' share each, sorted by the first head.

    Returns:
        [U, length] columns, and whether there is such an item: a user who has seen most of a catalogue gets less.
    """
    others = len(by_head) - 1
    rest = length // 2 if others else 0
    quotas = [length - rest] + [rest * (head + 1) // others - rest * head // others for head in range(others)]
    order = by_head[0].clone()
    chosen: list[Tensor] = []
    present: list[Tensor] = []
    for scores, quota in zip(by_head, quotas, strict=True):
        for columns in chosen:
            scores.scatter_(1, columns, -math.inf)
        best = scores.topk(quota, dim=1)
        chosen.append(best.indices)
        present.append(best.values > -math.inf)
    columns, valid = torch.cat(chosen, dim=1), torch.cat(present, dim=1)
    by_first = order.gather(1, columns).masked_fill(~valid, -math.inf).argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, by_first), valid.gather(1, by_first)
