"""The global loss against the papers' formulas in float64, draw by draw, without any of its shortcuts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_dataset import pair_loader
from tiny_run import tiny_config, write_inputs
from torch import Tensor

from mtmh.config import Config, GradNormConfig
from mtmh.data.batch import PairBatch
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.distributed.ranks import join_ranks
from mtmh.specs import Head
from mtmh.training.content import teacher_directions
from mtmh.training.grad_norm import GradNorm
from mtmh.training.semantic import label_pairs
from mtmh.training.shared_negatives import GlobalBatch, share_negatives, shared_candidates, with_draws
from mtmh.training.task import GlobalLoss

HEADS = (
    Head("engagement"),
    Head("relevance", relevance_weight=0.5),
    Head("content", 0.0, 1.0),
    Head("multi_task", 1.0, semantic_weight=100.0),
    Head("semantic", 0.0, 0.3, semantic_weight=2.0),
)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with join_ranks("cpu"):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("task")
    write_inputs(root)
    return root


def own_batches(config: Config) -> Iterator[PairBatch]:
    dataset = open_dataset(config.dataset_dir)
    return pair_loader(dataset, config, content=open_content(config.content_dir, dataset)).iterate()


def batches_of(config: Config) -> Iterator[GlobalBatch]:
    return with_draws(own_batches(config), config.loss, config.seed)


def log_softmax(rows: Tensor, pair: tuple[int, int], temperature: float, columns: Tensor, correction: Tensor) -> Tensor:
    """Of the positive, then the columns."""
    trigger, positive = pair
    near = rows[positive] @ rows[trigger] / temperature
    return torch.cat([near[None], rows[columns] @ rows[trigger] / temperature - correction]).log_softmax(0)


def naive(embeddings: dict[str, Tensor], batch: GlobalBatch, config: Config) -> tuple[Tensor, Tensor]:
    """The loss of one rank: a column for every draw, a loop over pairs."""
    loss = config.loss
    shared = shared_candidates(batch, loss.in_batch_share, config.seed)
    draws = torch.cat([shared, batch.uniform]) if loss.in_batch_negatives else batch.uniform
    items, content = batch.item_index, batch.content.double()
    total, reported = torch.zeros((), dtype=torch.float64), torch.zeros(3, len(HEADS), dtype=torch.float64)
    for pair in range(len(batch.trigger)):
        trigger, positive = int(batch.trigger[pair]), int(batch.positive[pair])
        history = int(batch.history_row[pair])
        start, stop = batch.history_offsets[history : history + 2].tolist()
        forbidden = {*batch.history_values[start:stop].tolist(), int(items[trigger]), int(items[positive])}
        columns = torch.tensor([int(row) for row in draws if int(items[row]) not in forbidden])
        correction = (
            batch.log_q.double()[columns] + math.log(len(draws))
            if loss.log_q == "counts"
            else torch.zeros(len(columns))
        )

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
            reported[:2, number] += weight * torch.stack([engagement, divergence]).detach()
    semantic, reported[2] = naive_semantic(embeddings, batch, config, draws)
    return total + semantic, reported


def naive_semantic(
    embeddings: dict[str, Tensor], batch: GlobalBatch, config: Config, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """The sampled softmax of the pseudo-labels; which pair has which label is looked up, what it may be is checked."""
    loss = config.loss
    content = batch.content.double()
    # Labels are columns of the distinct draws.
    _, of_columns = share_negatives([embeddings[head.name] for head in HEADS], batch.content, batch.draws)
    labelled = label_pairs(batch, of_columns, loss.semantic, config.seed)
    losses = torch.zeros(len(HEADS), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for trigger, label, weight in zip(*map(Tensor.tolist, vars(labelled).values()), strict=True):
        positive = int((batch.item_index == batch.draws.items[label]).nonzero()[0])
        near = content @ content[trigger] >= loss.semantic.threshold
        assert near[positive]
        assert positive != trigger
        columns = torch.tensor([row for row in draws.tolist() if not near[row]])
        correction = (
            batch.log_q.double()[columns] + math.log(len(draws))
            if loss.log_q == "counts"
            else torch.zeros(len(columns))
        )
        for number, head in enumerate(HEADS):
            if head.semantic_weight:
                value = (
                    -log_softmax(embeddings[head.name], (trigger, positive), loss.temperature, columns, correction)[0]
                    * weight
                    / labelled.weight.double().sum()
                )
                total = total + head.semantic_weight * value
                losses[number] += value.detach()
    return total, losses


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"in_batch_negatives": False, "mask_history": False},
        {"log_q": "none", "propensity": {}},
        {"num_uniform_negatives": 0},
        {"semantic": {"threshold": 0.2, "share": 0.5}},
        {"in_batch_share": 0.3},
    ],
    ids=["default", "uniform only", "uncorrected", "in batch only", "other pseudo-labels", "fewer candidates"],
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
        total, reported = GlobalLoss(HEADS, config.loss, config.seed)(leaves, batch)
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
            if head.semantic_weight:
                assert reported[2, number] > 0
            torch.testing.assert_close(reported[2, number].double(), expected_reported[2, number], rtol=1e-6, atol=1e-6)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_learned_variances_divide_the_losses_and_have_their_own_gradient(root: Path) -> None:
    fixed = tiny_config(root, loss={"num_uniform_negatives": 40, "temperature": 0.5})
    learned = tiny_config(root, loss={"num_uniform_negatives": 40, "temperature": 0.5, "weighting": "uncertainty"})
    batch = next(batches_of(fixed))
    generator = torch.Generator().manual_seed(0)
    leaves = {
        head.name: torch.randn(len(batch.item_index), 8, dtype=torch.float64, generator=generator).requires_grad_()
        for head in HEADS
    }
    task = GlobalLoss(HEADS, learned.loss, learned.seed)
    assert task.log_variances is not None
    with torch.no_grad():
        task.log_variances.copy_(torch.randn(task.log_variances.shape, generator=generator))
    log_variances = task.log_variances.detach().double().requires_grad_()
    weights = torch.tensor(
        [[getattr(head, f"{kind}_weight") for head in HEADS] for kind in ("engagement", "relevance", "semantic")]
    )
    total, reported = task(leaves, batch)
    gradients = torch.autograd.grad(total.sum(), [*leaves.values(), task.log_variances])

    in_float32 = weights * (-task.log_variances.detach()).exp()
    heads = tuple(Head(head.name, *row) for head, row in zip(HEADS, in_float32.T.tolist(), strict=True))
    plain, losses = GlobalLoss(heads, fixed.loss, fixed.seed)(leaves, batch)
    torch.testing.assert_close(reported, losses)
    expected = plain.sum() + 0.5 * (log_variances * (weights > 0)).sum()
    torch.testing.assert_close(total.sum().double(), expected.double(), rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(plain.sum(), list(leaves.values()))
    for gradient, of_plain in zip(gradients[:-1], wanted, strict=True):
        torch.testing.assert_close(gradient, of_plain, rtol=1e-6, atol=1e-9)
    formula = weights * losses * (-log_variances).exp() + 0.5 * log_variances * (weights > 0)
    (of_variances,) = torch.autograd.grad(formula.sum(), [log_variances])
    torch.testing.assert_close(gradients[-1].double(), of_variances, rtol=1e-5, atol=1e-6)
    assert (of_variances[weights == 0] == 0).all()


def test_balanced_weights_follow_the_formulas_of_gradnorm(root: Path) -> None:
    settings = {"alpha": 1.5, "learning_rate": 0.05, "every": 2}
    config = tiny_config(
        root,
        loss={"num_uniform_negatives": 40, "temperature": 0.5, "weighting": "gradnorm", "gradnorm": settings},
    )
    fixed = config.loss.model_copy(update={"weighting": "fixed"})
    task = GlobalLoss(HEADS, config.loss, config.seed)
    assert task.grad_norm is not None
    kinds = ("engagement", "relevance", "semantic")
    alone = [
        (kind, place, Head(head.name, **{f"{other}_weight": float(other == kind) for other in kinds}))
        for kind in kinds
        for place, head in enumerate(HEADS)
        if getattr(head, f"{kind}_weight")
    ]
    weights = np.array([getattr(HEADS[place], f"{kind}_weight") for kind, place, _ in alone])
    total, first = weights.sum(), None
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(6, 8, dtype=torch.float64, generator=generator) for _ in HEADS]

    for batch in islice(batches_of(config), 5):
        features = torch.randn(len(batch.item_index), 6, dtype=torch.float64, generator=generator).requires_grad_()
        embeddings = {
            head.name: torch.nn.functional.normalize(features @ layer, dim=1)
            for head, layer in zip(HEADS, layers, strict=True)
        }
        loss, reported = task(embeddings, batch, None, features)
        if batch.step % 2 == 0:
            losses, pulls = [], []
            for kind, _, head in alone:
                value, parts = GlobalLoss((head,), fixed, config.seed)({head.name: embeddings[head.name]}, batch)
                # The gradient of a layer that multiplies the features, where it is the identity.
                layer = torch.eye(6, dtype=torch.float64, requires_grad=True)
                (gradient,) = torch.autograd.grad(value.sum(), features, retain_graph=True)
                (of_layer,) = torch.autograd.grad((features.detach() @ layer * gradient).sum(), layer)
                pulls.append(of_layer.norm().item())
                losses.append(float(parts[kinds.index(kind), 0]))
            first = np.array(losses) if first is None else first
            norms = weights * pulls
            relative = np.array(losses) / first
            target = norms.mean() * (relative / relative.mean()) ** 1.5
            weights = weights - 0.05 * np.sign(norms - target) * pulls / norms.mean()
            weights = np.maximum(weights, 1e-3 * total)
            weights = weights * total / weights.sum()
        found = [task.grad_norm.weights[kinds.index(kind), place].item() for kind, place, _ in alone]
        np.testing.assert_allclose(found, weights, rtol=1e-4)
        assert np.count_nonzero(task.grad_norm.weights) == len(alone)
        expected = sum(
            weight * float(reported[kinds.index(kind), place])
            for (kind, place, _), weight in zip(alone, weights, strict=True)
        )
        assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_balanced_weights_make_losses_pull_alike() -> None:
    """With ``alpha`` 0, from any beginning."""
    weights = torch.tensor([[1.0, 1.0], [0.0, 0.5], [0.0, 0.0]])
    balance = GradNorm(weights, GradNormConfig(alpha=0.0, learning_rate=0.01, every=1))
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 6, generator=generator)
    gradients = [scale * torch.randn(20, 6, generator=generator) for scale in (1.0, 3.0, 10.0)]
    for _ in range(300):
        balance.update(torch.ones(3, 2), gradients, features)
    plain = torch.stack([(gradient.T @ features).norm() for gradient in gradients])
    pulls = plain * balance.weights[weights > 0]
    torch.testing.assert_close(pulls / pulls.mean(), torch.ones(3), rtol=0.0, atol=0.1)
    assert balance.weights.sum().item() == pytest.approx(2.5)


def test_distillation_compares_the_teachers_largest_directions(root: Path) -> None:
    """As if the teacher's embeddings were narrower; with all directions nothing changes."""
    heads = HEADS[:3]
    config = tiny_config(root)
    content = open_content(config.content_dir, open_dataset(config.dataset_dir))
    batch = next(batches_of(config))
    generator = torch.Generator().manual_seed(0)
    embeddings = {head.name: torch.randn(len(batch.item_index), 8, generator=generator) for head in heads}

    def losses(dim: int, **changed: Tensor) -> Tensor:
        loss = config.loss.model_copy(update={"teacher_dim": dim})
        with join_ranks("cpu") as ranks:
            directions = teacher_directions(content, config.model, loss, config.seed, ranks)
        assert (directions is None) == (dim in (0, content.dim))
        return GlobalLoss(heads, loss, config.seed, None, directions)(embeddings, replace(batch, **changed))[1]

    torch.testing.assert_close(losses(content.dim), losses(0))
    rows = content.gather(np.arange(len(content.embeddings))).double().numpy()
    kept = np.linalg.svd(rows)[2][:3].T
    narrow = torch.from_numpy(batch.content.double().numpy() @ kept)
    narrow = torch.nn.functional.normalize(narrow, dim=1).float()
    assert (batch.content.any(dim=1) == narrow.any(dim=1)).all()
    torch.testing.assert_close(losses(3), losses(0, content=narrow), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(losses(3), losses(0), rtol=1e-3)


def test_a_batch_without_weight_teaches_nothing(root: Path) -> None:
    config = tiny_config(root)
    weightless = next(own_batches(config))
    weightless.weight.zero_()
    batch = next(with_draws(iter([weightless]), config.loss))
    embeddings = {head.name: torch.randn(len(batch.item_index), 8, requires_grad=True) for head in HEADS}
    total, _ = GlobalLoss(HEADS, config.loss)(embeddings, batch)
    total.sum().backward()
    assert total.item() == 0.0
    for rows in embeddings.values():
        assert rows.grad is not None
        assert not rows.grad.any()


def test_pseudo_labels_follow_the_step_and_the_seed_alone(root: Path) -> None:
    config = tiny_config(root, loss={"semantic": {"threshold": 0.3, "share": 0.7}})
    chosen = []
    for seed, number in ((0, 0), (0, 1), (0, 0), (1, 0)):
        batch = next(islice(batches_of(config), number, None))
        _, of_columns = share_negatives([torch.randn(len(batch.item_index), 2)], batch.content, batch.draws)
        pairs = label_pairs(batch, of_columns, config.loss.semantic, seed)
        assert 0.4 * len(batch.trigger) < len(pairs.trigger) < 0.9 * len(batch.trigger)
        chosen.append(
            [*zip(batch.item_index[pairs.trigger].tolist(), batch.draws.items[pairs.label].tolist(), strict=True)]
        )
    assert chosen[0] == chosen[2]
    assert chosen[0] != chosen[3]
    assert chosen[0] != chosen[1]
    # Pairs of one trigger and one candidate agree; others of the same trigger need not.
    labels = {trigger: {label for t, label in chosen[0] if t == trigger} for trigger, _ in chosen[0]}
    assert any(len(found) > 1 for found in labels.values())


def test_a_share_of_the_candidates_are_negatives_and_expected_as_often(root: Path) -> None:
    config = tiny_config(root, loss={"in_batch_share": 0.25, "num_uniform_negatives": 40})
    found = []
    for batch in islice(batches_of(config), 20):
        shared = shared_candidates(batch, 0.25, config.seed)
        found.append(len(shared))
        other = replace(batch, **{name: getattr(batch, name).flip(0) for name in ("trigger", "positive")})
        assert torch.equal(shared_candidates(other, 0.25, config.seed).sort().values, shared.sort().values)
        assert (int(batch.draws.in_batch.sum()), batch.draws.num_draws) == (len(shared), len(shared) + 40)
        # Of the mix of a quarter of the pairs with the uniform draws.
        counts = torch.from_numpy(open_dataset(config.dataset_dir).item_table.train_count)
        in_batch = 0.25 * len(batch.trigger)
        expected = in_batch * counts / counts.sum() + 40.0 / (counts > 0).sum()
        torch.testing.assert_close(
            batch.log_q, (expected[batch.item_index] / (in_batch + 40)).log().float(), rtol=1e-4, atol=1e-4
        )
    assert 0.15 * 48 * 20 < sum(found) < 0.35 * 48 * 20
