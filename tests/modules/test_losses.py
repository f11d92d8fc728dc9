"""The chunked losses against the formulas written plainly in float64, values and all gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mtmh.modules import Head, LossOutput, Teacher, contrastive_losses

MTMH_HEADS = (Head("engagement"), Head("relevance", relevance_weight=0.5))


@dataclass(frozen=True)
class Inputs:
    trigger: list[Tensor]
    positive: list[Tensor]
    negative: list[Tensor]
    heads: tuple[Head, ...]
    temperature: float = 0.2
    row_weight: Tensor | None = None
    log_q_negative: Tensor | None = None
    teacher: Teacher | None = None
    hits: tuple[Tensor, Tensor] | None = None

    def leaves(self) -> list[Tensor]:
        return [*self.trigger, *self.positive, *self.negative]

    def to(self, dtype: torch.dtype) -> Inputs:
        def leaf(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]

        def constant(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        teacher = self.teacher and Teacher(
            *(x.to(dtype) for x in (self.teacher.trigger, self.teacher.positive, self.teacher.negative)),
            self.teacher.temperature,
        )
        return replace(
            self,
            trigger=leaf(self.trigger),
            positive=leaf(self.positive),
            negative=leaf(self.negative),
            row_weight=constant(self.row_weight),
            log_q_negative=constant(self.log_q_negative),
            teacher=teacher,
        )

    def rows(self, rows: slice) -> Inputs:
        hits = self.hits
        if hits is not None:
            start, stop, _ = rows.indices(self.trigger[0].shape[0])
            inside = (hits[0] >= start) & (hits[0] < stop)
            hits = (hits[0][inside] - start, hits[1][inside])
        return replace(
            self,
            trigger=[x[rows] for x in self.trigger],
            positive=[x[rows] for x in self.positive],
            row_weight=None if self.row_weight is None else self.row_weight[rows],
            teacher=self.teacher
            and replace(self.teacher, trigger=self.teacher.trigger[rows], positive=self.teacher.positive[rows]),
            hits=hits,
        )


def chunked(inputs: Inputs, chunk_rows: int = 256) -> LossOutput:
    return contrastive_losses(
        inputs.trigger,
        inputs.positive,
        inputs.negative,
        inputs.heads,
        temperature=inputs.temperature,
        row_weight=inputs.row_weight,
        log_q_negative=inputs.log_q_negative,
        teacher=inputs.teacher,
        hits=inputs.hits,
        chunk_rows=chunk_rows,
    )


def naive(inputs: Inputs) -> LossOutput:
    """The formulas of equations 1 to 3 as they stand, all logits held, one row after another where that is plainer."""
    num_rows, num_negatives = inputs.trigger[0].shape[0], inputs.negative[0].shape[0]
    kept = torch.ones(num_rows, 1 + num_negatives, dtype=torch.bool)
    if inputs.hits is not None:
        kept[inputs.hits[0], 1 + inputs.hits[1]] = False

    def logits(trigger: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
        of_negatives = trigger @ negative.T / temperature
        if inputs.log_q_negative is not None:
            of_negatives = of_negatives - inputs.log_q_negative - math.log(num_negatives)
        return torch.cat([(trigger * positive).sum(1, keepdim=True) / temperature, of_negatives], dim=1)

    def log_softmax(x: Tensor, columns: Tensor) -> Tensor:
        return functional.log_softmax(x.masked_fill(~columns, -math.inf), dim=1)

    weight = torch.ones(num_rows, dtype=torch.float64) if inputs.row_weight is None else inputs.row_weight
    engagement, relevance, total = [], [], torch.zeros((), dtype=torch.float64)
    for head, trigger, positive, negative in zip(
        inputs.heads, inputs.trigger, inputs.positive, inputs.negative, strict=True
    ):
        student = logits(trigger, positive, negative, inputs.temperature)
        loss_e = (weight * -log_softmax(student, kept)[:, 0]).sum()
        loss_r = torch.zeros((), dtype=torch.float64)
        if head.relevance_weight > 0:
            teacher = inputs.teacher
            assert teacher is not None
            judged = kept.clone()
            judged[:, 1:] &= teacher.negative.abs().sum(1) > 0
            labels = logits(teacher.trigger, teacher.positive, teacher.negative, teacher.temperature)
            log_q, log_p = log_softmax(labels, judged), log_softmax(student, judged)
            for row in range(num_rows):
                if teacher.trigger[row].abs().sum() > 0 and teacher.positive[row].abs().sum() > 0:
                    columns = judged[row]
                    q, p = log_q[row, columns], log_p[row, columns]
                    loss_r = loss_r + weight[row] * (q.exp() * (q - p)).sum()
        total = total + head.engagement_weight * loss_e + head.relevance_weight * loss_r
        engagement.append(loss_e)
        relevance.append(loss_r)
    return LossOutput(total, torch.stack(engagement), torch.stack(relevance))


def random_inputs(
    seed: int = 0,
    rows: int = 13,
    negatives: int = 29,
    width: int = 6,
    heads: tuple[Head, ...] = MTMH_HEADS,
    normalize: bool = True,
    weighted: bool = True,
    log_q: bool = True,
    hits: bool = True,
    missing_rows: bool = False,
    missing_negatives: bool = False,
    temperature: float = 0.2,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def embeddings(count: int, width: int = width, normalize: bool = normalize) -> Tensor:
        x = torch.randn(count, width, dtype=torch.float64, generator=generator)
        return functional.normalize(x, dim=1) if normalize else x

    def teacher_embeddings(count: int, missing: bool) -> Tensor:
        x = embeddings(count, width=5, normalize=True)
        if missing:
            x[torch.rand(count, generator=generator) < 0.4] = 0.0
        return x

    masked = torch.rand(rows, negatives, generator=generator) < 0.2
    if hits and rows > 1:
        masked[1] = True  # a row without any negative left
    found = masked.nonzero(as_tuple=True)
    shuffled = torch.randperm(found[0].numel(), generator=generator)
    return Inputs(
        trigger=[embeddings(rows).requires_grad_() for _ in heads],
        positive=[embeddings(rows).requires_grad_() for _ in heads],
        negative=[embeddings(negatives).requires_grad_() for _ in heads],
        heads=heads,
        temperature=temperature,
        row_weight=torch.rand(rows, dtype=torch.float64, generator=generator) + 0.1 if weighted else None,
        log_q_negative=torch.randn(negatives, dtype=torch.float64, generator=generator) - 3 if log_q else None,
        teacher=Teacher(
            teacher_embeddings(rows, missing_rows),
            teacher_embeddings(rows, missing_rows),
            teacher_embeddings(negatives, missing_negatives),
            temperature=0.3,
        ),
        hits=(found[0][shuffled], found[1][shuffled]) if hits else None,
    )


def assert_equal(inputs: Inputs, chunk_rows: int = 4) -> None:
    """Values and gradients of the chunked pass in float64 and float32 against the naive formula in float64."""
    exact = inputs.to(torch.float64)
    expected = naive(exact)
    expected_gradients = torch.autograd.grad(expected.total, exact.leaves())
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-5)):
        cast = inputs.to(dtype)
        found = chunked(cast, chunk_rows)
        for part, reference in zip(found, expected, strict=True):
            assert part.dtype == dtype
            scale = max(1.0, float(reference.detach().abs().max()))
            torch.testing.assert_close(part.detach().double(), reference.detach(), rtol=0, atol=tolerance * scale)
        for gradient, reference in zip(
            torch.autograd.grad(found.total, cast.leaves()), expected_gradients, strict=True
        ):
            scale = max(1.0, float(reference.detach().abs().max()))
            torch.testing.assert_close(gradient.double(), reference, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("log_q", [False, True])
@pytest.mark.parametrize("hits", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_equals_naive_formula(log_q: bool, hits: bool, weighted: bool, missing: bool) -> None:
    assert_equal(
        random_inputs(log_q=log_q, hits=hits, weighted=weighted, missing_rows=missing, missing_negatives=missing)
    )


@pytest.mark.parametrize(
    "heads",
    [
        (Head("engagement"),),
        (Head("multi_task", relevance_weight=0.5),),
        (Head("engagement"), Head("relevance", engagement_weight=0.0, relevance_weight=1.0)),
        (Head("a", 0.3, 2.0), Head("b", 1.5, 0.0), Head("c", 0.0, 0.7)),
    ],
    ids=["single-task", "MTSH", "STMH", "three"],
)
@pytest.mark.parametrize("missing_negatives", [False, True])
def test_every_setting_of_heads(heads: tuple[Head, ...], missing_negatives: bool) -> None:
    assert_equal(random_inputs(heads=heads, missing_rows=True, missing_negatives=missing_negatives))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 9),
    negatives=st.integers(0, 9),
    chunk_rows=st.integers(1, 10),
    normalize=st.booleans(),
    log_q=st.booleans(),
    hits=st.booleans(),
    missing_rows=st.booleans(),
    missing_negatives=st.booleans(),
)
def test_any_shape_equals_naive_formula(seed: int, rows: int, negatives: int, chunk_rows: int, **options: bool) -> None:
    assert_equal(random_inputs(seed=seed, rows=rows, negatives=negatives, **options), chunk_rows)  # type: ignore[arg-type]
