"""The contrastive losses on a GPU: tiles of logits that live in registers only, in Triton.

The same formulas and the same interface as the pass of ``chunked.py``, in the manner of flash attention:

1. **What all heads share**, once. Pairs to leave out become a bit mask of ``M x L / 8`` bytes. The teacher's logits
   become ``exp(logit - the largest of the row in its tile)``, kept in the type of the products, and sums of each row
   and tile, from which follow ``Q``, the logs of its normalisers and its entropy.
2. **Statistics** of a head. Programs go through the negatives tile by tile with an online softmax: for each row the
   running maximum and sum of ``P``, and the sum of ``Q s``, which the KL is made of.
3. **Gradients.** With the normalisers known, each tile's logits are computed again and turned into the gradient of the
   logits at once. One kernel adds up what flows to the triggers, another, whose tiles lie the other way, what flows to
   the negatives. A head's logits are computed three times; they are never written.

A few rows alone would leave most of a GPU idle, so a row's negatives are cut into splits, whose parts are added up
afterwards. There are no atomic additions: the same input gives the same bits on the same device.

Sums, softmax and losses are in float32. With ``problem.bf16`` products take factors in bf16, and ``Q`` is kept in bf16,
``2 M L`` bytes; its normaliser and entropy are from before the rounding. Otherwise products follow
``torch.get_float32_matmul_precision()``: ``highest`` takes three TF32 products for one of float32, which tensor cores
still do several times faster than others do one, ``high`` and ``medium`` take TF32 as it is, and ``Q`` takes ``4 M L``
bytes. Tiles are as large as registers hold (`tiles_of`): ``python -m benchmarks.triton_compile`` shows what a compiler
makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .problem import EXCLUDED, Distillation, Hits, Problem, Similar

LABEL_TILE = 128  # columns of ``Q`` with a maximum of their own: a multiple of any tile's
BLOCK_OUT = 128  # of a gradient's width, at most
FEWEST = tl.constexpr(EXCLUDED)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Tile(NamedTuple):
    """Size of the tiles of a kernel, and how many warps compute one."""

    rows: int
    negatives: int
    width: int  # of embeddings, multiplied at a time
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """The tiles of each kernel."""

    similar: Tile
    teacher: Tile
    statistics: Tile
    of_trigger: Tile
    of_negative: Tile


def tiles_of(capability: int, bf16: bool) -> Tiles:
    """The largest tiles that spill next to nothing from the registers, by compute capability and type of the products.

    Args:
        capability: of the GPU, ten times the major number and the minor one.
        bf16: products in bf16; else in TF32.
    """
    similar = Tile(64, 64, 32, 8, 2)  # its products are those of float32 in any case
    if not bf16 or capability not in (80, 90, 100):  # other GPUs give a program 99 KB of shared memory or less
        small = Tile(64, 32, 32, 8, 2)
        # Two stages of float32 factors beside a gradient are 122 KB.
        of_gradient = small if bf16 or capability in (80, 90, 100) else small._replace(num_stages=1)
        return Tiles(similar, Tile(64, LABEL_TILE, 32, 8, 2), small, of_gradient, of_gradient)
    wide = Tile(128, 64, 64, 8, 2)
    if capability < 90:
        return Tiles(similar, Tile(64, LABEL_TILE, 64, 8, 2), Tile(128, 128, 128, 8, 2), wide, wide)
    return Tiles(similar, Tile(128, LABEL_TILE, 64, 8, 2), wide, wide, wide)


def one_pass(problem: Problem, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses ``[num_heads]`` and gradients of the embeddings, in their order (none if not asked for).

    Args:
        problem: float32, at least one row and one negative.
        embeddings: triggers, positives and negatives of all heads, ``[M, D]``, ``[M, D]`` and ``[L, D]``.
    """
    num_heads = len(problem.heads)
    losses, gradients = [], [torch.empty_like(tensor) for tensor in embeddings] if problem.with_gradients else []
    shared = _Shared(problem, len(embeddings[0]), embeddings[-1])
    for index in range(num_heads):
        head = _HeadPass(problem, index, embeddings[index::num_heads], shared)
        losses.append(head.losses())
        if gradients:
            for out, gradient in zip(gradients[index::num_heads], head.gradients(), strict=True):
                out.copy_(gradient)
    engagement, relevance = (torch.stack(losses, dim=1) * problem.row_weight).sum(dim=-1)
    return engagement, relevance, gradients


