"""Trains NeuCF's network under a mixture of logits, and finds every item's neighbours by it.

Pairs, negatives, weights, corrections and rates are those of the recipe, as for our own models; the logits of all pairs
and negatives are formed in chunks. It is for catalogues of some ten thousand items: each is compared with all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mtmh.config import Config, LossConfig, TrainingConfig, decisive
from mtmh.data.arrays import Indices, Scores, Vectors, open_array
from mtmh.data.content_store import ContentEmbeddings
from mtmh.data.dataset import Dataset
from mtmh.data.item_table import ItemTable
from mtmh.data.loader import PairLoader
from mtmh.data.pairs import WindowPairs
from mtmh.data.stream import sized
from mtmh.data.validation import ValidationDataset
from mtmh.distributed.optimizers import EPSILON
from mtmh.distributed.ranks import join_ranks
from mtmh.evaluation.cohort import make_cohort
from mtmh.evaluation.measure import Measure
from mtmh.evaluation.pipeline import Pipeline
from mtmh.evaluation.protocol import rank_users
from mtmh.modules.mixture import MixtureOfLogits
from mtmh.modules.mtmh import MTMH
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker
from mtmh.training.early_stopping import SCORE, EarlyStopping
from mtmh.training.measure import CUTS, NUM_TRIGGERS
from mtmh.training.model_builder import build_model
from mtmh.training.shared_negatives import GlobalBatch, with_draws

_CHUNK_PAIRS = 1 << 18  # of trigger and candidate whose logits are held at a time
_EMBEDDED = 4096  # items at a time
_FILES = ("neighbours.npy", "neighbour_scores.npy")


@dataclass(frozen=True)
class MixtureSettings:
    """Settings that are not a recipe's.

    Attributes:
        num_components: of an embedding, whose width is the recipe's ``model.head_dim``.
        gate_hidden: width of the gating networks.
    """

    num_components: int = 4
    gate_hidden: int = 32


@dataclass(frozen=True)
class Neighbours:
    """The K candidates of each item that are most similar to it.

    Attributes:
        items: [I, K] int32 item indices, best first; the item itself is none of them.
        scores: [I, K] float32.
    """

    items: Indices
    scores: Scores

    @classmethod
    def read(cls, folder: Path) -> Neighbours:
        """What `write` wrote, memory-mapped."""
        return cls(*(open_array(folder / file) for file in _FILES))

    def write(self, folder: Path) -> None:
        """Writes two files."""
        for file, values in zip(_FILES, (self.items, self.scores), strict=True):
            np.save(folder / file, values)

    def search(self, head: str, triggers: Indices, k_ann: int) -> Candidates:
        """Candidates [T, k_ann] of triggers, -1 where there are no more."""
        items, scores = self.items[triggers, :k_ann], self.scores[triggers, :k_ann]
        missing = ((0, 0), (0, k_ann - items.shape[1]))
        return Candidates(
            head, np.pad(items, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)
        )


class MixtureModel(torch.nn.Module):
    """A tower of one head whose embeddings a mixture of logits compares.

    Args:
        tower: of one head.
        settings: of the mixture.
    """

    def __init__(self, tower: MTMH, settings: MixtureSettings) -> None:
        super().__init__()
        self.tower = tower
        self.mixture = MixtureOfLogits(tower.head_dim, settings.num_components, settings.gate_hidden)

    def optimizer(self, training: TrainingConfig) -> torch.optim.Optimizer:
        """Adagrad, with the recipe's rates of tables and of all else."""
        tables = list(self.tower.sparse_nn.parameters())
        of_tables = set(map(id, tables))
        others = [parameter for parameter in self.parameters() if id(parameter) not in of_tables]
        return torch.optim.Adagrad(
            [
                {"params": tables, "lr": training.learning_rate, "eps": EPSILON},
                {"params": others, "lr": training.dense_learning_rate},
            ]
        )

    @torch.no_grad()
    def embed(self, table: ItemTable) -> Tensor:
        """[I, D] of all items, as they go into the mixture."""
        parts, num_items = [], len(table.train_count)
        for items in np.array_split(np.arange(num_items), math.ceil(num_items / _EMBEDDED)):
            (rows,) = self.tower(*table.gather(items, raw=self.tower.sparse_nn.raw_keys)).values()
            parts.append(rows)
        return torch.cat(parts)

    @torch.no_grad()
    def neighbours(self, embeddings: Tensor, k: int, wanted: npt.NDArray[np.int64] | None = None) -> Neighbours:
        """The nearest of all items, by exact search.

        Args:
            embeddings: [I, D].
            k: candidates an item, at most I - 1.
            wanted: items whose neighbours are found, the others' are -1; None: all.
        """
        num_items = len(embeddings)
        k = min(k, num_items - 1)
        items, scores = np.full((num_items, k), -1, np.int32), np.full((num_items, k), -np.inf, np.float32)
        wanted = np.arange(num_items) if wanted is None else wanted
        for some in np.array_split(wanted, math.ceil(len(wanted) * num_items / _CHUNK_PAIRS)):
            if len(some):
                found = self.mixture(embeddings[torch.from_numpy(some)], embeddings)
                found[torch.arange(len(some)), torch.from_numpy(some)] = -math.inf
                best = found.topk(k)
                items[some], scores[some] = best.indices.numpy(), best.values.numpy()
        return Neighbours(items, scores)


