"""The problem that every backend of the losses solves: teacher, pairs to leave out, weights, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mtmh.specs import Head

# Stands for minus infinity in logits: exp gives exactly 0, and 0 times it is 0 where infinity would give nan.
EXCLUDED = -1e30


@dataclass(frozen=True)
class TeacherEmbeddings:
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


class Hits(NamedTuple):
    """Pairs to leave out, sorted by row and column, each once.

    Attributes:
        rows: ``[K]`` int64.
        columns: ``[K]`` int64.
        offsets: of the ``M`` rows, on the host; the pairs of row ``i`` are those from ``offsets[i]`` to before
            ``offsets[i + 1]``.
    """

    rows: Tensor
    columns: Tensor
    offsets: list[int]

    @staticmethod
    def sort(hits: tuple[Tensor, Tensor], num_rows: int, num_negatives: int) -> Hits:
        """Checks and sorts the pairs as they are given; asks the device that they are on for their number.

        Args:
            hits: rows and columns ``[K]`` int64 in any order; pairs may be there several times.
            num_rows: ``M``.
            num_negatives: ``L``.

        Raises:
            ValueError: a pair points outside ``M x L``.
        """
        rows, columns = hits
        if rows.shape != columns.shape or rows.dim() != 1:
            raise ValueError(f"hits: expected rows and columns of one length, got {rows.shape} and {columns.shape}")
        if rows.numel():
            low, high = torch.stack([torch.stack(torch.aminmax(x)) for x in (rows, columns)], dim=1).tolist()
            if min(low) < 0 or high[0] >= num_rows or high[1] >= num_negatives:
                raise ValueError(f"hits: row or column out of range for {num_rows} rows and {num_negatives} negatives")
        places = torch.unique(rows * max(num_negatives, 1) + columns)
        rows, columns = places // max(num_negatives, 1), places % max(num_negatives, 1)
        offsets = torch.searchsorted(rows, torch.arange(num_rows + 1, device=rows.device))
        return Hits(rows, columns, offsets.tolist())


class Distillation(NamedTuple):
    """The teacher, ready for use."""

    trigger: Tensor  # [M, Dc], divided by the temperature
    positive: Tensor
    negative: Tensor
    row_has_content: Tensor  # [M] bool
    rows_without: list[int]  # the others
    no_content: Tensor | None  # [K] columns that the teacher cannot judge; None: there are none


@dataclass(frozen=True)
class Problem:
    """All that the pass needs beside the embeddings."""

    heads: tuple[Head, ...]
    temperature: float
    row_weight: Tensor
    log_weight: Tensor | None  # [L], of the negatives
    distillation: Distillation | None
    hits: Hits | None
    similar: Similar | None
    chunk_rows: int
    with_gradients: bool
    bf16: bool = False  # factors of products are rounded to bf16
    uses_triton: bool = False


def prepare_teacher(teacher: TeacherEmbeddings, dtype: torch.dtype, num_rows: int, num_negatives: int) -> Distillation:
    """Checks the teacher's shapes; divides by its temperature and finds what it cannot judge."""
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
    row_has_content = (trigger != 0.0).any(dim=1) & (positive != 0.0).any(dim=1)
    # The host must know which of them have none: it asks once for all.
    missing = torch.cat([~row_has_content, (negative == 0.0).all(dim=1)]).cpu().numpy()
    no_content = torch.from_numpy(missing[num_rows:].nonzero()[0])
    return Distillation(
        trigger=trigger / teacher.temperature,
        positive=positive,
        negative=negative,
        row_has_content=row_has_content,
        rows_without=missing[:num_rows].nonzero()[0].tolist(),
        no_content=no_content.to(negative.device, non_blocking=True) if len(no_content) else None,
    )


def prepare_similar(similar: Similar, dtype: torch.dtype, num_rows: int, num_negatives: int) -> Similar:
    """Checks the shapes of the further pairs to leave out."""
    shapes = [tuple(tensor.shape) for tensor in (similar.trigger, similar.negative)]
    width = shapes[0][-1]
    if shapes != [(num_rows, width), (num_negatives, width)]:
        raise ValueError(f"similar: expected [{num_rows}, Dc] and [{num_negatives}, Dc], got {shapes}")
    return Similar(similar.trigger.detach().to(dtype), similar.negative.detach().to(dtype), similar.threshold)
