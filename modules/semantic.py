"""Pseudo-labels of the semantic task: for each row one item whose content is close to the trigger's."""

from __future__ import annotations

import torch
from torch import Tensor

from .losses import CPU_CHUNK_ELEMENTS

NONE = -1  # stands for a row without a label


def pseudo_labels(
    trigger: Tensor,
    candidate: Tensor,
    own: Tensor,
    *,
    threshold: float,
    row_draw: Tensor,
    candidate_draw: Tensor,
    chunk_rows: int = 256,
) -> Tensor:
    """Picks for each row one of the candidates whose content is close enough, all of them equally likely.

    Two items are semantically aligned if the cosine of their content embeddings is at least a threshold (related-video
    paper, II.A). Row ``i`` takes the aligned candidate ``k`` with the largest fractional part of ``row_draw_i +
    candidate_draw_k``: with independent uniform draws each aligned candidate is as likely as the others, rows of one
    topic get different ones, and the pick is a function of the draws alone.

    Args:
        trigger: ``[M, Dc]`` content embeddings of the rows' triggers, of unit length; a zero row has no content.
        candidate: ``[L, Dc]`` those of the candidates.
        own: ``[M]`` int64, the candidate that is the row's trigger itself, -1 if none is; it is never picked.
        threshold: least cosine, above 0.
        row_draw: ``[M]`` float32 in [0, 1).
        candidate_draw: ``[L]`` float32 in [0, 1).
        chunk_rows: rows whose cosines are held at a time, at most.

    Returns:
        ``[M]`` int64 candidates, -1 where no candidate is close enough.

    Raises:
        ValueError: shapes do not fit each other, or the threshold is not above 0.

    Example::

        >>> content = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
        >>> pseudo_labels(
        ...     content, content, own=torch.arange(3), threshold=0.5,
        ...     row_draw=torch.zeros(3), candidate_draw=torch.tensor([0.1, 0.2, 0.3]),
        ... ).tolist()
        [1, 0, -1]
    """
    num_rows, num_candidates = len(trigger), len(candidate)
    shapes = [tuple(part.shape) for part in (own, row_draw, candidate_draw)]
    if shapes != [(num_rows,), (num_rows,), (num_candidates,)] or trigger.shape[1:] != candidate.shape[1:]:
        raise ValueError(
            f"pseudo_labels: expected trigger [M, Dc], candidate [L, Dc], own [M], row_draw [M] and candidate_draw "
            f"[L], got {tuple(trigger.shape)}, {tuple(candidate.shape)} and {shapes}"
        )
    if not threshold > 0.0:
        raise ValueError(f"pseudo_labels: expected a threshold above 0, got {threshold}")
    labels = own.new_full((num_rows,), NONE)
    if num_candidates == 0:
        return labels
    if trigger.device.type == "cpu":
        chunk_rows = min(chunk_rows, max(32, CPU_CHUNK_ELEMENTS // num_candidates))
    for start in range(0, num_rows, chunk_rows):
        rows = slice(start, start + chunk_rows)
        far = trigger[rows] @ candidate.t() < threshold
        column = own[rows, None]  # by values alone: asking which rows have one would hold a GPU up
        far.scatter_(1, column.clamp(min=0), far.gather(1, column.clamp(min=0)) | (column >= 0))
        place = (row_draw[rows, None] + candidate_draw).frac_().masked_fill_(far, -1.0)
        best, label = place.max(dim=1)
        labels[rows] = torch.where(best >= 0.0, label, NONE)
    return labels