def mixture_identity(config: Config) -> dict[str, Any]:
    """The settings of a recipe by which a mixture is what it is."""
    training = config.training.model_dump(mode="json", include={"epochs", "max_steps", "max_epochs", "patience"})
    return {
        "model": decisive(config, "checkpoint"),
        "length": training | config.validation.model_dump(mode="json"),
        "num_neighbours": config.retrieval.k_ann,
    }


def train_mixture(
    config: Config, dataset: Dataset, content: ContentEmbeddings | None, settings: MixtureSettings
) -> tuple[Vectors, Neighbours]:
    """Trains on all of T1 in this process, for as long as the end of T1 says, or the recipe.

    Args:
        config: the recipe, of one head.
        dataset: to train on.
        content: by which the recipe weighs pairs.
        settings: of the mixture.

    Returns:
        [I, D] float32 means of the items' components at unit length, which are what an index can hold, and the
        neighbours by the mixture.

    Raises:
        ValueError: the recipe asks for what this loop does not do, or the dataset is too small.
    """
    _check(config, reads_content=content is not None and config.model.content_dim > 0)
    with join_ranks("cpu") as ranks:
        epochs: float | None = None
        if config.training.chooses_length:
            view = ValidationDataset(dataset, config.validation, config.seed)
            first = _Training(config, view, content, settings)
            folder = config.paths.root / config.name
            folder.mkdir(parents=True, exist_ok=True)
            per_epoch, patience = first.loader.steps_per_epoch, config.training.patience
            stopping = EarlyStopping(
                lambda: first.measured(view), folder, per_epoch, patience, ranks, lambda line: print(line, flush=True)
            )
            for step in first.steps():
                if step % per_epoch == 0 and stopping(step):
                    break
            epochs = stopping.best.epoch
        last = _Training(config, dataset, content, settings)
        if epochs is not None:
            last.loader.num_steps = max(1, round(epochs * last.loader.steps_per_epoch))
        for step in last.steps():
            if step % config.training.log_every == 0 or step == last.loader.num_steps:
                print(f"step {step}/{last.loader.num_steps}  loss {last.loss:.4f}", flush=True)
    embeddings = last.model.embed(dataset.item_table)
    mean = functional.normalize(last.model.mixture.components(embeddings).mean(dim=1), dim=1)
    return mean.numpy(), last.model.neighbours(embeddings, config.retrieval.k_ann)


def _check(config: Config, *, reads_content: bool) -> None:
    """Refuses settings that this loop would pass over in silence.

    Raises:
        ValueError: names the first of them, and what to set it to.
    """
    model, loss, training = config.model, config.loss, config.training
    (first, *others) = model.heads
    alone = not others and (first.engagement_weight, first.relevance_weight, first.semantic_weight) == (1.0, 0.0, 0.0)
    wanted = {
        "model.heads": (alone, "one head that learns from engagement alone, as in the variant neucf"),
        "model.content_dim": (not reads_content, "0"),
        "model.id_tables": (not model.id_tables, "{}"),
        "loss.log_q": (loss.log_q != "streaming", "counts or none"),
        "training.optimizer": (training.optimizer == "adagrad", "adagrad"),
        "training.warmup_steps": (training.warmup_steps == 0, "0"),
    }
    for key, (fits, value) in wanted.items():
        if not fits:
            raise ValueError(f"a mixture of logits trains in a loop of its own: set {key} to {value}")


