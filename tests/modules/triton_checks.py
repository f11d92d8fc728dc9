"""The Triton path against the naive formulas in float64; run by test_losses_triton.py, in a process of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mtmh.modules import Head, LossOutput, Similar, contrastive_losses
from test_losses import MTMH_HEADS, Inputs, naive, random_inputs
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # on a CPU in Triton's interpreter


def on_device(inputs: Inputs) -> Inputs:
    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(DEVICE)

    teacher, similar = inputs.teacher, inputs.similar
    return replace(
        inputs,
        trigger=[x.detach().to(DEVICE).requires_grad_() for x in inputs.trigger],
        positive=[x.detach().to(DEVICE).requires_grad_() for x in inputs.positive],
        negative=[x.detach().to(DEVICE).requires_grad_() for x in inputs.negative],
        row_weight=moved(inputs.row_weight),
        log_weight_negative=moved(inputs.log_weight_negative),
        teacher=teacher
        and replace(
            teacher,
            trigger=teacher.trigger.to(DEVICE),
            positive=teacher.positive.to(DEVICE),
            negative=teacher.negative.to(DEVICE),
        ),
        hits=inputs.hits and (inputs.hits[0].to(DEVICE), inputs.hits[1].to(DEVICE)),
        similar=similar and replace(similar, trigger=similar.trigger.to(DEVICE), negative=similar.negative.to(DEVICE)),
    )


def in_triton(inputs: Inputs, kernel: str = "triton", products: str = "float32") -> LossOutput:
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
        kernel=kernel,
        products=products,
    )


def assert_equal(inputs: Inputs, tolerance: float = 3e-5) -> None:
    exact = inputs.to(torch.float64)
    expected = naive(exact)
    expected_gradients = torch.autograd.grad(expected.total, exact.leaves())
    single = on_device(inputs.to(torch.float32))
    found = in_triton(single)
    gradients = torch.autograd.grad(found.total, single.leaves())
    for part, reference in zip((*found, *gradients), (*expected, *expected_gradients), strict=True):
        assert part.dtype == torch.float32
        scale = max(1.0, float(reference.detach().norm()))
        torch.testing.assert_close(part.detach().cpu().double(), reference.detach(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("hits", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_naive_formula(hits: bool, missing: bool, weighted: bool) -> None:
    assert_equal(
        random_inputs(
            hits=hits, weighted=weighted, log_weight=weighted, missing_rows=missing, missing_negatives=missing
        )
    )


@pytest.mark.parametrize(
    ("rows", "negatives", "width"), [(1, 1, 1), (64, 128, 64), (70, 150, 130), (5, 65, 16), (130, 40, 3)]
)
def test_any_number_of_tiles(rows: int, negatives: int, width: int) -> None:
    """Tiles that are full and cut ones, several splits, embeddings wider than a block."""
    assert_equal(random_inputs(rows=rows, negatives=negatives, width=width, missing_negatives=True))


@pytest.mark.parametrize(
    "heads",
    [
        (Head("engagement"),),
        (Head("engagement"), Head("relevance", engagement_weight=0.0, relevance_weight=1.0)),
        (Head("a", 0.3, 2.0), Head("b", 1.5, 0.0), Head("c", 0.0, 0.7)),
    ],
    ids=["single-task", "STMH", "three"],
)
def test_every_setting_of_heads(heads: tuple[Head, ...]) -> None:
    assert_equal(random_inputs(heads=heads, missing_rows=True))


@pytest.mark.parametrize("heads", [MTMH_HEADS, (Head("engagement"),)], ids=["distils", "single-task"])
def test_negatives_with_similar_content_are_left_out(heads: tuple[Head, ...]) -> None:
    inputs = random_inputs(negatives=90, heads=heads)
    assert inputs.teacher is not None
    assert_equal(replace(inputs, similar=Similar(inputs.teacher.trigger, inputs.teacher.negative, threshold=0.3)))


def test_a_hit_that_is_named_twice() -> None:
    inputs = random_inputs(negatives=70)
    assert inputs.hits is not None
    twice = replace(inputs, hits=(inputs.hits[0].repeat(2), inputs.hits[1].repeat(2)))
    assert_equal(twice)


def test_extreme_logits_stay_exact() -> None:
    inputs = random_inputs(negatives=130, temperature=1e-3, log_weight=False)
    single = on_device(inputs.to(torch.float32))
    found, expected = in_triton(single), naive(inputs.to(torch.float64))
    for part, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(part.cpu().double(), reference, rtol=1e-4, atol=1e-4)
    for gradient in torch.autograd.grad(found.total, single.leaves()):
        assert gradient.isfinite().all()


def test_row_without_negatives_has_no_loss_and_no_gradient() -> None:
    inputs = random_inputs(rows=3, negatives=70)
    everything = torch.cartesian_prod(torch.arange(3), torch.arange(70))
    inputs = on_device(replace(inputs, hits=(everything[:, 0], everything[:, 1])).to(torch.float32))
    loss = in_triton(inputs)
    assert loss.total.abs() < 1e-6
    for gradient in torch.autograd.grad(loss.total, inputs.leaves()):
        assert not gradient.any()


def test_nothing_to_do() -> None:
    for rows, negatives in ((0, 5), (5, 0)):
        inputs = on_device(random_inputs(rows=rows, negatives=negatives, hits=False).to(torch.float32))
        torch.testing.assert_close(in_triton(inputs).total, in_triton(inputs, "torch").total)


def bf16_holds(inputs: Inputs) -> Inputs:
    """Inputs whose factors bf16 holds, temperatures included: products of them are exact in float32."""
    assert inputs.teacher is not None
    quarter = replace(inputs, temperature=0.25, teacher=replace(inputs.teacher, temperature=0.25))
    return quarter.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize(("rows", "negatives", "width"), [(130, 300, 128), (5, 65, 16), (129, 129, 3), (17, 260, 130)])
@pytest.mark.parametrize("missing", [False, True])
def test_bf16_products_equal_the_naive_formula(rows: int, negatives: int, width: int, missing: bool) -> None:
    """Of the losses of factors that bf16 holds, only the rounding of ``Q`` is seen, of gradients the last one too."""
    inputs = bf16_holds(
        random_inputs(rows=rows, negatives=negatives, width=width, missing_rows=missing, missing_negatives=missing)
    )
    exact, single = inputs.to(torch.float64), on_device(inputs)
    expected, found = naive(exact), in_triton(single, products="bfloat16")
    torch.testing.assert_close(found.engagement.cpu().double(), expected.engagement, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.relevance.cpu().double(), expected.relevance, rtol=2e-3, atol=2e-3)
    gradients = torch.autograd.grad(found.total, single.leaves())
    wanted = torch.autograd.grad(expected.total, exact.leaves())
    differences = [float((a.cpu().double() - b).norm() / b.norm()) for a, b in zip(gradients, wanted, strict=True)]
    assert max(differences) < 2**-8
    assert max(differences) > 1e-6, "nothing was rounded"


def test_bf16_products_are_those_of_the_pass_in_chunks() -> None:
    inputs = on_device(random_inputs(rows=40, negatives=200, width=32, temperature=0.07).to(torch.float32))
    losses = [in_triton(inputs, kernel, "bfloat16") for kernel in ("torch", "triton")]
    torch.testing.assert_close(losses[1].total, losses[0].total, rtol=1e-3, atol=0.0)
    for a, b in zip(*(torch.autograd.grad(loss.total, inputs.leaves()) for loss in losses), strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.9998


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_the_teacher_is_computed_once_for_all_heads(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtmh.modules.losses import triton as losses_triton

    computed: list[torch.dtype] = []
    labels = losses_triton._Labels

    def counted(teacher: object, shared: object) -> object:
        found = labels(teacher, shared)
        computed.append(found.weight.dtype)
        return found

    monkeypatch.setattr(losses_triton, "_Labels", counted)
    heads = (Head("a", 0.3, 2.0), Head("b", 0.0, 0.7))
    inputs = on_device(random_inputs(heads=heads).to(torch.float32))
    in_triton(inputs, products=products).total.backward()
    assert computed == [getattr(torch, products)]


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_the_same_bits_every_time(products: str) -> None:
    inputs = on_device(random_inputs(rows=70, negatives=90).to(torch.float32))
    runs = []
    for _ in range(2):
        loss = in_triton(inputs, products=products)
        runs.append([*loss, *torch.autograd.grad(loss.total, inputs.leaves())])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_half_precision_embeddings() -> None:
    inputs = on_device(random_inputs().to(torch.bfloat16))
    loss = in_triton(inputs)
    expected = in_triton(inputs, "torch")
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-5, atol=1e-5)
    for gradient in torch.autograd.grad(loss.total, inputs.leaves()):
        assert gradient.dtype == torch.bfloat16


def test_doubles_are_refused_and_auto_takes_them_elsewhere() -> None:
    inputs = on_device(random_inputs())
    with pytest.raises(ValueError, match=r"float32 or less \(they are torch.float64\)"):
        in_triton(inputs)
    torch.testing.assert_close(in_triton(inputs, "auto").total.cpu(), naive(random_inputs()).total)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter keeps its tiles on the host")
@pytest.mark.parametrize("distils", [False, True])
def test_logits_are_never_held(distils: bool) -> None:
    """But for the teacher's probabilities, in bf16."""
    heads = MTMH_HEADS if distils else (Head("engagement"), Head("another"))
    inputs = random_inputs(rows=2048, negatives=16_384, width=64, hits=False, heads=heads)
    inputs = on_device(inputs.to(torch.float32))
    in_triton(inputs, products="bfloat16").total.backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    in_triton(inputs, products="bfloat16").total.backward()
    assert torch.cuda.max_memory_allocated() - before < 2048 * 16_384 * (4 / 2 + 2 * distils)
