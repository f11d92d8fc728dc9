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

How it works on any device (``losses_triton.py`` is the way on GPUs). Logits of a few rows at a time are turned into
probabilities, those into the gradient of the logits, ``(a + b) P - a onehot_+ - b Q``, and that into the gradients of
the embeddings, in reused buffers. The backward only scales what the forward has formed: ``M x D``, ``M x D`` and ``L x
D`` a head.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .heads import Head

Kernel = Literal["auto", "torch", "triton"]

# Stands for minus infinity in logits: exp gives exactly 0, and 0 times it is 0 where infinity would give nan.
EXCLUDED = -1e30
# On CPU a chunk's logits should stay near the last-level cache; beyond that, more rows do not make its products faster.
CPU_CHUNK_ELEMENTS = 1 << 23
# MKL is up to a third slower when it multiplies with all negatives at once than with some thousands of them at a time.
CPU_TILE_NEGATIVES = 4096


@dataclass(frozen=True)
class Teacher:
    """Content embeddings of the frozen teacher; no gradient flows into them.

    Attributes:
        trigger: ``[M, Dc]`` content embeddings of the rows' triggers; a zero row has no content.
        positive: ``[M, Dc]`` those of the positives.
        negative: ``[L, Dc]`` those of the negatives.
        temperature: divides the teacher's similarities.
    """

    trigger: Tensor
    positive: Tensor
    negative: Tensor
    temperature: float


@dataclass(frozen=True)
class Similar:
    """Negatives that are left out because their content is too close to the row's trigger.

    Attributes:
        trigger: ``[M, Dc]`` content embeddings of the rows' triggers.
        negative: ``[L, Dc]`` those of the negatives.
        threshold: negatives whose dot product with the trigger is at least this are left out.
    """

    trigger: Tensor
    negative: Tensor
    threshold: float


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
    teacher: Teacher | None = None,
    hits: tuple[Tensor, Tensor] | None = None,
    similar: Similar | None = None,
    chunk_rows: int = 256,
    kernel: Kernel = "torch",
) -> LossOutput:
    """Computes the losses of all heads; formulas in the module's docstring.

    Arithmetic is in float32 (float64 for float64 embeddings), under autocast too.

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
        hits: rows and columns ``[K]`` int64 of the pairs to leave out, as from ``accidental_hits``; any order.
        similar: further pairs to leave out, by their content rather than by a list. No gradient.
        chunk_rows: rows whose logits are held at a time, at most; on CPU fewer if there are many negatives.
        kernel: ``torch``: the pass in chunks, on any device; ``triton``: tiles in registers, see ``losses_triton.py``,
            float32 on GPUs; ``auto``: Triton where it can be had.

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
    problem = Problem(
        heads=tuple(heads),
        temperature=temperature,
        row_weight=row_weight.detach().to(dtype),
        log_weight=None if log_weight_negative is None else log_weight_negative.detach().to(dtype),
        distillation=_prepare_teacher(teacher, dtype, num_rows, num_negatives) if teacher and relevance else None,
        hits=Hits.sort(hits, num_rows, num_negatives) if hits is not None else None,
        similar=_prepare_similar(similar, dtype, num_rows, num_negatives) if similar is not None else None,
        chunk_rows=_rows_at_a_time(chunk_rows, num_negatives, trigger[0].device),
        with_gradients=torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in (*trigger, *positive, *negative)),
    )
    embeddings = [tensor.to(dtype) for tensor in (*trigger, *positive, *negative)]
    uses_triton = _uses_triton(kernel, embeddings[0])  # said before the pass, which may have nothing to do
    problem = replace(problem, uses_triton=uses_triton and num_rows > 0 and num_negatives > 0)
    return LossOutput(*_ContrastiveLosses.apply(problem, *embeddings))  # type: ignore[no-untyped-call]


class Hits(NamedTuple):
    """Pairs to leave out, sorted by row."""

    rows: Tensor
    columns: Tensor

    @staticmethod
    def sort(hits: tuple[Tensor, Tensor], num_rows: int, num_negatives: int) -> Hits:
        """Checks and sorts the pairs as they are given."""
        rows, columns = hits
        if rows.shape != columns.shape or rows.dim() != 1:
            raise ValueError(f"hits: expected rows and columns of one length, got {rows.shape} and {columns.shape}")
        if rows.numel():
            low, high = torch.stack([torch.stack(torch.aminmax(x)) for x in (rows, columns)], dim=1).tolist()
            if min(low) < 0 or high[0] >= num_rows or high[1] >= num_negatives:
                raise ValueError(f"hits: row or column out of range for {num_rows} rows and {num_negatives} negatives")
        rows, order = torch.sort(rows, stable=True)
        return Hits(rows, columns[order])


class _Distillation(NamedTuple):
    """The teacher, ready for use."""

    trigger: Tensor  # [M, Dc], divided by the temperature
    positive: Tensor
    negative: Tensor
    row_has_content: Tensor  # [M] bool
    all_rows_have_content: bool
    no_content: Tensor | None  # [L + 1] bool: columns that the teacher cannot judge; None: there are none


@dataclass(frozen=True)
class Problem:
    """All that the pass needs beside the embeddings."""

    heads: tuple[Head, ...]
    temperature: float
    row_weight: Tensor
    log_weight: Tensor | None  # [L], of the negatives
    distillation: _Distillation | None
    hits: Hits | None
    similar: Similar | None
    chunk_rows: int
    with_gradients: bool
    uses_triton: bool = False


class _ContrastiveLosses(torch.autograd.Function):
    """The pass as an autograd function: gradients are formed in the forward and scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, *embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(device_type=embeddings[0].device.type, enabled=False):
            engagement, relevance, gradients = _path(problem)(problem, embeddings)
        ctx.save_for_backward(*gradients)
        weights = engagement.new_tensor([(head.engagement_weight, head.relevance_weight) for head in problem.heads])
        total = (torch.stack([engagement, relevance], dim=1) * weights).sum()
        ctx.mark_non_differentiable(engagement, relevance)
        return total, engagement, relevance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient * grad_total for gradient in ctx.saved_tensors)


