"""The combination of evidence."""

from __future__ import annotations

import pytest
import torch
from mtmh.modules.combination import Combination


def test_it_begins_at_zero_and_standardises_what_varies() -> None:
    model = Combination(3, 4)
    evidence = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, -2.0], [5.0, 5.0, 900.0]])
    model.standardise(evidence)
    assert model(evidence).tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[1.0, 1.0, 0.0]]))
    spread = evidence[:, 0].std(correction=0)
    torch.testing.assert_close(model(evidence), (evidence[:, 0] - 3.0) / spread)
    # What did not vary says nothing, whatever comes later; and nothing counts beyond six spreads.
    torch.testing.assert_close(model(torch.tensor([3.0, 1e9, 2.0])), torch.tensor(0.0))
    torch.testing.assert_close(model(torch.tensor([1e9, 5.0, 2.0])), torch.tensor(6.0))


def test_a_width_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="got 3 and -1"):
        Combination(3, -1)
