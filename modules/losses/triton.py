"""The contrastive losses on a GPU: tiles of logits that live in registers only, in Triton.

The same formulas and the same interface as the pass of ``chunked.py``, in the manner of flash attention:

1. **Statistics.** Programs go through the negatives tile by tile with an online softmax: for each row the running
   maximum and sum of ``P``, and of ``Q`` also the sums of ``Q q`` and ``Q s``, which the KL is made of.
2. **Gradients.** With the normalisers known, each tile's logits are computed again and turned into the gradient of the
   logits at once. One kernel adds up what flows to the triggers, another what flows to the negatives. Logits are
   computed three times; they are never written.

A few rows alone would leave most of a GPU idle, so a row's negatives are cut into splits, whose parts are added up
afterwards. There are no atomic additions: the same input gives the same bits on the same device. Pairs to leave out are
a bit mask of ``M x L / 8`` bytes.

Arithmetic is in float32; the products follow ``torch.get_float32_matmul_precision()``: ``highest`` takes three TF32
products for one of float32, which tensor cores still do several times faster than others do one, ``high`` and
``medium`` take TF32 as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .problem import EXCLUDED, Hits, Problem

# Compiled for sm_90 with 8 warps, tiles of this size spill next to nothing from the registers; wider ones do.
BLOCK_ROWS = 64
BLOCK_NEGATIVES = 32
BLOCK_WIDTH = 32  # of embeddings, multiplied at a time
BLOCK_OUT = 128  # of a gradient, at most
LAUNCH = {"num_warps": 8, "num_stages": 2}
NUM_STATISTICS = 8
FEWEST = tl.constexpr(EXCLUDED)


def one_pass(problem: Problem, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses ``[num_heads]`` and gradients of the embeddings, in their order (none if not asked for).

    Args:
        problem: float32, at least one row and one negative.
        embeddings: triggers, positives and negatives of all heads, ``[M, D]``, ``[M, D]`` and ``[L, D]``.
    """
    num_heads = len(problem.heads)
    losses, gradients = [], [torch.empty_like(tensor) for tensor in embeddings] if problem.with_gradients else []
    bits = _bit_mask(problem.hits, len(embeddings[0]), len(embeddings[-1])) if problem.hits is not None else None
    for index in range(num_heads):
        head = _HeadPass(problem, index, [tensor.contiguous() for tensor in embeddings[index::num_heads]], bits)
        losses.append(head.losses())
        if gradients:
            for out, gradient in zip(gradients[index::num_heads], head.gradients(), strict=True):
                out.copy_(gradient)
    engagement, relevance = (torch.stack(losses, dim=1) * problem.row_weight).sum(dim=-1)
    return engagement, relevance, gradients


