"""Pseudo-labels against plain loops."""

from __future__ import annotations

import pytest
import torch
from mtmh.modules import pseudo_labels
from torch import Tensor
from torch.nn import functional


def content_of(num: int, seed: int) -> Tensor:
    rows = functional.normalize(torch.randn(num, 3, generator=torch.Generator().manual_seed(seed)), dim=1)
    rows[::7] = 0.0
    return rows


@pytest.mark.parametrize("chunk_rows", [5, 256])
@pytest.mark.parametrize("threshold", [1e-6, 0.5, 0.999])
def test_labels_are_the_largest_draw_among_those_close_enough(threshold: float, chunk_rows: int) -> None:
    trigger, candidate = content_of(70, 0), content_of(90, 1)
    generator = torch.Generator().manual_seed(2)
    row_draw, candidate_draw = torch.rand(70, generator=generator), torch.rand(90, generator=generator)
    own = torch.randint(-1, 90, (70,), generator=generator)
    candidate[own[3]] = trigger[3]  # a trigger whose nearest candidate is itself
    labels = pseudo_labels(
        trigger,
        candidate,
        own,
        threshold=threshold,
        row_draw=row_draw,
        candidate_draw=candidate_draw,
        chunk_rows=chunk_rows,
    )
    for row in range(70):
        close = [
            k for k in range(90) if float(trigger[row].double() @ candidate[k].double()) >= threshold and k != own[row]
        ]
        best = max(close, key=lambda k: float((row_draw[row] + candidate_draw[k]) % 1.0), default=-1)
        assert labels[row] == best
    assert (labels == -1).any()
    assert (labels >= 0).any() or threshold > 0.9


def test_every_close_candidate_is_as_likely() -> None:
    content = functional.normalize(torch.tensor([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 8), dim=1)
    generator = torch.Generator().manual_seed(0)
    picked = torch.zeros(16)
    rounds, rows = 2000, 4
    for _ in range(rounds):
        labels = pseudo_labels(
            content[:1].expand(rows, 2),
            content,
            torch.zeros(rows, dtype=torch.int64),
            threshold=0.5,
            row_draw=torch.rand(rows, generator=generator),
            candidate_draw=torch.rand(16, generator=generator),
        )
        picked += torch.bincount(labels, minlength=16)
    assert not picked[0]  # the trigger itself
    assert not picked[8:].any()
    expected = rounds * rows / 7
    assert (picked[1:8] - expected).abs().max() < 5 * (rows * expected) ** 0.5  # rows of one round are not independent


def test_no_candidates_and_no_rows() -> None:
    none = torch.empty(0)
    assert pseudo_labels(
        content_of(3, 0),
        content_of(0, 0),
        torch.full((3,), -1),
        threshold=0.5,
        row_draw=torch.rand(3),
        candidate_draw=none,
    ).tolist() == [-1, -1, -1]
    labels = pseudo_labels(
        content_of(0, 0), content_of(3, 0), none.long(), threshold=0.5, row_draw=none, candidate_draw=torch.rand(3)
    )
    assert labels.shape == (0,)


def test_bad_input_says_what_was_expected() -> None:
    draws = torch.rand(3)
    with pytest.raises(ValueError, match="threshold above 0, got 0"):
        pseudo_labels(
            content_of(3, 0), content_of(3, 0), torch.arange(3), threshold=0.0, row_draw=draws, candidate_draw=draws
        )
    with pytest.raises(ValueError, match="expected trigger"):
        pseudo_labels(
            content_of(3, 0), content_of(4, 0), torch.arange(3), threshold=0.5, row_draw=draws, candidate_draw=draws
        )
