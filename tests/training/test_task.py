"""The global loss against the papers' formulas in float64, draw by draw, without any of its shortcuts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from mtmh.modules.heads import Head
from tiny_run import tiny_config, write_inputs
from torch import Tensor

from mtmh.config import Config
from mtmh.data.batch import PairBatch
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.data.loader import PairLoader
from mtmh.training.distributed import join_ranks
from mtmh.training.task import GlobalLoss

HEADS = (Head("engagement"), Head("relevance", relevance_weight=0.5), Head("content", 0.0, 1.0))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with join_ranks("cpu"):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("task")
    write_inputs(root)
    return root


def batches_of(config: Config) -> Iterator[PairBatch]:
    dataset = open_dataset(config.dataset_dir)
    return PairLoader(dataset, config, content=open_content(config.content_dir, dataset)).iterate()


def log_softmax(rows: Tensor, pair: tuple[int, int], temperature: float, columns: Tensor, correction: Tensor) -> Tensor:
    """Of the positive, then the columns."""
    trigger, positive = pair
    near = rows[positive] @ rows[trigger] / temperature
    return torch.cat([near[None], rows[columns] @ rows[trigger] / temperature - correction]).log_softmax(0)


def naive(embeddings: dict[str, Tensor], batch: PairBatch, config: Config) -> tuple[Tensor, Tensor]:
    """The loss of one rank: a column for every draw, a loop over pairs."""
    loss = config.loss
    draws = torch.cat([batch.positive, batch.uniform]) if loss.in_batch_negatives else batch.uniform
    items, content = batch.item_index, batch.content.double()
    total, reported = torch.zeros((), dtype=torch.float64), torch.zeros(2, len(HEADS), dtype=torch.float64)
    for pair in range(len(batch.trigger)):
        trigger, positive = int(batch.trigger[pair]), int(batch.positive[pair])
        history = int(batch.history_row[pair])
        start, stop = batch.history_offsets[history : history + 2].tolist()
        forbidden = {*batch.history_values[start:stop].tolist(), int(items[trigger]), int(items[positive])}
        columns = torch.tensor([int(row) for row in draws if int(items[row]) not in forbidden])
        correction = batch.log_q.double()[columns] + math.log(len(draws)) if loss.log_q else torch.zeros(len(columns))

        known = content[columns].any(dim=1)
        has_teacher = bool(content[trigger].any() and content[positive].any())
        both = (trigger, positive)
        log_q = log_softmax(content, both, loss.teacher_temperature, columns[known], correction[known])
        for number, head in enumerate(HEADS):
            rows = embeddings[head.name]
            engagement = -log_softmax(rows, both, loss.temperature, columns, correction)[0]
            log_p = log_softmax(rows, both, loss.temperature, columns[known], correction[known])
            divergence = (log_q.exp() * (log_q - log_p)).sum() * float(has_teacher)
            weight = batch.weight[pair].double() / batch.weight.double().sum()
            total = total + weight * (head.engagement_weight * engagement + head.relevance_weight * divergence)
            reported[:, number] += weight * torch.stack([engagement, divergence]).detach()
    return total, reported


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"in_batch_negatives": False, "mask_history": False},
        {"log_q": False, "propensity": {}},
        {"num_uniform_negatives": 0},
    ],
    ids=["default", "uniform only", "uncorrected", "in batch only"],
)
def test_loss_and_gradients_equal_the_formulas(root: Path, loss: dict[str, Any]) -> None:
    config = tiny_config(root, loss={"num_uniform_negatives": 40, "temperature": 0.5, **loss})
    generator = torch.Generator().manual_seed(0)
    for batch in islice(batches_of(config), 2):
        leaves = {
            head.name: torch.nn.functional.normalize(
                torch.randn(len(batch.item_index), 8, dtype=torch.float64, generator=generator), dim=1
            ).requires_grad_()
            for head in HEADS
        }
        total, reported = GlobalLoss(HEADS, config.loss)(leaves, batch)
        gradients = torch.autograd.grad(total.sum(), list(leaves.values()))
        expected, expected_reported = naive(leaves, batch, config)
        expected_gradients = torch.autograd.grad(expected, list(leaves.values()))
        torch.testing.assert_close(total, expected.reshape(1), rtol=1e-6, atol=1e-9)
        for number, head in enumerate(HEADS):
            torch.testing.assert_close(reported[0, number].double(), expected_reported[0, number], rtol=1e-6, atol=1e-6)
            if head.relevance_weight:
                torch.testing.assert_close(
                    reported[1, number].double(), expected_reported[1, number], rtol=1e-6, atol=1e-6
                )
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_a_batch_without_weight_teaches_nothing(root: Path) -> None:
    config = tiny_config(root)
    batch = next(batches_of(config))
    batch.weight.zero_()
    embeddings = {head.name: torch.randn(len(batch.item_index), 8, requires_grad=True) for head in HEADS}
    total, _ = GlobalLoss(HEADS, config.loss)(embeddings, batch)
    total.sum().backward()
    assert total.item() == 0.0
    for rows in embeddings.values():
        assert rows.grad is not None
        assert not rows.grad.any()
