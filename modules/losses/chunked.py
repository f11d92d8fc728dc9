"""The losses in chunks of rows, on any device: logits of a few rows at a time, gradients formed on the way.

Logits of a few rows are turned into probabilities, those into the gradient of the logits, ``(a + b) P - a onehot_+ - b
Q``, and that into the gradients of the embeddings, in reused buffers. The backward only scales what the forward has
formed: ``M x D``, ``M x D`` and ``L x D`` a head.

Rows of the buffers are ``[s_1, ..., s_L, s_+]`` and columns of probability 0 up to a multiple of 8: tensor cores take
operands whose rows begin at multiples of 16 bytes only.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mtmh.specs import Head

from .problem import EXCLUDED, Distillation, Problem

# On CPU a chunk's logits should stay near the last-level cache; beyond that, more rows do not make its products faster.
CPU_CHUNK_ELEMENTS = 1 << 23
# MKL is up to a third slower when it multiplies with all negatives at once than with some thousands of them at a time.
CPU_TILE_NEGATIVES = 4096
# Below so many logits a step of the pass is shared among threads operation by operation.
LEAST_SHARED = 1 << 20
# Of the probability, outside the columns that the teacher cannot judge: from here on a difference to 1 is exact enough.
LEAST_REST = 0.1
ALIGNED = 8  # values


def one_pass(problem: Problem, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses ``[num_heads]`` and gradients of the embeddings, in their order (none if not asked for)."""
    num_heads = len(problem.heads)
    num_rows, width = embeddings[0].shape[0], embeddings[-1].shape[0] + 1
    gradients = [torch.zeros_like(tensor) for tensor in embeddings] if problem.with_gradients else []
    row_losses = embeddings[0].new_zeros(2, num_heads, num_rows)
    workers = _num_workers(embeddings[0].device, num_rows, width)
    rounds = -(-num_rows // (workers * problem.chunk_rows))
    starts = range(0, num_rows, -(-num_rows // (workers * rounds)) if workers > 1 else problem.chunk_rows)
    bounds = [] if problem.hits is None else [problem.hits.offsets[i] for i in (*starts, num_rows)]
    if workers == 1:
        _pass_over(range(len(starts)), starts, bounds, problem, embeddings, gradients, row_losses)
    else:
        # Sums of its own for the negatives of each: chunk by chunk in a fixed order, so that a run can be repeated.
        of_negatives = [[torch.zeros_like(g) for g in gradients[2 * num_heads :]] for _ in range(workers - 1)]
        own = [gradients, *([*gradients[: 2 * num_heads], *sums] for sums in of_negatives)]

        def work(worker: int) -> None:
            with torch.no_grad():
                chunks = range(worker, len(starts), workers)
                _pass_over(chunks, starts, bounds, problem, embeddings, own[worker], row_losses)

        list(_threads(workers).map(work, range(workers)))
        for sums in of_negatives:
            for total, part in zip(gradients[2 * num_heads :], sums, strict=True):
                total += part
    engagement, relevance = (row_losses * problem.row_weight).sum(dim=-1)
    return engagement, relevance, gradients


def _num_workers(device: torch.device, num_rows: int, width: int) -> int:
    """Threads that take chunks, each computing alone; 1: the calling thread, whose operations use all threads.

    A chunk's operations take a millisecond or so. Threads that share each of them wait for the slowest at every end;
    threads with chunks of their own wait once a step.
    """
    if device.type != "cpu" or num_rows * width < LEAST_SHARED:
        return 1
    return min(torch.get_num_threads(), num_rows)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """So many threads, in which torch computes with one thread each."""
    begun, own_threads = threading.Barrier(count + 1), torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread, but also of all that begin later
        begun.wait()

    pool = ThreadPoolExecutor(count, "losses", initializer=begin)
    for _ in range(count):
        pool.submit(bool)
    begun.wait()
    torch.set_num_threads(own_threads)
    return pool


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of these threads


def _pass_over(
    chunks: range,
    starts: range,
    bounds: list[int],
    problem: Problem,
    embeddings: Sequence[Tensor],
    gradients: list[Tensor],
    row_losses: Tensor,
) -> None:
    """Computes some of the chunks: their rows of the losses and gradients, and what they add to the negatives' ones."""
    num_heads = len(problem.heads)
    triggers, positives, negatives = (embeddings[i * num_heads : (i + 1) * num_heads] for i in range(3))
    num_rows, num_negatives = triggers[0].shape[0], negatives[0].shape[0]
    width = -(-(num_negatives + 1) // ALIGNED) * ALIGNED
    shape = (min(starts.step, num_rows), width)
    logits_buffer, probability_buffer = triggers[0].new_full(shape, EXCLUDED), triggers[0].new_empty(shape)
    target_buffer = triggers[0].new_empty(shape) if problem.distillation else None
    negative_factors = [_factor(negative, problem) for negative in negatives]
    teacher_factor = _factor(problem.distillation.negative, problem) if problem.distillation else None

    for chunk in chunks:
        start = starts[chunk]
        rows = slice(start, min(start + starts.step, num_rows))
        logits, probability = (x[: rows.stop - start] for x in (logits_buffer, probability_buffer))
        excluded = None
        if problem.hits is not None:
            found = slice(bounds[chunk], bounds[chunk + 1])
            excluded = (problem.hits.rows[found] - start) * width + problem.hits.columns[found]
        similar = None
        if problem.similar is not None:
            _multiply(problem.similar.trigger[rows], problem.similar.negative, out=logits[:, :num_negatives])
            similar = logits[:, :num_negatives] >= problem.similar.threshold
        left_out = (excluded, similar)
        target = None
        if problem.distillation is not None and target_buffer is not None and teacher_factor is not None:
            teacher = problem.distillation
            _fill_logits(logits, teacher.trigger[rows], teacher.positive[rows], teacher_factor, problem, left_out)
            target = _soft_labels(logits, target_buffer[: rows.stop - start], probability, teacher, rows)
        for index, head in enumerate(problem.heads):
            scaled_trigger = triggers[index][rows] / problem.temperature
            _fill_logits(logits, scaled_trigger, positives[index][rows], negative_factors[index], problem, left_out)
            similarity_to_positive = logits[:, num_negatives].clone()
            engagement, relevance, row_factor = _logit_gradient(
                head, logits, probability, target, similarity_to_positive
            )
            row_losses[0, index, rows], row_losses[1, index, rows] = engagement, relevance
            if not gradients:
                continue
            row_factor *= problem.row_weight[rows]
            # P, Q and the one-hot all sum to 1, so a row's gradient sums to 0: no cancellation where P_+ is near 1.
            of_positive = -row_factor * probability[:, :num_negatives].sum(dim=1)
            of_trigger, of_positives, of_negatives = gradients[index::num_heads]
            of_logits = _factor(probability, problem)[:, :num_negatives]
            _product(of_logits, negative_factors[index], out=of_trigger[rows])
            of_trigger[rows] *= row_factor[:, None]
            of_trigger[rows].addcmul_(positives[index][rows], of_positive[:, None]).div_(problem.temperature)
            torch.mul(scaled_trigger, of_positive[:, None], out=of_positives[rows])
            _add_product(of_logits.t(), _factor(scaled_trigger * row_factor[:, None], problem), out=of_negatives)


def _fill_logits(
    logits: Tensor,
    scaled_trigger: Tensor,
    positive: Tensor,
    negative: Tensor,
    problem: Problem,
    left_out: tuple[Tensor | None, Tensor | None],
) -> None:
    """Writes ``[s_1, ..., s_L, s_+]`` of a chunk's rows; ``negative`` is a `_factor`.

    What is left out is given as places in the flattened chunk and as a mask ``[rows, L]``.
    """
    of_negatives = logits[:, : len(negative)]
    _multiply(_factor(scaled_trigger, problem), negative, out=of_negatives)
    if problem.log_weight is not None:
        of_negatives += problem.log_weight
    logits[:, len(negative)] = (scaled_trigger * positive).sum(dim=1)
    excluded, similar = left_out
    if excluded is not None:
        logits.view(-1).index_fill_(0, excluded, EXCLUDED)
    if similar is not None:
        of_negatives.masked_fill_(similar, EXCLUDED)


def _factor(matrix: Tensor, problem: Problem) -> Tensor:
    """A matrix as products take it: with ``problem.bf16`` rounded, and on GPUs in bf16."""
    if not problem.bf16:
        return matrix
    rounded = matrix.bfloat16()
    return rounded if matrix.device.type == "cuda" else rounded.to(matrix.dtype)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Writes ``left @ right``, summed in the type of ``out``."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)


def _add_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Adds ``left @ right``, summed in the type of ``out``."""
    if left.dtype == out.dtype:
        out.addmm_(left, right)
    else:
        out += torch.mm(left, right, out_dtype=out.dtype)


def _multiply(rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """Writes ``rows @ columns.T``."""
    tile = CPU_TILE_NEGATIVES if out.device.type == "cpu" else max(len(columns), 1)
    for tile_columns, tile_out in zip(torch.split(columns, tile), torch.split(out, tile, dim=1), strict=True):
        _product(rows, tile_columns.t(), out=tile_out)


def _softmax(logits: Tensor, out: Tensor) -> Tensor:
    """Writes the row-wise softmax to ``out`` and returns the log of the normaliser, ``[rows]``."""
    largest = logits.amax(dim=1)
    torch.softmax(logits, dim=1, out=out)
    # The largest probability is exp(0) / normaliser, so this holds however far the logits are apart.
    return largest - out.amax(dim=1).log()


class _SoftLabels(NamedTuple):
    """The teacher's side of a chunk."""

    probability: Tensor  # as the logits; zero in rows without content
    negative_entropy: Tensor  # [rows], sum of Q log Q
    has_content: Tensor  # [rows] bool
    no_content: Tensor | None  # [K] columns that the teacher cannot judge


def _soft_labels(logits: Tensor, out: Tensor, scratch: Tensor, teacher: Distillation, rows: slice) -> _SoftLabels:
    """Turns the teacher's logits into ``Q``."""
    if teacher.no_content is not None:
        logits.index_fill_(1, teacher.no_content, EXCLUDED)
    normaliser = _softmax(logits, out)
    negative_entropy = torch.mul(out, logits, out=scratch).sum(dim=1) - normaliser
    has_content = teacher.row_has_content[rows]
    first, end = (bisect_left(teacher.rows_without, place) for place in (rows.start, rows.stop))
    if first < end:
        without = torch.tensor(teacher.rows_without[first:end]) - rows.start
        out.index_fill_(0, without.to(out.device, non_blocking=True), 0.0)
    return _SoftLabels(out, negative_entropy, has_content, teacher.no_content)


def _logit_gradient(
    head: Head, logits: Tensor, out: Tensor, target: _SoftLabels | None, similarity_to_positive: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of one head and chunk, and the gradient of its logits.

    ``row_factor[:, None] * out`` is ``a P + b (P - Q)``: for the negatives the gradient of a row of weight 1.

    Returns:
        ``L_e``, ``L_r`` and the row factor, ``[rows]`` each.
    """
    a, b = head.engagement_weight, head.relevance_weight
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
        normaliser = _add_judged(out, logits, normaliser, target.no_content, a, row_relevance)
        out.sub_(target.probability, alpha=b)
        row_factor = torch.ones_like(engagement)
    relevance = (target.negative_entropy - cross + normaliser) * target.has_content
    return engagement, relevance, row_factor


def _add_judged(
    probability: Tensor, logits: Tensor, normaliser: Tensor, no_content: Tensor, a: float, row_relevance: Tensor
) -> Tensor:
    """Turns ``P`` into ``a P + b P'``, with ``P'`` over the columns that the teacher can judge.

    Returns:
        log of the normaliser of ``P'``, ``[rows]``.
    """
    unjudged = probability.index_select(1, no_content)
    rest = torch.where(row_relevance > 0.0, 1.0 - unjudged.sum(dim=1), 1.0)  # rows without L_r have no P'
    # P' is P over the rest of its sum, but where next to nothing is left. Asking would hold a GPU up.
    if probability.device.type == "cpu" and bool((rest > LEAST_REST).all()):
        probability.mul_((a + row_relevance / rest)[:, None])
        probability.index_copy_(1, no_content, unjudged.mul_(a))
        return normaliser + rest.log()
    logits.index_fill_(1, no_content, EXCLUDED)
    judged = torch.empty_like(probability)
    normaliser = _softmax(logits, judged)
    probability.mul_(a).addcmul_(judged, row_relevance[:, None])
    return normaliser


def rows_at_a_time(chunk_rows: int, num_negatives: int, device: torch.device) -> int:
    """Rows whose logits a thread holds at a time: on CPU fewer where there are many negatives."""
    if device.type != "cpu":
        return chunk_rows
    return min(chunk_rows, max(32, CPU_CHUNK_ELEMENTS // torch.get_num_threads() // (num_negatives + 1)))
