"""The chunked losses against the formulas written plainly in float64, values and all gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mtmh.modules import Head, LossOutput, Similar, TeacherEmbeddings, contrastive_losses
from mtmh.modules.losses import chunked as chunked_pass
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MTMH_HEADS = (Head("engagement"), Head("relevance", relevance_weight=0.5))


@dataclass(frozen=True)
class Inputs:
    trigger: list[Tensor]
    positive: list[Tensor]
    negative: list[Tensor]
    heads: tuple[Head, ...]
    temperature: float = 0.2
    row_weight: Tensor | None = None
    log_weight_negative: Tensor | None = None
    teacher: TeacherEmbeddings | None = None
    hits: tuple[Tensor, Tensor] | None = None
    similar: Similar | None = None

    def leaves(self) -> list[Tensor]:
        return [*self.trigger, *self.positive, *self.negative]

    def to(self, dtype: torch.dtype) -> Inputs:
        def leaf(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]

        def constant(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        teacher = self.teacher and TeacherEmbeddings(
            self.teacher.trigger.to(dtype),
            self.teacher.positive.to(dtype),
            self.teacher.negative.to(dtype),
            self.teacher.temperature,
        )
        return replace(
            self,
            trigger=leaf(self.trigger),
            positive=leaf(self.positive),
            negative=leaf(self.negative),
            row_weight=constant(self.row_weight),
            log_weight_negative=constant(self.log_weight_negative),
            teacher=teacher,
            similar=self.similar
            and replace(self.similar, trigger=self.similar.trigger.to(dtype), negative=self.similar.negative.to(dtype)),
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


def chunked(inputs: Inputs, chunk_rows: int = 256, products: Literal["float32", "bfloat16"] = "float32") -> LossOutput:
    return contrastive_losses(
        inputs.trigger,
        inputs.positive,
        inputs.negative,
        inputs.heads,
        temperature=inputs.temperature,
        row_weight=inputs.row_weight,
        log_weight_negative=inputs.log_weight_negative,
        teacher=inputs.teacher,
        hits=inputs.hits,
        similar=inputs.similar,
        chunk_rows=chunk_rows,
        products=products,
    )


def naive(inputs: Inputs) -> LossOutput:
    """The formulas of equations 1 to 3 as they stand, all logits held, one row after another where that is plainer."""
    num_rows, num_negatives = inputs.trigger[0].shape[0], inputs.negative[0].shape[0]
    kept = torch.ones(num_rows, 1 + num_negatives, dtype=torch.bool)
    if inputs.hits is not None:
        kept[inputs.hits[0], 1 + inputs.hits[1]] = False
    if inputs.similar is not None:
        kept[:, 1:] &= inputs.similar.trigger @ inputs.similar.negative.T < inputs.similar.threshold

    def logits(trigger: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
        of_negatives = trigger @ negative.T / temperature
        if inputs.log_weight_negative is not None:
            of_negatives = of_negatives + inputs.log_weight_negative
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
    log_weight: bool = True,
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
        log_weight_negative=torch.randn(negatives, dtype=torch.float64, generator=generator) if log_weight else None,
        teacher=TeacherEmbeddings(
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
        gradients = torch.autograd.grad(found.total, cast.leaves())
        for part, reference in zip((*found, *gradients), (*expected, *expected_gradients), strict=True):
            assert part.dtype == dtype
            scale = max(1.0, float(reference.detach().norm()))
            torch.testing.assert_close(part.detach().double(), reference.detach(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("log_weight", [False, True])
@pytest.mark.parametrize("hits", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_equals_naive_formula(log_weight: bool, hits: bool, weighted: bool, missing: bool) -> None:
    assert_equal(
        random_inputs(
            log_weight=log_weight, hits=hits, weighted=weighted, missing_rows=missing, missing_negatives=missing
        )
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
    log_weight=st.booleans(),
    hits=st.booleans(),
    missing_rows=st.booleans(),
    missing_negatives=st.booleans(),
)
def test_any_shape_equals_naive_formula(seed: int, rows: int, negatives: int, chunk_rows: int, **options: bool) -> None:
    assert_equal(random_inputs(seed=seed, rows=rows, negatives=negatives, **options), chunk_rows)


@pytest.mark.parametrize("negatives", [29, 5000])
@pytest.mark.parametrize("distils", [False, True])
def test_negatives_with_similar_content_are_left_out(negatives: int, distils: bool) -> None:
    inputs = random_inputs(negatives=negatives, heads=MTMH_HEADS if distils else (Head("engagement"),))
    assert inputs.teacher is not None
    similar = Similar(inputs.teacher.trigger, inputs.teacher.negative, threshold=0.3)
    assert_equal(replace(inputs, similar=similar), chunk_rows=5)
    assert chunked(replace(inputs, similar=similar)).total < chunked(inputs).total


def test_tiles_of_negatives_and_chunks_of_rows_do_not_matter() -> None:
    inputs = random_inputs(rows=23, negatives=5000, missing_negatives=True)
    assert_equal(inputs, chunk_rows=23)
    results = []
    for chunk_rows in (1, 7, 23, 256):
        loss = chunked(inputs, chunk_rows)
        results.append([*loss, *torch.autograd.grad(loss.total, inputs.leaves())])
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("missing_negatives", [False, True])
def test_gradcheck(missing_negatives: bool) -> None:
    inputs = random_inputs(rows=4, negatives=5, width=3, missing_rows=True, missing_negatives=missing_negatives)

    def total(*leaves: Tensor) -> Tensor:
        parts = [list(leaves[i : i + 2]) for i in (0, 2, 4)]
        loss: Tensor = chunked(
            replace(inputs, trigger=parts[0], positive=parts[1], negative=parts[2]), chunk_rows=3
        ).total
        return loss

    assert torch.autograd.gradcheck(total, inputs.leaves())


@pytest.mark.parametrize("missing_negatives", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 1e-4])
def test_extreme_logits_stay_exact(temperature: float, missing_negatives: bool) -> None:
    """Probabilities underflow and the losses are still right, in float32 too."""
    inputs = random_inputs(temperature=temperature, missing_negatives=missing_negatives, log_weight=False)
    assert inputs.teacher is not None
    inputs = replace(inputs, teacher=replace(inputs.teacher, temperature=0.01))
    # Rounding a logit of 1 / temperature moves probabilities by that much, so only values are compared in float32.
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        cast = inputs.to(dtype)
        found, expected = chunked(cast), naive(inputs.to(torch.float64))
        for part, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(part.double(), reference, rtol=tolerance, atol=tolerance)
        for gradient in torch.autograd.grad(found.total, cast.leaves()):
            assert gradient.isfinite().all()


def test_row_without_negatives_has_no_loss_and_no_gradient() -> None:
    inputs = random_inputs(rows=3, negatives=7)
    everything = torch.cartesian_prod(torch.arange(3), torch.arange(7))
    inputs = replace(inputs, hits=(everything[:, 0], everything[:, 1]))
    loss = chunked(inputs)
    assert loss.total == 0.0
    assert not loss.engagement.any()
    assert not loss.relevance.any()
    for gradient in torch.autograd.grad(loss.total, inputs.leaves()):
        assert not gradient.any()


def test_a_hit_counts_as_an_absent_negative() -> None:
    """Leaving a column out equals not having it."""
    inputs = random_inputs(negatives=6, hits=False, log_weight=False)
    rows = torch.arange(13)
    masked = replace(inputs, hits=(rows, torch.full_like(rows, 2)))
    assert inputs.teacher is not None
    others = torch.tensor([0, 1, 3, 4, 5])
    absent = replace(
        inputs,
        negative=[x[others] for x in inputs.negative],
        teacher=replace(inputs.teacher, negative=inputs.teacher.negative[others]),
    )
    torch.testing.assert_close(chunked(masked).total, chunked(absent).total)


def test_rows_add_up() -> None:
    inputs = random_inputs(missing_rows=True)
    whole, first, second = (chunked(inputs.rows(rows)) for rows in (slice(None), slice(0, 5), slice(5, None)))
    for left, right, both in zip(first, second, whole, strict=True):
        torch.testing.assert_close(left + right, both)


def test_log_weights_recover_the_softmax_over_the_catalogue() -> None:
    """Items drawn as often as their probability says weigh as if each was in the set once, in P and in Q."""
    catalogue = random_inputs(negatives=6, hits=False, log_weight=False)
    copies = torch.tensor([1, 4, 2, 1, 7, 5])
    drawn = torch.repeat_interleave(torch.arange(6), copies)
    assert catalogue.teacher is not None
    sample = replace(
        catalogue,
        negative=[x[drawn] for x in catalogue.negative],
        teacher=replace(catalogue.teacher, negative=catalogue.teacher.negative[drawn]),
        log_weight_negative=-copies[drawn].double().log(),
    )
    for found, expected in zip(chunked(sample), chunked(catalogue), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_relevance_is_zero_when_the_head_agrees_with_the_teacher() -> None:
    inputs = random_inputs(heads=(Head("relevance", 0.0, 1.0),), missing_rows=True, missing_negatives=True)
    assert inputs.teacher is not None
    same = replace(
        inputs,
        trigger=[inputs.teacher.trigger.requires_grad_()],
        positive=[inputs.teacher.positive.requires_grad_()],
        negative=[inputs.teacher.negative.requires_grad_()],
        temperature=inputs.teacher.temperature,
    )
    loss = chunked(same)
    torch.testing.assert_close(loss.total, torch.zeros_like(loss.total))
    for gradient in torch.autograd.grad(loss.total, same.leaves()):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_gradient_scales_with_the_gradient_of_the_loss_and_survives_a_second_backward() -> None:
    inputs = random_inputs()
    loss = chunked(inputs).total
    once = torch.autograd.grad(loss, inputs.leaves(), retain_graph=True)
    thrice = torch.autograd.grad(3.0 * loss, inputs.leaves())
    for gradient, expected in zip(thrice, once, strict=True):
        torch.testing.assert_close(gradient, 3.0 * expected)


def test_one_tensor_in_several_places() -> None:
    """Both heads share embeddings and the negatives are the positives, as with in-batch negatives."""
    base = random_inputs(seed=3)
    trigger, positive = base.trigger[0], base.positive[0]

    def shared(leaf_t: Tensor, leaf_p: Tensor) -> Inputs:
        return replace(
            random_inputs(seed=3, negatives=13),
            trigger=[leaf_t, leaf_t],
            positive=[leaf_p, leaf_p],
            negative=[leaf_p, leaf_p],
        )

    found = torch.autograd.grad(chunked(shared(trigger, positive)).total, [trigger, positive])
    expected = torch.autograd.grad(naive(shared(trigger, positive)).total, [trigger, positive])
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize(("threads", "rows", "chunk_rows"), [(2, 13, 4), (3, 13, 5), (4, 3, 1), (2, 1, 8)])
def test_threads_with_chunks_of_their_own_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, threads: int, rows: int, chunk_rows: int
) -> None:
    monkeypatch.setattr(chunked_pass, "LEAST_SHARED", 1)
    chunked_pass._threads.cache_clear()  # threads that begin now must leave the number of this one alone
    before = torch.get_num_threads()
    inputs = random_inputs(rows=rows, missing_rows=True, missing_negatives=True)
    try:
        torch.set_num_threads(threads)
        assert_equal(inputs, chunk_rows)
        first, again = (gradients_of(inputs, chunk_rows) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "not to be repeated"
        assert torch.get_num_threads() == threads
        with torch.no_grad():
            assert torch.equal(chunked(inputs, chunk_rows).total, chunked(inputs, chunk_rows).total)
    finally:
        torch.set_num_threads(before)


def gradients_of(inputs: Inputs, chunk_rows: int) -> tuple[Tensor, ...]:
    return torch.autograd.grad(chunked(inputs, chunk_rows).total, inputs.leaves())


def test_without_gradients_only_values() -> None:
    inputs = random_inputs()
    with torch.no_grad():
        loss = chunked(inputs)
    assert not loss.total.requires_grad
    torch.testing.assert_close(loss.total, chunked(inputs).total.detach())


def test_parts_are_detached() -> None:
    loss = chunked(random_inputs())
    assert loss.total.requires_grad
    assert not loss.engagement.requires_grad
    assert not loss.relevance.requires_grad


def test_teacher_is_not_used_when_no_head_distils() -> None:
    inputs = random_inputs(heads=(Head("engagement"),))
    assert inputs.teacher is not None
    poisoned = replace(inputs.teacher, negative=torch.full_like(inputs.teacher.negative, math.nan))
    torch.testing.assert_close(chunked(replace(inputs, teacher=poisoned)).total, chunked(inputs).total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embeddings_under_autocast(dtype: torch.dtype) -> None:
    """Arithmetic is in float32 whatever comes in; gradients come back in the dtype of the embeddings."""
    inputs = random_inputs().to(dtype)
    rounded = inputs.to(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked(inputs)
    expected = naive(rounded)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total.double(), expected.total, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(loss.total, inputs.leaves())
    for gradient, reference in zip(gradients, torch.autograd.grad(expected.total, rounded.leaves()), strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), reference, rtol=2e-2, atol=2e-2)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_logits_are_never_held() -> None:
    inputs = random_inputs(rows=128, negatives=512, hits=False, missing_rows=True, missing_negatives=True)
    with LargestTensor() as chunked_pass:
        chunked(inputs, chunk_rows=16).total.backward()
    assert chunked_pass.elements <= 16 * 520
    with LargestTensor() as naive_pass:
        naive(inputs)
    assert naive_pass.elements >= 128 * 513  # the mode does see what it should


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature > 0"),
        ({"temperature": math.nan}, "temperature > 0"),
        ({"teacher": None}, "needs a teacher"),
        ({"row_weight": torch.ones(12)}, r"row_weight: expected shape \[13\]"),
        ({"log_weight_negative": torch.ones(13)}, r"log_weight_negative: expected shape \[29\]"),
        ({"hits": (torch.tensor([13]), torch.tensor([0]))}, "out of range"),
        ({"hits": (torch.tensor([0]), torch.tensor([29]))}, "out of range"),
        ({"hits": (torch.tensor([0]), torch.tensor([-1]))}, "out of range"),
        ({"hits": (torch.tensor([0, 1]), torch.tensor([0]))}, "of one length"),
        ({"similar": Similar(torch.ones(13, 5), torch.ones(28, 5), 0.5)}, r"similar: expected \[13, Dc\]"),
        ({"heads": ()}, "a head"),
        ({"heads": (Head("engagement"),)}, "1 heads"),
        ({"negative": [torch.ones(29, 6), torch.ones(29, 5)]}, "'relevance'"),
        ({"positive": [torch.ones(12, 6), torch.ones(13, 6)]}, "'engagement'"),
        (
            {"teacher": TeacherEmbeddings(torch.ones(13, 5), torch.ones(13, 5), torch.ones(28, 5), 0.1)},
            "teacher: expected",
        ),
        (
            {"teacher": TeacherEmbeddings(torch.ones(13, 5), torch.ones(13, 5), torch.ones(29, 5), 0.0)},
            "teacher: expected",
        ),
    ],
)
def test_bad_input_says_what_was_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunked(replace(random_inputs(), **change))


class Factors(TorchDispatchMode):
    """Records row stride and first place, in values, of every matrix that is multiplied or written to by a product."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    self.places.append((max(tensor.stride()), tensor.storage_offset()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