class _HeadPass:
    """One head: statistics first, gradients from them."""

    def __init__(self, problem: Problem, index: int, embeddings: list[Tensor], bits: Tensor | None) -> None:
        trigger, self._positive, negative = embeddings
        self._problem = problem
        self._head = problem.heads[index]
        self._trigger = trigger / problem.temperature
        self._num_rows, self._num_negatives = len(trigger), len(negative)
        teacher = problem.distillation if self._head.relevance_weight > 0.0 else None
        self._teacher = teacher
        none = trigger.new_empty(1)
        num_tiles = triton.cdiv(self._num_negatives, BLOCK_NEGATIVES)
        self._num_splits = _num_splits(triton.cdiv(self._num_rows, BLOCK_ROWS), num_tiles, trigger.device)
        log_weight, similar = problem.log_weight, problem.similar
        unjudged = None if teacher is None else teacher.no_content
        self._tile: dict[str, Any] = {
            "trigger": self._trigger,
            "negative": negative,
            "log_weight": negative.new_zeros(self._num_negatives) if log_weight is None else log_weight.contiguous(),
            "bits": none if bits is None else bits,
            "teacher_trigger": none if teacher is None else teacher.trigger.contiguous(),
            "teacher_negative": none if teacher is None else teacher.negative.contiguous(),
            "no_content": none if unjudged is None else _flags(unjudged, negative),
            "similar_trigger": none if similar is None else similar.trigger.contiguous(),
            "similar_negative": none if similar is None else similar.negative.contiguous(),
            "threshold": 0.0 if similar is None else similar.threshold,
            "num_rows": self._num_rows,
            "num_negatives": self._num_negatives,
            "WIDTH": trigger.shape[1],
            "TEACHER_WIDTH": 0 if teacher is None else teacher.negative.shape[1],
            "SIMILAR_WIDTH": 0 if similar is None else similar.negative.shape[1],
            "HITS": bits is not None,
            "ALL_JUDGED": unjudged is None,
            "BLOCK_M": BLOCK_ROWS,
            "BLOCK_L": BLOCK_NEGATIVES,
            "BLOCK_K": BLOCK_WIDTH,
            "PRECISION": "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        }
        self._split = {"tiles_of_split": triton.cdiv(num_tiles, self._num_splits)}

    def losses(self) -> Tensor:
        """``L_e`` and ``L_r``, ``[2, M]``."""
        statistics = self._trigger.new_empty(NUM_STATISTICS, self._num_splits, self._num_rows)
        grid = (triton.cdiv(self._num_rows, BLOCK_ROWS), self._num_splits)
        _statistics_kernel[grid](statistics, num_splits=self._num_splits, **self._split, **self._tile, **LAUNCH)
        most, total, teacher_most, teacher_total, sum_qq, sum_qs, judged_most, judged_total = statistics
        positive = (self._trigger * self._positive).sum(dim=1)
        self._normaliser = _log_sum(most, total, positive)
        engagement = self._normaliser - positive
        if self._teacher is None:
            self._teacher_normaliser = self._judged_normaliser = self._normaliser
            return torch.stack([engagement, torch.zeros_like(engagement)])
        teacher_positive = (self._teacher.trigger * self._teacher.positive).sum(dim=1)
        self._teacher_normaliser = _log_sum(teacher_most, teacher_total, teacher_positive)
        self._judged_normaliser = self._normaliser
        if not self._tile["ALL_JUDGED"]:
            self._judged_normaliser = _log_sum(judged_most, judged_total, positive)
        of_split = (teacher_most - self._teacher_normaliser).exp()
        of_positive = (teacher_positive - self._teacher_normaliser).exp()
        negative_entropy = (of_split * sum_qq).sum(0) + of_positive * teacher_positive - self._teacher_normaliser
        cross = (of_split * sum_qs).sum(0) + of_positive * positive
        relevance = (negative_entropy - cross + self._judged_normaliser) * self._teacher.row_has_content
        return torch.stack([engagement, relevance])

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of trigger, positive and negative; `losses` first."""
        weight, width = self._problem.row_weight, self._trigger.shape[1]
        relevance_weight = weight * self._head.relevance_weight
        if self._teacher is not None:
            relevance_weight = relevance_weight * self._teacher.row_has_content
        rows = {
            "normaliser": self._normaliser,
            "judged_normaliser": self._judged_normaliser,
            "teacher_normaliser": self._teacher_normaliser,
            "engagement_weight": weight * self._head.engagement_weight,
            "relevance_weight": relevance_weight,
            "BLOCK_OUT": min(BLOCK_OUT, max(16, triton.next_power_of_2(width))),
        }
        out_blocks = triton.cdiv(width, rows["BLOCK_OUT"])
        of_trigger = self._trigger.new_empty(self._num_splits, self._num_rows, width)
        row_sums = self._trigger.new_empty(self._num_splits, self._num_rows)
        grid = (triton.cdiv(self._num_rows, BLOCK_ROWS), self._num_splits, out_blocks)
        _trigger_gradient_kernel[grid](of_trigger, row_sums, **self._split, **rows, **self._tile, **LAUNCH)
        of_negative = self._trigger.new_empty(self._num_negatives, width)
        _negative_gradient_kernel[(triton.cdiv(self._num_negatives, BLOCK_NEGATIVES), out_blocks)](
            of_negative, **rows, **self._tile, **LAUNCH
        )
        # P, Q and the one-hot all sum to 1, so a row's gradient sums to 0: no cancellation where P_+ is near 1.
        of_positive = -row_sums.sum(0)[:, None]
        of_trigger = (of_trigger.sum(0) + of_positive * self._positive) / self._problem.temperature
        return of_trigger, of_positive * self._trigger, of_negative


def _log_sum(most: Tensor, total: Tensor, positive: Tensor) -> Tensor:
    """Log of the sum of exponentials of all splits ``[S, M]`` and the positive ``[M]``."""
    return torch.cat([most + total.log(), positive[None]]).logsumexp(0)


def _num_splits(row_blocks: int, num_tiles: int, device: torch.device) -> int:
    """Enough programs for every multiprocessor to have a few."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(-(-4 * processors // row_blocks), num_tiles))


def _flags(columns: Tensor, negative: Tensor) -> Tensor:
    """1 for each of some columns, ``[L]`` int8."""
    return torch.zeros(len(negative), dtype=torch.int8, device=negative.device).index_fill_(0, columns, 1)


def _bit_mask(hits: Hits, num_rows: int, num_negatives: int) -> Tensor:
    """``[M, ceil(L / 32)]`` int32, bit ``l % 32`` of word ``l // 32`` set where the pair is left out."""
    words = triton.cdiv(num_negatives, 32)
    place = hits.rows * (32 * words) + hits.columns  # each once: bits are added below
    bit = torch.ones_like(place) << (place % 32)
    mask = torch.zeros(num_rows * words, dtype=torch.int64, device=place.device)
    mask.index_add_(0, place // 32, bit)
    return torch.where(mask >= 2**31, mask - 2**32, mask).int().view(num_rows, words)


@triton.jit
def _products(
    rows, columns, row, column, num_rows, num_columns,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``[BLOCK_M, BLOCK_L]`` dot products; 0 outside."""
    place = tl.arange(0, BLOCK_K)
    products = tl.zeros([BLOCK_M, BLOCK_L], tl.float32)
    row_start = row.to(tl.int64)[:, None] * WIDTH
    column_start = column.to(tl.int64)[:, None] * WIDTH
    for start in range(0, WIDTH, BLOCK_K):
        inside = (start + place < WIDTH)[None, :]
        a = tl.load(rows + row_start + start + place[None, :], mask=(row < num_rows)[:, None] & inside, other=0.0)
        b = tl.load(
            columns + column_start + start + place[None, :], mask=(column < num_columns)[:, None] & inside, other=0.0
        )
        products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION)
    return products


@triton.jit
def _kept(
    row, column, bits, similar_trigger, similar_negative, threshold, num_rows, num_negatives,
    SIMILAR_WIDTH: tl.constexpr, HITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``[BLOCK_M, BLOCK_L]``: pairs that are there and not left out."""
    kept = (row < num_rows)[:, None] & (column < num_negatives)[None, :]
    if HITS:
        words = (num_negatives + 31) // 32
        word = tl.load(bits + row.to(tl.int64)[:, None] * words + (column // 32)[None, :], mask=kept, other=0)
        kept = kept & (((word >> (column % 32)[None, :]) & 1) == 0)
    if SIMILAR_WIDTH > 0:
        similarity = _products(
            similar_trigger, similar_negative, row, column, num_rows, num_negatives,
            SIMILAR_WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION,
        )  # fmt: skip
        kept = kept & (similarity < threshold)
    return kept


@triton.jit
def _statistics_kernel(
    statistics, num_splits, tiles_of_split,
    trigger, negative, log_weight, bits, teacher_trigger, teacher_negative, no_content,
    similar_trigger, similar_negative, threshold, num_rows, num_negatives,
    WIDTH: tl.constexpr, TEACHER_WIDTH: tl.constexpr, SIMILAR_WIDTH: tl.constexpr,
    HITS: tl.constexpr, ALL_JUDGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Maxima and sums of a block of rows over a split of the negatives, ``statistics[:, split, rows]``."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    most = tl.full([BLOCK_M], FEWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    teacher_most = most
    teacher_total = total
    sum_qq = total
    sum_qs = total
    judged_most = most
    judged_total = total
    first = split * tiles_of_split * BLOCK_L
    for start in range(first, min(first + tiles_of_split * BLOCK_L, num_negatives), BLOCK_L):
        column = start + tl.arange(0, BLOCK_L)
        kept = _kept(
            row, column, bits, similar_trigger, similar_negative, threshold, num_rows, num_negatives,
            SIMILAR_WIDTH, HITS, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION,
        )  # fmt: skip
        correction = tl.load(log_weight + column, mask=column < num_negatives, other=0.0)[None, :]
        student = correction + _products(
            trigger, negative, row, column, num_rows, num_negatives, WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION
        )
        # A tile may have nothing to keep: then the maximum stays where it is and the sum gets nothing.
        now = tl.maximum(most, tl.max(tl.where(kept, student, FEWEST), 1))
        total = total * tl.exp(most - now) + tl.sum(tl.where(kept, tl.exp(student - now[:, None]), 0.0), 1)
        most = now
        if TEACHER_WIDTH > 0:
            if not ALL_JUDGED:
                unknown = tl.load(no_content + column, mask=column < num_negatives, other=1)
                kept = kept & (unknown == 0)[None, :]
                now = tl.maximum(judged_most, tl.max(tl.where(kept, student, FEWEST), 1))
                judged_total = judged_total * tl.exp(judged_most - now)
                judged_total += tl.sum(tl.where(kept, tl.exp(student - now[:, None]), 0.0), 1)
                judged_most = now
            teacher = correction + _products(
                teacher_trigger, teacher_negative, row, column, num_rows, num_negatives,
                TEACHER_WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION,
            )  # fmt: skip
            now = tl.maximum(teacher_most, tl.max(tl.where(kept, teacher, FEWEST), 1))
            scale = tl.exp(teacher_most - now)
            weight = tl.where(kept, tl.exp(teacher - now[:, None]), 0.0)
            teacher_total = teacher_total * scale + tl.sum(weight, 1)
            sum_qq = sum_qq * scale + tl.sum(weight * teacher, 1)
            sum_qs = sum_qs * scale + tl.sum(weight * student, 1)
            teacher_most = now
    inside = row < num_rows
    size = num_splits * num_rows
    out = statistics + split * num_rows + row
    tl.store(out, most, mask=inside)
    tl.store(out + size, total, mask=inside)
    tl.store(out + 2 * size, teacher_most, mask=inside)
    tl.store(out + 3 * size, teacher_total, mask=inside)
    tl.store(out + 4 * size, sum_qq, mask=inside)
    tl.store(out + 5 * size, sum_qs, mask=inside)
    tl.store(out + 6 * size, judged_most, mask=inside)
    tl.store(out + 7 * size, judged_total, mask=inside)


@triton.jit
def _logit_gradient(
    row, column, normaliser, judged_normaliser, teacher_normaliser, engagement_weight, relevance_weight,
    trigger, negative, log_weight, bits, teacher_trigger, teacher_negative, no_content,
    similar_trigger, similar_negative, threshold, num_rows, num_negatives,
    WIDTH: tl.constexpr, TEACHER_WIDTH: tl.constexpr, SIMILAR_WIDTH: tl.constexpr,
    HITS: tl.constexpr, ALL_JUDGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``w (a P + b (P - Q))`` of a tile, ``[BLOCK_M, BLOCK_L]``; 0 for what is left out or outside."""
    inside = row < num_rows
    kept = _kept(
        row, column, bits, similar_trigger, similar_negative, threshold, num_rows, num_negatives,
        SIMILAR_WIDTH, HITS, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION,
    )  # fmt: skip
    correction = tl.load(log_weight + column, mask=column < num_negatives, other=0.0)[None, :]
    student = correction + _products(
        trigger, negative, row, column, num_rows, num_negatives, WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION
    )
    of_row = tl.load(normaliser + row, mask=inside, other=0.0)[:, None]
    weight = tl.load(engagement_weight + row, mask=inside, other=0.0)[:, None]
    gradient = tl.where(kept, weight * tl.exp(student - of_row), 0.0)
    if TEACHER_WIDTH > 0:
        if not ALL_JUDGED:
            unknown = tl.load(no_content + column, mask=column < num_negatives, other=1)
            kept = kept & (unknown == 0)[None, :]
        teacher = correction + _products(
            teacher_trigger, teacher_negative, row, column, num_rows, num_negatives,
            TEACHER_WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION,
        )  # fmt: skip
        of_row = tl.load(judged_normaliser + row, mask=inside, other=0.0)[:, None]
        of_teacher = tl.load(teacher_normaliser + row, mask=inside, other=0.0)[:, None]
        weight = tl.load(relevance_weight + row, mask=inside, other=0.0)[:, None]
        gradient += tl.where(kept, weight * (tl.exp(student - of_row) - tl.exp(teacher - of_teacher)), 0.0)
    return gradient


@triton.jit
def _trigger_gradient_kernel(
    of_trigger, row_sums, tiles_of_split,
    normaliser, judged_normaliser, teacher_normaliser, engagement_weight, relevance_weight,
    trigger, negative, log_weight, bits, teacher_trigger, teacher_negative, no_content,
    similar_trigger, similar_negative, threshold, num_rows, num_negatives,
    BLOCK_OUT: tl.constexpr, WIDTH: tl.constexpr, TEACHER_WIDTH: tl.constexpr, SIMILAR_WIDTH: tl.constexpr,
    HITS: tl.constexpr, ALL_JUDGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``sum_k G_ik N_k`` and ``sum_k G_ik`` over a split, for a block of rows and of the width."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    place = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    result = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    first = split * tiles_of_split * BLOCK_L
    for start in range(first, min(first + tiles_of_split * BLOCK_L, num_negatives), BLOCK_L):
        column = start + tl.arange(0, BLOCK_L)
        gradient = _logit_gradient(
            row, column, normaliser, judged_normaliser, teacher_normaliser, engagement_weight, relevance_weight,
            trigger, negative, log_weight, bits, teacher_trigger, teacher_negative, no_content,
            similar_trigger, similar_negative, threshold, num_rows, num_negatives,
            WIDTH, TEACHER_WIDTH, SIMILAR_WIDTH, HITS, ALL_JUDGED, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION,
        )  # fmt: skip
        row_sum += tl.sum(gradient, 1)
        values = tl.load(
            negative + column.to(tl.int64)[:, None] * WIDTH + place[None, :],
            mask=(column < num_negatives)[:, None] & (place < WIDTH)[None, :],
            other=0.0,
        )
        result = tl.dot(gradient, values, result, input_precision=PRECISION)
    out = (split * num_rows + row).to(tl.int64)
    tl.store(
        of_trigger + out[:, None] * WIDTH + place[None, :],
        result,
        mask=(row < num_rows)[:, None] & (place < WIDTH)[None, :],
    )
    tl.store(row_sums + out, row_sum, mask=(row < num_rows) & (tl.program_id(2) == 0))


@triton.jit
def _negative_gradient_kernel(
    of_negative,
    normaliser, judged_normaliser, teacher_normaliser, engagement_weight, relevance_weight,
    trigger, negative, log_weight, bits, teacher_trigger, teacher_negative, no_content,
    similar_trigger, similar_negative, threshold, num_rows, num_negatives,
    BLOCK_OUT: tl.constexpr, WIDTH: tl.constexpr, TEACHER_WIDTH: tl.constexpr, SIMILAR_WIDTH: tl.constexpr,
    HITS: tl.constexpr, ALL_JUDGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``sum_i G_ik T_i`` for a block of negatives and of the width; ``T`` is divided by the temperature already."""
    column = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    place = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    result = tl.zeros([BLOCK_L, BLOCK_OUT], tl.float32)
    for start in range(0, num_rows, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        gradient = _logit_gradient(
            row, column, normaliser, judged_normaliser, teacher_normaliser, engagement_weight, relevance_weight,
            trigger, negative, log_weight, bits, teacher_trigger, teacher_negative, no_content,
            similar_trigger, similar_negative, threshold, num_rows, num_negatives,
            WIDTH, TEACHER_WIDTH, SIMILAR_WIDTH, HITS, ALL_JUDGED, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION,
        )  # fmt: skip
        values = tl.load(
            trigger + row.to(tl.int64)[:, None] * WIDTH + place[None, :],
            mask=(row < num_rows)[:, None] & (place < WIDTH)[None, :],
            other=0.0,
        )
        result = tl.dot(tl.trans(gradient), values, result, input_precision=PRECISION)
    tl.store(
        of_negative + column.to(tl.int64)[:, None] * WIDTH + place[None, :],
        result,
        mask=(column < num_negatives)[:, None] & (place < WIDTH)[None, :],
    )