class _Shared:
    """What the heads have in common: tiles, pairs to leave out, the teacher's probabilities."""

    def __init__(self, problem: Problem, num_rows: int, negative: Tensor) -> None:
        on_gpu, self.num_negatives = negative.device.type == "cuda", len(negative)
        major, minor = torch.cuda.get_device_capability(negative.device) if on_gpu else (8, 0)
        self.tiles = tiles_of(10 * major + minor, problem.bf16)
        self.type = torch.bfloat16 if problem.bf16 else torch.float32
        self.num_rows = num_rows
        log_weight = problem.log_weight
        self.log_weight = negative.new_zeros(len(negative)) if log_weight is None else log_weight.contiguous()
        self.precision = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
        self.bits: Tensor | None = None
        if problem.hits is not None:
            self.bits = _bit_mask(problem.hits, num_rows, len(negative))
        if problem.similar is not None:
            self.bits = self._leave_out(problem.similar, self.bits)
        self.labels = _Labels(problem.distillation, self) if problem.distillation is not None else None

    def factor(self, matrix: Tensor) -> Tensor:
        """A matrix as products take it."""
        return matrix.to(self.type).contiguous()

    def tile(self, tile: Tile, width: int) -> dict[str, Any]:
        """Constants of a kernel with such tiles over embeddings of a width."""
        return {
            "BLOCK_M": tile.rows,
            "BLOCK_L": tile.negatives,
            "BLOCK_K": min(tile.width, _power_of_2(width)),
            "PRECISION": self.precision,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        }

    def _leave_out(self, similar: Similar, bits: Tensor | None) -> Tensor:
        """The bits of pairs with too similar content, beside those that are there."""
        if bits is None:
            words = triton.cdiv(self.num_negatives, 32)
            bits = torch.zeros(self.num_rows, words, dtype=torch.int32, device=similar.trigger.device)
        tile = self.tiles.similar
        _similar_kernel[(triton.cdiv(self.num_rows, tile.rows), triton.cdiv(self.num_negatives, tile.negatives))](
            bits,
            similar.trigger.contiguous(),
            similar.negative.contiguous(),
            similar.threshold,
            self.num_rows,
            self.num_negatives,
            WIDTH=similar.negative.shape[1],
            **self.tile(tile, similar.negative.shape[1]),
        )
        return bits


class _Labels:
    """The teacher's side: ``Q`` is ``weight * scale`` of a row and tile.

    Attributes:
        weight: ``[M, T * LABEL_TILE]`` in the type of the products, ``exp`` of a logit less its tile's largest.
        scale: ``[T, M]`` float32.
        negative_entropy: ``[M]``, sum of ``Q log Q``.
        of_positive: ``[M]``, ``Q_+``.
        no_content: ``[L]`` int8, 1 for columns that the teacher cannot judge; None: there are none.
        row_has_content: ``[M]`` bool.
    """

    def __init__(self, teacher: Distillation, shared: _Shared) -> None:
        num_rows, num_negatives, tile = shared.num_rows, shared.num_negatives, shared.tiles.teacher
        num_tiles = triton.cdiv(num_negatives, LABEL_TILE)
        assert tile.negatives == LABEL_TILE
        device = shared.log_weight.device
        self.row_has_content = teacher.row_has_content
        self.no_content = None
        if teacher.no_content is not None:
            self.no_content = torch.zeros(num_negatives, dtype=torch.int8, device=device)
            self.no_content.index_fill_(0, teacher.no_content, 1)
        self.weight = torch.empty(num_rows, num_tiles * LABEL_TILE, dtype=shared.type, device=device)
        most, total, entropy = torch.empty(3, num_tiles, num_rows, device=device)
        _teacher_kernel[(triton.cdiv(num_rows, tile.rows), num_tiles)](
            self.weight,
            most,
            total,
            entropy,
            shared.factor(teacher.trigger),
            shared.factor(teacher.negative),
            shared.log_weight,
            shared.log_weight if shared.bits is None else shared.bits,
            shared.log_weight if self.no_content is None else self.no_content,
            num_rows,
            num_negatives,
            WIDTH=teacher.negative.shape[1],
            HITS=shared.bits is not None,
            ALL_JUDGED=self.no_content is None,
            **shared.tile(tile, teacher.negative.shape[1]),
        )
        positive = (teacher.trigger * teacher.positive).sum(dim=1)
        normaliser = _log_sum(most, total, positive)
        self.scale = most.sub_(normaliser).exp_()
        self.of_positive = (positive - normaliser).exp()
        self.negative_entropy = (self.scale * entropy).sum(0) + self.of_positive * positive - normaliser


