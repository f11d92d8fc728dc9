"""Accidental hits: negatives that the row's user has in fact engaged with."""

from __future__ import annotations

import torch
from torch import Tensor


def accidental_hits(
    history_values: Tensor, history_offsets: Tensor, row_to_history: Tensor, negative_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Finds all ``(row, negative)`` pairs in which the negative is in the history of the row.

    Nothing of size ``M x L`` is held: time and memory follow the sizes of the inputs and of the answer.

    Args:
        history_values: ``[H]`` int64 item ids, histories one after another; repeats allowed. A history that is to mask
            the row's own positive and trigger contains them.
        history_offsets: ``[R + 1]`` int64; history ``r`` owns the values from
            ``history_offsets[r]`` up to ``history_offsets[r + 1]``.
        row_to_history: ``[M]`` int64, the history of each row.
        negative_ids: ``[L]`` int64 item ids of the negatives; repeats allowed, each is its own column.

    Returns:
        ``rows`` and ``columns``, int64 ``[K]`` each, sorted by row; each pair once.

    Raises:
        ValueError: the offsets do not span ``history_values``.

    Example::

        >>> rows, columns = accidental_hits(
        ...     history_values=torch.tensor([7, 8, 9]), history_offsets=torch.tensor([0, 1, 3]),
        ...     row_to_history=torch.tensor([1, 0]), negative_ids=torch.tensor([7, 9, 9, 5]),
        ... )
        >>> list(zip(rows.tolist(), columns.tolist()))
        [(0, 1), (0, 2), (1, 0)]
    """
    if history_offsets.numel() < 1 or int(history_offsets[-1]) != history_values.numel():
        raise ValueError(
            f"accidental_hits: history_offsets must end at the number of history_values ({history_values.numel()})"
        )
    device = history_values.device
    num_histories = history_offsets.numel() - 1
    ids, columns_by_id = torch.sort(negative_ids, stable=True)
    distinct_ids, copies = torch.unique_consecutive(ids, return_counts=True)
    first_copy = copies.cumsum(0) - copies

    # Entries of histories that are also negatives, once per history.
    history = torch.repeat_interleave(torch.arange(num_histories, device=device), history_offsets.diff())
    place = torch.searchsorted(distinct_ids, history_values)
    found = torch.isin(history_values, distinct_ids)
    entries = torch.unique(history[found] * distinct_ids.numel() + place[found])
    history, place = entries // max(distinct_ids.numel(), 1), entries % max(distinct_ids.numel(), 1)

    # Histories' columns, one history after another, then each row takes those of its history.
    columns = columns_by_id[_ranges(first_copy[place], copies[place])]
    num_columns = torch.zeros(num_histories, dtype=torch.int64, device=device).index_add_(0, history, copies[place])
    first_column = num_columns.cumsum(0) - num_columns
    counts = num_columns[row_to_history]
    rows = torch.repeat_interleave(torch.arange(row_to_history.numel(), device=device), counts)
    return rows, columns[_ranges(first_column[row_to_history], counts)]


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """The ranges ``starts[i], ..., starts[i] + lengths[i] - 1``, one after another."""
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if ends.numel() else 0
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths, output_size=total)
    return torch.arange(total, device=starts.device) + shift