def _uses_triton(kernel: Kernel, embedding: Tensor) -> bool:
    """Whether to take Triton; its interpreter, for tests, runs on the CPU."""
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
        from .losses_triton import one_pass  # imports triton, which only GPUs need

        return one_pass
    return _one_pass


def _one_pass(problem: Problem, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses ``[num_heads]`` and gradients of the embeddings, in their order (none if not asked for)."""
    num_heads = len(problem.heads)
    triggers, positives, negatives = (embeddings[i * num_heads : (i + 1) * num_heads] for i in range(3))
    num_rows, width = triggers[0].shape[0], negatives[0].shape[0] + 1
    gradients = [torch.zeros_like(tensor) for tensor in embeddings] if problem.with_gradients else []
    row_losses = triggers[0].new_zeros(2, num_heads, num_rows)

    starts = range(0, num_rows, problem.chunk_rows)
    hit_bounds = _hit_bounds(problem.hits, starts)
    shape = (min(problem.chunk_rows, num_rows), width)
    logits_buffer, probability_buffer = triggers[0].new_empty(shape), triggers[0].new_empty(shape)
    target_buffer = triggers[0].new_empty(shape) if problem.distillation else None

    for chunk, start in enumerate(starts):
        rows = slice(start, min(start + problem.chunk_rows, num_rows))
        logits, probability = (x[: rows.stop - start] for x in (logits_buffer, probability_buffer))
        excluded = None
        if problem.hits is not None:
            found = slice(hit_bounds[chunk], hit_bounds[chunk + 1])
            excluded = (problem.hits.rows[found] - start) * width + problem.hits.columns[found]
        similar = None
        if problem.similar is not None:
            _multiply(problem.similar.trigger[rows], problem.similar.negative, out=logits[:, :-1])
            similar = logits[:, :-1] >= problem.similar.threshold
        left_out = (excluded, similar)
        target = None
        if problem.distillation is not None and target_buffer is not None:
            teacher = problem.distillation
            _fill_logits(logits, teacher.trigger[rows], teacher.positive[rows], teacher.negative, problem, left_out)
            target = _soft_labels(logits, target_buffer[: rows.stop - start], probability, teacher, rows)
        for index, head in enumerate(problem.heads):
            scaled_trigger = triggers[index][rows] / problem.temperature
            _fill_logits(logits, scaled_trigger, positives[index][rows], negatives[index], problem, left_out)
            engagement, relevance, row_factor = _logit_gradient(head, logits, probability, target)
            row_losses[0, index, rows], row_losses[1, index, rows] = engagement, relevance
            if not gradients:
                continue
            row_factor *= problem.row_weight[rows]
            # P, Q and the one-hot all sum to 1, so a row's gradient sums to 0: no cancellation where P_+ is near 1.
            of_positive = -row_factor * probability[:, :-1].sum(dim=1)
            of_trigger, of_positives, of_negatives = gradients[index::num_heads]
            torch.mm(probability[:, :-1], negatives[index], out=of_trigger[rows])
            of_trigger[rows] *= row_factor[:, None]
            of_trigger[rows].addcmul_(positives[index][rows], of_positive[:, None]).div_(problem.temperature)
            torch.mul(scaled_trigger, of_positive[:, None], out=of_positives[rows])
            of_negatives.addmm_(probability[:, :-1].t(), scaled_trigger * row_factor[:, None])
    engagement, relevance = (row_losses * problem.row_weight).sum(dim=-1)
    return engagement, relevance, gradients


def _fill_logits(
    logits: Tensor,
    scaled_trigger: Tensor,
    positive: Tensor,
    negative: Tensor,
    problem: Problem,
    left_out: tuple[Tensor | None, Tensor | None],
) -> None:
    """Writes ``[s_1, ..., s_L, s_+]`` of a chunk's rows.

    What is left out is given as places in the flattened chunk and as a mask ``[rows, L]``.
    """
    _multiply(scaled_trigger, negative, out=logits[:, :-1])
    if problem.log_weight is not None:
        logits[:, :-1] += problem.log_weight
    logits[:, -1] = (scaled_trigger * positive).sum(dim=1)
    excluded, similar = left_out
    if excluded is not None:
        logits.view(-1).index_fill_(0, excluded, EXCLUDED)
    if similar is not None:
        logits[:, :-1].masked_fill_(similar, EXCLUDED)


def _multiply(rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """Writes ``rows @ columns.T``."""
    tile = CPU_TILE_NEGATIVES if out.device.type == "cpu" else max(len(columns), 1)
    for tile_columns, tile_out in zip(torch.split(columns, tile), torch.split(out, tile, dim=1), strict=True):
        torch.mm(rows, tile_columns.t(), out=tile_out)


def _softmax(logits: Tensor, out: Tensor) -> Tensor:
    """Writes the row-wise softmax to ``out`` and returns the log of the normaliser, ``[rows]``."""
    largest = logits.amax(dim=1)
    torch.softmax(logits, dim=1, out=out)
    # The largest probability is exp(0) / normaliser, so this holds however far the logits are apart.
    return largest - out.amax(dim=1).log()


class _SoftLabels(NamedTuple):
    """The teacher's side of a chunk."""

    probability: Tensor  # [rows, L + 1]; zero in rows without content
    negative_entropy: Tensor  # [rows], sum of Q log Q
    has_content: Tensor  # [rows] bool
    no_content: Tensor | None  # [L + 1] bool


def _soft_labels(logits: Tensor, out: Tensor, scratch: Tensor, teacher: _Distillation, rows: slice) -> _SoftLabels:
    """Turns the teacher's logits into ``Q``."""
    if teacher.no_content is not None:
        logits.masked_fill_(teacher.no_content, EXCLUDED)
    normaliser = _softmax(logits, out)
    negative_entropy = torch.mul(out, logits, out=scratch).sum(dim=1) - normaliser
    has_content = teacher.row_has_content[rows]
    if not teacher.all_rows_have_content:
        out.masked_fill_(~has_content[:, None], 0.0)
    return _SoftLabels(out, negative_entropy, has_content, teacher.no_content)


def _logit_gradient(
    head: Head, logits: Tensor, out: Tensor, target: _SoftLabels | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of one head and chunk, and the gradient of its logits.

    ``row_factor[:, None] * out`` is ``a P + b (P - Q)``: for the negatives the gradient of a row of weight 1.

    Returns:
        ``L_e``, ``L_r`` and the row factor, ``[rows]`` each.
    """
    a, b = head.engagement_weight, head.relevance_weight
    similarity_to_positive = logits[:, -1].clone()
    if target is None or b == 0.0:
        normaliser = _softmax(logits, out)
        engagement = normaliser - similarity_to_positive
        return engagement, torch.zeros_like(engagement), torch.full_like(engagement, a)

    cross = torch.mul(target.probability, logits, out=out).sum(dim=1)
    normaliser = _softmax(logits, out)
    engagement = normaliser - similarity_to_positive
    row_relevance = b * target.has_content.to(logits.dtype)
    if target.no_content is None:
        out.sub_(target.probability, alpha=b / (a + b))
        row_factor = a + row_relevance
    else:
        # P of the relevance loss is over other columns than P of the engagement loss.
        logits.masked_fill_(target.no_content, EXCLUDED)
        probability = torch.empty_like(out)
        normaliser = _softmax(logits, probability)
        out.mul_(a).addcmul_(probability, row_relevance[:, None]).sub_(target.probability, alpha=b)
        row_factor = torch.ones_like(engagement)
    relevance = (target.negative_entropy - cross + normaliser) * target.has_content
    return engagement, relevance, row_factor


def _prepare_teacher(teacher: Teacher, dtype: torch.dtype, num_rows: int, num_negatives: int) -> _Distillation:
    shapes = [tuple(tensor.shape) for tensor in (teacher.trigger, teacher.positive, teacher.negative)]
    width = shapes[0][-1]
    if shapes != [(num_rows, width), (num_rows, width), (num_negatives, width)] or not teacher.temperature > 0.0:
        raise ValueError(
            f"teacher: expected [{num_rows}, Dc], [{num_rows}, Dc], [{num_negatives}, Dc] and a temperature > 0, "
            f"got {shapes} and {teacher.temperature}"
        )
    trigger, positive, negative = (
        tensor.detach().to(dtype) for tensor in (teacher.trigger, teacher.positive, teacher.negative)
    )
    no_content = torch.cat([(negative == 0.0).all(dim=1), torch.zeros(1, dtype=torch.bool, device=negative.device)])
    row_has_content = (trigger != 0.0).any(dim=1) & (positive != 0.0).any(dim=1)
    return _Distillation(
        trigger=trigger / teacher.temperature,
        positive=positive,
        negative=negative,
        row_has_content=row_has_content,
        all_rows_have_content=bool(row_has_content.all()),
        no_content=no_content if bool(no_content.any()) else None,
    )


def _prepare_similar(similar: Similar, dtype: torch.dtype, num_rows: int, num_negatives: int) -> Similar:
    shapes = [tuple(tensor.shape) for tensor in (similar.trigger, similar.negative)]
    width = shapes[0][-1]
    if shapes != [(num_rows, width), (num_negatives, width)]:
        raise ValueError(f"similar: expected [{num_rows}, Dc] and [{num_negatives}, Dc], got {shapes}")
    return Similar(similar.trigger.detach().to(dtype), similar.negative.detach().to(dtype), similar.threshold)


def _rows_at_a_time(chunk_rows: int, num_negatives: int, device: torch.device) -> int:
    if device.type != "cpu":
        return chunk_rows
    return min(chunk_rows, max(32, CPU_CHUNK_ELEMENTS // (num_negatives + 1)))


def _hit_bounds(hits: Hits | None, starts: range) -> list[int]:
    """Where each chunk's hits begin, and where the last one's end."""
    if hits is None:
        return []
    bounds = torch.searchsorted(hits.rows, torch.tensor([*starts], dtype=hits.rows.dtype, device=hits.rows.device))
    return [*bounds.tolist(), hits.rows.numel()]


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