class _HeadPass:
    """One head: statistics first, gradients from them."""

    def __init__(self, problem: Problem, index: int, embeddings: Sequence[Tensor], shared: _Shared) -> None:
        trigger, self._positive, negative = embeddings
        self._problem, self._shared = problem, shared
        self._head = problem.heads[index]
        self._trigger = trigger / problem.temperature
        self._labels = labels = shared.labels if self._head.relevance_weight > 0.0 else None
        unused = shared.log_weight
        no_content = None if labels is None else labels.no_content
        self._inputs: dict[str, Any] = {
            "trigger": shared.factor(self._trigger),
            "negative": shared.factor(negative),
            "log_weight": shared.log_weight,
            "bits": unused if shared.bits is None else shared.bits,
            "labels": unused if labels is None else labels.weight,
            "scale": unused if labels is None else labels.scale,
            "no_content": unused if no_content is None else no_content,
            "num_rows": shared.num_rows,
            "num_negatives": shared.num_negatives,
            "WIDTH": trigger.shape[1],
            "LABEL_TILE": LABEL_TILE,
            "HITS": shared.bits is not None,
            "DISTILS": labels is not None,
            "ALL_JUDGED": no_content is None,
        }

    def losses(self) -> Tensor:
        """``L_e`` and ``L_r``, ``[2, M]``."""
        tile = self._shared.tiles.statistics
        grid, split = self._splits(tile)
        statistics = self._trigger.new_empty(5, grid[1], self._shared.num_rows)
        constants = self._shared.tile(tile, self._trigger.shape[1])
        _statistics_kernel[grid](statistics, grid[1], split, **self._inputs, **constants)
        most, total, judged_most, judged_total, cross = statistics
        positive = (self._trigger * self._positive).sum(dim=1)
        self._normaliser = self._judged_normaliser = _log_sum(most, total, positive)
        engagement = self._normaliser - positive
        labels = self._labels
        if labels is None:
            return torch.stack([engagement, torch.zeros_like(engagement)])
        if labels.no_content is not None:
            self._judged_normaliser = _log_sum(judged_most, judged_total, positive)
        relevance = labels.negative_entropy - cross.sum(0) - labels.of_positive * positive + self._judged_normaliser
        return torch.stack([engagement, relevance * labels.row_has_content])

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of trigger, positive and negative; `losses` first."""
        weight, (num_rows, width) = self._problem.row_weight, self._trigger.shape
        relevance_weight = weight * self._head.relevance_weight
        if self._labels is not None:
            relevance_weight = relevance_weight * self._labels.row_has_content
        inputs = self._inputs | {
            "normaliser": self._normaliser,
            "judged_normaliser": self._judged_normaliser,
            "engagement_weight": weight * self._head.engagement_weight,
            "relevance_weight": relevance_weight,
            "BLOCK_OUT": min(BLOCK_OUT, _power_of_2(width)),
        }
        out_blocks = triton.cdiv(width, inputs["BLOCK_OUT"])
        tile = self._shared.tiles.of_trigger
        grid, split = self._splits(tile)
        of_trigger = self._trigger.new_empty(grid[1], num_rows, width)
        row_sums = self._trigger.new_empty(grid[1], num_rows)
        constants = self._shared.tile(tile, width)
        _trigger_gradient_kernel[(*grid, out_blocks)](of_trigger, row_sums, split, **inputs, **constants)
        tile = self._shared.tiles.of_negative
        of_negative = self._trigger.new_empty(self._shared.num_negatives, width)
        _negative_gradient_kernel[(triton.cdiv(self._shared.num_negatives, tile.negatives), out_blocks)](
            of_negative, **inputs, **self._shared.tile(tile, width)
        )
        # P, Q and the one-hot all sum to 1, so a row's gradient sums to 0: no cancellation where P_+ is near 1.
        of_positive = -row_sums.sum(0)[:, None]
        of_trigger = (of_trigger.sum(0) + of_positive * self._positive) / self._problem.temperature
        return of_trigger, of_positive * self._trigger, of_negative

    def _splits(self, tile: Tile) -> tuple[tuple[int, int], int]:
        """Blocks of rows and splits of the negatives, and the tiles of a split.

        Enough programs for every multiprocessor to have a few.
        """
        device = self._trigger.device
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        row_blocks = triton.cdiv(self._shared.num_rows, tile.rows)
        num_tiles = triton.cdiv(self._shared.num_negatives, tile.negatives)
        splits = max(1, min(-(-4 * processors // row_blocks), num_tiles))
        return (row_blocks, splits), triton.cdiv(num_tiles, splits)


def _power_of_2(width: int) -> int:
    """The next power of 2, at least the 16 that tensor cores take."""
    return max(16, int(triton.next_power_of_2(width)))


def _log_sum(most: Tensor, total: Tensor, positive: Tensor) -> Tensor:
    """Log of the sum of exponentials of all parts ``[S, M]`` and the positive ``[M]``."""
    return torch.cat([most + total.log(), positive[None]]).logsumexp(0)


def _bit_mask(hits: Hits, num_rows: int, num_negatives: int) -> Tensor:
    """``[M, ceil(L / 32)]`` int32, bit ``l % 32`` of word ``l // 32`` set where the pair is left out."""
    words = triton.cdiv(num_negatives, 32)
    place = hits.rows * (32 * words) + hits.columns  # each once: bits are added below
    bit = torch.ones_like(place) << (place % 32)
    mask = torch.zeros(num_rows * words, dtype=torch.int64, device=place.device)
    mask.index_add_(0, place // 32, bit)
    return torch.where(mask >= 2**31, mask - 2**32, mask).int().view(num_rows, words)


@triton.jit
def _block(matrix, index, count, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """``[len(index), BLOCK]``: columns from ``first`` of some rows of a matrix; 0 outside."""
    place = first + tl.arange(0, BLOCK)
    inside = (index < count)[:, None] & (place < WIDTH)[None, :]
    return tl.load(matrix + index.to(tl.int64)[:, None] * WIDTH + place[None, :], mask=inside, other=0.0)


@triton.jit
def _factor(block):
    """A factor of a product: the interpreter would multiply the bits of bf16 as if they were whole numbers."""
    if INTERPRETED:
        block = block.to(tl.float32)
    return block


@triton.jit
def _products(
    left, right, a, b, num_a, num_b,
    WIDTH: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``[BLOCK_A, BLOCK_B]`` dot products of rows ``a`` of one matrix and ``b`` of another; 0 outside."""
    products = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
    for first in tl.static_range(0, WIDTH, BLOCK_K):
        of_a = _block(left, a, num_a, first, WIDTH, BLOCK_K)
        of_b = _block(right, b, num_b, first, WIDTH, BLOCK_K)
        products = tl.dot(_factor(of_a), tl.trans(_factor(of_b)), products, input_precision=PRECISION)
    return products


@triton.jit
def _kept(
    row, column, start, bits, num_rows, num_negatives,
    ROWS_FIRST: tl.constexpr, HITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Pairs of a tile, whose first column is ``start``, that are there and not left out; in the shape of its axes."""
    kept = (row < num_rows) & (column < num_negatives)
    if HITS:
        # A word for 32 pairs, spread in registers: a load for each pair would take addresses that others need.
        words = (num_negatives + 31) // 32
        place = start // 32 + tl.arange(0, BLOCK_L // 32)
        if ROWS_FIRST:
            place = place[None, :]
            word = tl.load(bits + row.to(tl.int64) * words + place, mask=(row < num_rows) & (place < words), other=0)
            word = tl.broadcast_to(word[:, :, None], [BLOCK_M, BLOCK_L // 32, 32]).reshape([BLOCK_M, BLOCK_L])
        else:
            place = place[:, None]
            word = tl.load(bits + row.to(tl.int64) * words + place, mask=(row < num_rows) & (place < words), other=0)
            word = tl.broadcast_to(word[:, None, :], [BLOCK_L // 32, 32, BLOCK_M]).reshape([BLOCK_L, BLOCK_M])
        kept = kept & (((word >> (column % 32)) & 1) == 0)
    return kept


@triton.jit
def _similar_kernel(
    bits, trigger, negative, threshold, num_rows, num_negatives,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sets the bits of the pairs of a tile whose dot product is at least the threshold."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    similarity = _products(
        trigger, negative, row, column, num_rows, num_negatives, WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION
    )
    bit = (similarity >= threshold).to(tl.int32) << (column % 32)[None, :]
    word = tl.sum(tl.reshape(bit, [BLOCK_M, BLOCK_L // 32, 32]), 2)
    words = (num_negatives + 31) // 32
    place = tl.program_id(1) * (BLOCK_L // 32) + tl.arange(0, BLOCK_L // 32)
    inside = (row < num_rows)[:, None] & (place < words)[None, :]
    out = bits + row.to(tl.int64)[:, None] * words + place[None, :]
    tl.store(out, tl.load(out, mask=inside, other=0) | word, mask=inside)


@triton.jit
def _teacher_kernel(
    labels, tile_most, tile_total, tile_entropy, trigger, negative, log_weight, bits, no_content,
    num_rows, num_negatives,
    WIDTH: tl.constexpr, HITS: tl.constexpr, ALL_JUDGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``exp(logit - most)`` of a tile of the teacher, 0 for what is left out, and its sums, ``[tile, rows]`` each."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    kept = _kept(
        row[:, None], column[None, :], tl.program_id(1) * BLOCK_L, bits, num_rows, num_negatives,
        True, HITS, BLOCK_M, BLOCK_L,
    )  # fmt: skip
    if not ALL_JUDGED:
        unknown = tl.load(no_content + column, mask=column < num_negatives, other=1)
        kept = kept & (unknown == 0)[None, :]
    logit = tl.load(log_weight + column, mask=column < num_negatives, other=0.0)[None, :] + _products(
        trigger, negative, row, column, num_rows, num_negatives, WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION
    )
    most = tl.max(tl.where(kept, logit, FEWEST), 1)
    weight = tl.where(kept, tl.exp(logit - most[:, None]), 0.0)
    inside = row < num_rows
    out = labels + row.to(tl.int64)[:, None] * (tl.num_programs(1) * BLOCK_L) + column[None, :]
    tl.store(out, weight.to(labels.dtype.element_ty), mask=inside[:, None])
    out = tl.program_id(1) * num_rows + row
    tl.store(tile_most + out, most, mask=inside)
    tl.store(tile_total + out, tl.sum(weight, 1), mask=inside)
    tl.store(tile_entropy + out, tl.sum(weight * logit, 1), mask=inside)


@triton.jit
def _teacher_probability(row, column, start, labels, scale, num_rows, num_negatives, LABEL_TILE: tl.constexpr):
    """``Q`` of a tile whose first column is ``start``."""
    stride = (num_negatives + LABEL_TILE - 1) // LABEL_TILE * LABEL_TILE
    weight = tl.load(labels + row.to(tl.int64) * stride + column, mask=(row < num_rows) & (column < stride), other=0.0)
    of_tile = tl.load(scale + start // LABEL_TILE * num_rows + row, mask=row < num_rows, other=0.0)
    return weight.to(tl.float32) * of_tile


@triton.jit
def _statistics_kernel(
    statistics, num_splits, tiles_of_split,
    trigger, negative, log_weight, bits, labels, scale, no_content, num_rows, num_negatives,
    WIDTH: tl.constexpr, LABEL_TILE: tl.constexpr, HITS: tl.constexpr, DISTILS: tl.constexpr, ALL_JUDGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Maxima and sums of a block of rows over a split of the negatives, ``statistics[:, split, rows]``."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    most = tl.full([BLOCK_M], FEWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    judged_most = most
    judged_total = total
    cross = total
    first = split * tiles_of_split * BLOCK_L
    for start in range(first, min(first + tiles_of_split * BLOCK_L, num_negatives), BLOCK_L):
        column = start + tl.arange(0, BLOCK_L)
        student = tl.load(log_weight + column, mask=column < num_negatives, other=0.0)[None, :] + _products(
            trigger, negative, row, column, num_rows, num_negatives, WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION
        )
        if DISTILS:
            cross += tl.sum(student * _teacher_probability(
                row[:, None], column[None, :], start, labels, scale, num_rows, num_negatives, LABEL_TILE
            ), 1)  # fmt: skip
        # A tile may have nothing to keep: then the maximum stays where it is and the sum gets nothing.
        kept = _kept(row[:, None], column[None, :], start, bits, num_rows, num_negatives, True, HITS, BLOCK_M, BLOCK_L)
        student = tl.where(kept, student, FEWEST)
        now = tl.maximum(most, tl.max(student, 1))
        weight = tl.where(student > FEWEST, tl.exp(student - now[:, None]), 0.0)
        total = total * tl.exp(most - now) + tl.sum(weight, 1)
        most = now
        if DISTILS and not ALL_JUDGED:
            unknown = tl.load(no_content + column, mask=column < num_negatives, other=1)
            student = tl.where((unknown == 0)[None, :], student, FEWEST)
            now = tl.maximum(judged_most, tl.max(student, 1))
            weight = tl.where(student > FEWEST, tl.exp(student - now[:, None]), 0.0)
            judged_total = judged_total * tl.exp(judged_most - now) + tl.sum(weight, 1)
            judged_most = now
    inside = row < num_rows
    size = num_splits * num_rows
    out = statistics + split * num_rows + row
    tl.store(out, most, mask=inside)
    tl.store(out + size, total, mask=inside)
    tl.store(out + 2 * size, judged_most, mask=inside)
    tl.store(out + 3 * size, judged_total, mask=inside)
    tl.store(out + 4 * size, cross, mask=inside)


@triton.jit
def _logit_gradient(
    student, row, column, start, normaliser, judged_normaliser, engagement_weight, relevance_weight,
    log_weight, bits, labels, scale, no_content, num_rows, num_negatives,
    ROWS_FIRST: tl.constexpr, LABEL_TILE: tl.constexpr, HITS: tl.constexpr, DISTILS: tl.constexpr,
    ALL_JUDGED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """``w (a P + b (P - Q))`` of a tile of products, ``row`` and ``column`` along its axes, whichever comes first.

    0 for what is left out or outside.
    """
    inside = row < num_rows
    kept = _kept(row, column, start, bits, num_rows, num_negatives, ROWS_FIRST, HITS, BLOCK_M, BLOCK_L)
    student += tl.load(log_weight + column, mask=column < num_negatives, other=0.0)
    weight = tl.load(engagement_weight + row, mask=inside, other=0.0)
    if not DISTILS:
        return tl.where(kept, weight * tl.exp(student - tl.load(normaliser + row, mask=inside, other=0.0)), 0.0)
    of_teacher = tl.load(relevance_weight + row, mask=inside, other=0.0)
    if ALL_JUDGED:
        weight += of_teacher
    gradient = tl.where(kept, weight * tl.exp(student - tl.load(normaliser + row, mask=inside, other=0.0)), 0.0)
    if not ALL_JUDGED:
        unknown = tl.load(no_content + column, mask=column < num_negatives, other=1)
        judged = tl.exp(student - tl.load(judged_normaliser + row, mask=inside, other=0.0))
        gradient += tl.where(kept & (unknown == 0), of_teacher * judged, 0.0)
    # Nothing of Q is where nothing is kept.
    return gradient - of_teacher * _teacher_probability(
        row, column, start, labels, scale, num_rows, num_negatives, LABEL_TILE
    )


@triton.jit
def _trigger_gradient_kernel(
    of_trigger, row_sums, tiles_of_split, normaliser, judged_normaliser, engagement_weight, relevance_weight,
    trigger, negative, log_weight, bits, labels, scale, no_content, num_rows, num_negatives,
    BLOCK_OUT: tl.constexpr, WIDTH: tl.constexpr, LABEL_TILE: tl.constexpr,
    HITS: tl.constexpr, DISTILS: tl.constexpr, ALL_JUDGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``sum_k G_ik N_k`` and ``sum_k G_ik`` over a split, for a block of rows and of the width."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    first_out = 0 if WIDTH <= BLOCK_OUT else tl.program_id(2) * BLOCK_OUT
    place = first_out + tl.arange(0, BLOCK_OUT)
    result = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    first = split * tiles_of_split * BLOCK_L
    for start in range(first, min(first + tiles_of_split * BLOCK_L, num_negatives), BLOCK_L):
        column = start + tl.arange(0, BLOCK_L)
        student = _products(
            trigger, negative, row, column, num_rows, num_negatives, WIDTH, BLOCK_M, BLOCK_L, BLOCK_K, PRECISION
        )
        gradient = _logit_gradient(
            student, row[:, None], column[None, :], start,
            normaliser, judged_normaliser, engagement_weight, relevance_weight,
            log_weight, bits, labels, scale, no_content, num_rows, num_negatives,
            True, LABEL_TILE, HITS, DISTILS, ALL_JUDGED, BLOCK_M, BLOCK_L,
        )  # fmt: skip
        row_sum += tl.sum(gradient, 1)
        values = _block(negative, column, num_negatives, first_out, WIDTH, BLOCK_OUT)
        result = tl.dot(_factor(gradient.to(values.dtype)), _factor(values), result, input_precision=PRECISION)
    out = (split * num_rows + row).to(tl.int64)
    tl.store(
        of_trigger + out[:, None] * WIDTH + place[None, :],
        result,
        mask=(row < num_rows)[:, None] & (place < WIDTH)[None, :],
    )
    tl.store(row_sums + out, row_sum, mask=(row < num_rows) & (tl.program_id(2) == 0))


@triton.jit
def _negative_gradient_kernel(
    of_negative, normaliser, judged_normaliser, engagement_weight, relevance_weight,
    trigger, negative, log_weight, bits, labels, scale, no_content, num_rows, num_negatives,
    BLOCK_OUT: tl.constexpr, WIDTH: tl.constexpr, LABEL_TILE: tl.constexpr,
    HITS: tl.constexpr, DISTILS: tl.constexpr, ALL_JUDGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``sum_i G_ik T_i`` for a block of negatives and of the width; ``T`` is divided by the temperature already."""
    first = tl.program_id(0) * BLOCK_L
    column = first + tl.arange(0, BLOCK_L)
    first_out = 0 if WIDTH <= BLOCK_OUT else tl.program_id(1) * BLOCK_OUT
    place = first_out + tl.arange(0, BLOCK_OUT)
    result = tl.zeros([BLOCK_L, BLOCK_OUT], tl.float32)
    for start in range(0, num_rows, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        student = _products(
            negative, trigger, column, row, num_negatives, num_rows, WIDTH, BLOCK_L, BLOCK_M, BLOCK_K, PRECISION
        )
        gradient = _logit_gradient(
            student, row[None, :], column[:, None], first,
            normaliser, judged_normaliser, engagement_weight, relevance_weight,
            log_weight, bits, labels, scale, no_content, num_rows, num_negatives,
            False, LABEL_TILE, HITS, DISTILS, ALL_JUDGED, BLOCK_M, BLOCK_L,
        )  # fmt: skip
        values = _block(trigger, row, num_rows, first_out, WIDTH, BLOCK_OUT)
        result = tl.dot(_factor(gradient.to(values.dtype)), _factor(values), result, input_precision=PRECISION)
    tl.store(
        of_negative + column.to(tl.int64)[:, None] * WIDTH + place[None, :],
        result,
        mask=(column < num_negatives)[:, None] & (place < WIDTH)[None, :],
    )