@pytest.mark.parametrize("negatives", [28, 29, 31, 32])
def test_rows_of_all_factors_begin_at_multiples_of_eight(
    negatives: int, products: Literal["float32", "bfloat16"]
) -> None:
    inputs = random_inputs(rows=24, negatives=negatives, width=16, missing_negatives=True).to(torch.float32)
    assert inputs.teacher is not None
    wider = {
        name: functional.pad(getattr(inputs.teacher, name), (0, 3)) for name in ("trigger", "positive", "negative")
    }
    inputs = replace(inputs, teacher=replace(inputs.teacher, **wider))
    inputs = replace(inputs, similar=Similar(wider["trigger"], wider["negative"], threshold=0.8))
    with Factors() as factors:
        chunked(inputs, chunk_rows=8, products=products).total.backward()
    assert len(factors.places) >= 3 * 3 * (1 + 1 + 2 * 3)
    assert all(place % 8 == 0 for both in factors.places for place in both), factors.places


def test_bf16_products_are_summed_in_float32() -> None:
    """With factors that bf16 holds, losses are those of float32, and of gradients only the last rounding is seen."""
    inputs = random_inputs(rows=64, negatives=5000, width=32, temperature=0.25, missing_negatives=True)
    assert inputs.teacher is not None
    inputs = replace(inputs, teacher=replace(inputs.teacher, temperature=0.25)).to(torch.bfloat16).to(torch.float32)
    exact, found = chunked(inputs), chunked(inputs, products="bfloat16")
    for part, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss.total, inputs.leaves()) for loss in (exact, found)]
    differences = [(b - a).norm() / a.norm() for a, b in zip(*gradients, strict=True)]
    assert max(differences) < 2**-8
    assert max(differences) > 1e-5, "nothing was rounded"


def test_bf16_products_change_losses_and_gradients_little() -> None:
    inputs = random_inputs(rows=64, negatives=500, width=32, missing_rows=True, temperature=0.07).to(torch.float32)
    exact, found = chunked(inputs), chunked(inputs, products="bfloat16")
    torch.testing.assert_close(found.total, exact.total, rtol=1e-3, atol=0.0)
    for a, b in zip(*(torch.autograd.grad(loss.total, inputs.leaves()) for loss in (exact, found)), strict=True):
        assert functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.9998
