"""InfoNCE and KL distillation of all heads in one chunked pass that never holds the ``M x L`` logits.

For row ``i`` (a trigger with its positive) and head ``h``, with embeddings ``E`` of that head::

    s_+ = <E_i, E_i+> / temperature                         the positive is always in the set: never corrected
    s_k = <E_i, E_k-> / temperature + log(weight_k)         k = 1..L; masked pairs are left out
    P   = softmax([s_+, s_1, ..., s_L])
    L_e = -log P_+                                          (MTMH paper, equation 1)
    Q   = the same from the teacher's embeddings, with its own temperature
    L_r = KL(Q || P)                                        (equation 2)
    loss = sum_i w_i * (engagement_weight * L_e + relevance_weight * L_r)      (equation 3)

The importance correction. With ``weight_k`` one over the number of times that item ``k`` is expected among the draws,
``sum_k exp(s_k)`` over the draws is an unbiased estimate of the sum over the whole catalogue, and ``P`` estimates the
softmax over the catalogue, whatever the sampling. ``Q`` is corrected in the same way: it too stands for a softmax over
the catalogue, and a KL between a corrected and an uncorrected softmax would teach the head the sampling distribution.
Without ``log_weight_negative`` both are the plain sampled softmax of the paper.

Missing content is a zero row of the teacher. A row whose trigger or positive has none has no relevance loss. A
negative that has none is left out of both ``Q`` and ``P`` in ``L_r`` (and only there): the teacher says nothing about
it, so neither pushing it away nor pulling it in would be right.

``chunked.py`` computes them on any device, ``triton.py`` on GPUs; ``problem.py`` is what both are given.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtmh.specs import Head

from .chunked import one_pass, rows_at_a_time
from .problem import Hits, Problem, Similar, TeacherEmbeddings, prepare_similar, prepare_teacher

Kernel = Literal["auto", "torch", "triton"]
Products = Literal["float32", "bfloat16"]


class LossOutput(NamedTuple):
    """Row-weighted sums, not means: divide by the weight of the global batch.

    Attributes:
        total: scalar, what to differentiate: the heads' losses added up.
        engagement: ``[num_heads]``, ``sum_i w_i L_e`` of each head, detached and not scaled by the head's weights.
        relevance: ``[num_heads]``, ``sum_i w_i L_r`` of each head, likewise; 0 for a head that does not distil.
    """

    total: Tensor
    engagement: Tensor
    relevance: Tensor


def contrastive_losses(
    trigger: Sequence[Tensor],
    positive: Sequence[Tensor],
    negative: Sequence[Tensor],
    heads: Sequence[Head],
    *,
    temperature: float,
    row_weight: Tensor | None = None,
    log_weight_negative: Tensor | None = None,
    teacher: TeacherEmbeddings | None = None,
    hits: tuple[Tensor, Tensor] | Hits | None = None,
    similar: Similar | None = None,
    chunk_rows: int = 256,
    kernel: Kernel = "torch",
    products: Products = "float32",
) -> LossOutput:
    """Computes the losses of all heads; formulas in the module's docstring.

    Arithmetic is in float32 (float64 for float64 embeddings), under autocast too; products on GPUs in TF32 where
    ``torch.set_float32_matmul_precision`` allows it.

    Args:
        trigger: for each head ``[M, D]``, embeddings of the rows' triggers.
        positive: for each head ``[M, D]``, those of the rows' positives.
        negative: for each head ``[L, D]``, those of the negatives, shared by all rows.
        heads: the heads' loss weights, in the same order.
        temperature: divides the similarities.
        row_weight: ``[M]``, weight of each row; 1 if not given. No gradient.
        log_weight_negative: ``[L]``, added to the negatives' logits, the teacher's too: minus the log of how often the
            item is expected among the draws, plus the log of how often it was drawn if one column stands for all its
            draws. ``None``: 0. No gradient.
        teacher: content embeddings; needed if a head has a relevance weight, unused otherwise.
        hits: rows and columns ``[K]`` int64 of the pairs to leave out, as from ``accidental_hits``, in any order; or
            sorted before (`Hits.sort`, on the CPU), so that the host need not wait for a GPU here.
        similar: further pairs to leave out, by their content rather than by a list. No gradient.
        chunk_rows: rows whose logits are held at a time, at most; on CPU fewer if there are many negatives.
        kernel: ``torch``: the pass in chunks, on any device; ``triton``: tiles in registers, see ``triton.py``, on
            GPUs; ``auto``: Triton where it can be had.
        products: ``bfloat16`` rounds the factors of matrix products and still sums in float32: twice the speed of TF32
            on GPUs; on the CPU the same numbers without the speed. Softmax, losses and similarities to the positives
            stay in float32.

    Returns:
        The sums over rows. A row whose negatives are all left out has loss 0 and no gradient.

    Raises:
        ValueError: shapes do not fit each other, a teacher is needed and missing, a temperature is not positive, a
            hit points outside ``M x L``, or Triton is asked for and cannot be had.

    Example::

        >>> generator = torch.Generator().manual_seed(0)
        >>> embeddings = [torch.randn(rows, 4, generator=generator, requires_grad=True) for rows in (3, 3, 5)]
        >>> loss = contrastive_losses(*([tensor] for tensor in embeddings), heads=[Head("engagement")], temperature=0.5)
        >>> loss.total.backward()
        >>> [tuple(tensor.grad.shape) for tensor in embeddings]
        [(3, 4), (3, 4), (5, 4)]
    """
    _check_shapes(trigger, positive, negative, heads, row_weight, log_weight_negative)
    if not temperature > 0.0 or chunk_rows < 1:
        raise ValueError(f"expected temperature > 0 and chunk_rows >= 1, got {temperature} and {chunk_rows}")
    dtype = torch.promote_types(trigger[0].dtype, torch.float32)
    num_rows, num_negatives = trigger[0].shape[0], negative[0].shape[0]
    relevance = any(head.relevance_weight > 0.0 for head in heads)
    if relevance and teacher is None:
        raise ValueError("a head with a relevance_weight needs a teacher")
    if row_weight is None:
        row_weight = trigger[0].new_ones(num_rows)
    if hits is not None and not isinstance(hits, Hits):
        hits = Hits.sort(hits, num_rows, num_negatives)
    assert hits is None or len(hits.offsets) == num_rows + 1
    problem = Problem(
        heads=tuple(heads),
        temperature=temperature,
        row_weight=row_weight.detach().to(dtype),
        log_weight=None if log_weight_negative is None else log_weight_negative.detach().to(dtype),
        distillation=prepare_teacher(teacher, dtype, num_rows, num_negatives) if teacher and relevance else None,
        hits=hits,
        similar=prepare_similar(similar, dtype, num_rows, num_negatives) if similar is not None else None,
        chunk_rows=rows_at_a_time(chunk_rows, num_negatives, trigger[0].device),
        with_gradients=torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in (*trigger, *positive, *negative)),
        bf16=products == "bfloat16",
    )
    embeddings = [tensor.to(dtype) for tensor in (*trigger, *positive, *negative)]
    uses_triton = _uses_triton(kernel, embeddings[0])  # said before the pass, which may have nothing to do
    problem = replace(problem, uses_triton=uses_triton and num_rows > 0 and num_negatives > 0)
    return LossOutput(*_ContrastiveLosses.apply(problem, *embeddings))  # type: ignore[no-untyped-call]


class _ContrastiveLosses(torch.autograd.Function):
    """The pass as an autograd function: gradients are formed in the forward and scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, *embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(device_type=embeddings[0].device.type, enabled=False):
            engagement, relevance, gradients = _path(problem)(problem, embeddings)
        ctx.save_for_backward(*gradients)
        weights = [(head.engagement_weight, head.relevance_weight) for head in problem.heads]
        by_head = torch.tensor(weights, dtype=engagement.dtype).to(engagement.device, non_blocking=True)
        total = (torch.stack([engagement, relevance], dim=1) * by_head).sum()
        ctx.mark_non_differentiable(engagement, relevance)
        return total, engagement, relevance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient * grad_total for gradient in ctx.saved_tensors)