class _Training:
    """A run: its batches and its model, of which `steps` makes a trained one."""

    def __init__(
        self, config: Config, dataset: Dataset, content: ContentEmbeddings | None, settings: MixtureSettings
    ) -> None:
        self._config = config
        self._seed = config.training.seed_or(config.seed)
        self._training = sized(config.training, dataset, WindowPairs(config.pairs.window, config.pairs.direction))
        self.loader = PairLoader(
            dataset, config.pairs, config.loss, self._training, config.model, self._seed, content=content
        )
        torch.manual_seed(self._seed)
        tower = build_model(config.model, dataset.summary.features, torch.device("cpu"))
        assert len(tower.heads) == 1
        self.model = MixtureModel(tower, settings)
        self.loss = math.nan

    def steps(self) -> Iterator[int]:
        """Trains; yields the number of finished steps."""
        optimizer = self.model.optimizer(self._training)
        batches = with_draws(self.loader.batches(), self._config.loss, self._seed)
        for step, batch in enumerate(batches, start=1):
            optimizer.zero_grad()
            self.loss = learn(self.model, batch, self._config.loss)
            optimizer.step()
            yield step

    def measured(self, view: ValidationDataset) -> Mapping[str, float]:
        """Recall of the held-back items as they would be answered, and the geometric mean that decides."""
        config = self._config
        users = view.evaluation_users(config.validation.num_users, self._seed)
        cohort = make_cohort(users, num_triggers=NUM_TRIGGERS, exclude_seen=config.evaluation.exclude_seen)
        cuts = sorted({min(cut, view.num_items) for cut in CUTS})
        triggers = np.unique(cohort.triggers[cohort.triggers >= 0])
        k_ann = min(config.retrieval.k_ann, view.num_items - 1)
        found = self.model.neighbours(self.model.embed(view.item_table), k_ann, triggers)
        by_score = HeadScorePreranker()
        searches = {"mixture": lambda asking, _k, _needed: found.search("mixture", asking, k_ann)}
        pipeline = Pipeline(
            searches, by_score, by_score, num_items=view.num_items, k_ann=k_ann, k=min(config.retrieval.k, k_ann)
        )
        ranking = rank_users(cohort, pipeline, cuts[-1])
        measure = Measure(view, cohort, cuts, config.seed)
        row = measure.add("mixture", "merged", ranking.answers(), ranking.lists())
        recalls = {f"recall@{cut}": estimate.value for cut, estimate in row.recall.items()}
        mean = math.exp(sum(math.log(recall + 1e-4) for recall in recalls.values()) / len(recalls))
        return recalls | {SCORE: mean}


def learn(model: MixtureModel, batch: GlobalBatch, config: LossConfig) -> float:
    """Adds the gradients of one batch to the parameters; the weighted mean of the sampled softmax over its pairs.

    The same loss as `GlobalLoss` has for a head of ``L_e`` alone, with another similarity.

    Args:
        model: whose parameters learn.
        batch: of a process alone.
        config: of the loss.

    Returns:
        The loss.
    """
    (tower,) = model.tower(batch.sparse, batch.dense).values()
    rows = tower.detach().requires_grad_()
    draws = batch.draws
    log_weight = draws.copies.float().log()
    if config.log_q != "none":
        log_weight = log_weight - draws.log_q - math.log(draws.num_draws)
    scale, total = (1.0 / draws.total_weight if draws.total_weight else 0.0), 0.0
    size = max(1, _CHUNK_PAIRS // (2 * len(log_weight)))  # several tensors of it are kept for the gradients
    for start in range(0, len(batch.trigger), size):
        part = slice(start, start + size)
        positive, negative = rows.index_select(0, batch.positive[part]), rows.index_select(0, draws.rows)
        num = len(positive)
        scores = model.mixture(rows.index_select(0, batch.trigger[part]), torch.cat([positive, negative]))
        logits = scores[:, num:] / config.temperature + log_weight
        hits = slice(draws.hit_offsets[start], draws.hit_offsets[start + num])
        left_out = (draws.hit_rows[hits] - start, draws.hit_columns[hits])
        logits = logits.index_put(left_out, logits.new_tensor(-math.inf))
        wanted = scores[:, :num].diagonal() / config.temperature
        losses = torch.cat([wanted[:, None], logits], dim=1).logsumexp(dim=1) - wanted
        loss = (batch.weight[part] * losses).sum() * scale
        torch.autograd.backward(loss)
        total += loss.item()
    assert rows.grad is not None
    torch.autograd.backward(tower, rows.grad)
    return total