def _uses_triton(kernel: Kernel, embedding: Tensor) -> bool:
    """True if Triton is to be taken; its interpreter, for tests, runs on the CPU."""
    if kernel == "torch":
        return False
    installed = importlib.util.find_spec("triton") is not None
    reachable = embedding.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    if kernel == "auto":
        return installed and embedding.device.type == "cuda" and embedding.dtype == torch.float32
    if not (installed and reachable and embedding.dtype == torch.float32):
        raise ValueError(
            f"kernel triton: needs the package triton ({'there' if installed else 'missing'}), a GPU (the embeddings "
            f"are on {embedding.device.type}) and float32 or less (they are {embedding.dtype}); take auto or torch"
        )
    return True


def _path(problem: Problem) -> Callable[[Problem, Sequence[Tensor]], tuple[Tensor, Tensor, list[Tensor]]]:
    if problem.uses_triton:
        from . import triton  # imports Triton, which only GPUs need

        return triton.one_pass
    return one_pass


def _check_shapes(
    trigger: Sequence[Tensor],
    positive: Sequence[Tensor],
    negative: Sequence[Tensor],
    heads: Sequence[Head],
    row_weight: Tensor | None,
    log_weight_negative: Tensor | None,
) -> None:
    if not heads or not len(heads) == len(trigger) == len(positive) == len(negative):
        raise ValueError(
            f"expected one trigger, positive and negative tensor a head, got {len(heads)} heads and "
            f"{len(trigger)}, {len(positive)}, {len(negative)} tensors"
        )
    num_rows, num_negatives = trigger[0].shape[0], negative[0].shape[0]
    for head, *tensors in zip(heads, trigger, positive, negative, strict=True):
        shapes = [tuple(tensor.shape) for tensor in tensors]
        width = shapes[0][-1]
        if shapes != [(num_rows, width), (num_rows, width), (num_negatives, width)]:
            raise ValueError(
                f"head {head.name!r}: expected trigger and positive [{num_rows}, D] and negative [{num_negatives}, D], "
                f"got {shapes}"
            )
    for name, tensor, size in (
        ("row_weight", row_weight, num_rows),
        ("log_weight_negative", log_weight_negative, num_negatives),
    ):
        if tensor is not None and tensor.shape != (size,):
            raise ValueError(f"{name}: expected shape [{size}], got {list(tensor.shape)}")
