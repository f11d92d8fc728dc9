"""HSTU against the published formulas written plainly in float64, one history and one place at a time."""

from __future__ import annotations

import math

import pytest
import torch
from mtmh.modules.hstu import Hstu
from mtmh.modules.sequence_model import build_item_collection
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

DIM, LENGTH, HEADS = 8, 6, 2
HISTORIES = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8]]
TIMES = [[0, 40, 41, 5000, 9_000_000], [7], [1, 1, 2, 3, 5, 8]]


def make_model() -> Hstu:
    torch.manual_seed(0)
    return Hstu(build_item_collection(12, DIM), DIM, LENGTH, num_layers=2, num_heads=HEADS).eval()


def batch(histories: list[list[int]], times: list[list[int]]) -> tuple[KeyedJaggedTensor, Tensor]:
    width = max(map(len, histories))
    rows = KeyedJaggedTensor(
        keys=["item_id"],
        values=torch.tensor([row for history in histories for row in history]),
        lengths=torch.tensor([len(history) for history in histories]),
    )
    return rows, torch.tensor([moments + [123] * (width - len(moments)) for moments in times])


def silu(x: Tensor) -> Tensor:
    return x / (1.0 + (-x).exp())


def normed(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()


def plain(weights: dict[str, Tensor], history: list[int], times: list[int]) -> Tensor:
    """States [N, D] of one history."""
    table = weights["items.embeddings.item_id.weight"]
    states = [table[row] * math.sqrt(DIM) + weights["positions"][place] for place, row in enumerate(history)]
    asked = [*times[1:], times[-1]]
    for layer in range(2):
        parts = [
            silu(normed(state) @ weights[f"layers.{layer}.project"]).view(4, HEADS, DIM // HEADS) for state in states
        ]
        out = []
        for n in range(len(history)):
            mixed = torch.zeros(HEADS, DIM // HEADS, dtype=torch.float64)
            for m in range(n + 1):  # no later place is seen
                bucket = min(128, int(math.log(max(1, abs(asked[n] - times[m]))) / 0.301))
                bias = weights["bias.by_place"][n - m + LENGTH - 1] + weights["bias.by_time"][bucket]
                for head in range(HEADS):
                    logit = parts[n][2, head] @ parts[m][3, head] + bias
                    mixed[head] += silu(logit) / LENGTH * parts[m][1, head]
            gated = parts[n][0].reshape(-1) * normed(mixed.reshape(-1))
            out.append(weights[f"layers.{layer}.out.weight"] @ gated + weights[f"layers.{layer}.out.bias"] + states[n])
        states = out
    return torch.stack([state / state.square().sum().sqrt() for state in states])


def test_states_equal_the_formulas_in_float64() -> None:
    model = make_model()
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    found = model(*batch(HISTORIES, TIMES))
    assert found.shape == (3, LENGTH, DIM)
    for row, (history, times) in enumerate(zip(HISTORIES, TIMES, strict=True)):
        expected = plain(weights, history, times)
        torch.testing.assert_close(found[row, : len(history)].double(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_formulas() -> None:
    model = make_model()
    weights = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    mix = torch.randn(len(HISTORIES[0]), DIM)
    (model(*batch(HISTORIES[:1], TIMES[:1]))[0] * mix).sum().backward()
    (plain(weights, HISTORIES[0], TIMES[0]) * mix.double()).sum().backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        torch.testing.assert_close(value.grad.double(), weights[name].grad, rtol=1e-3, atol=1e-5)


def test_nothing_that_comes_later_changes_a_state() -> None:
    model = make_model()
    whole = model(*batch(HISTORIES, TIMES))
    # The time of the next event is known when it is asked for; the item is not.
    other = model(*batch([[3, 1, 4, 7, 7], [9], HISTORIES[2]], TIMES))
    torch.testing.assert_close(whole[0, :3], other[0, :3])
    assert not torch.allclose(whole[0, 3], other[0, 3])


def test_a_history_does_not_depend_on_those_beside_it() -> None:
    model = make_model()
    torch.testing.assert_close(model(*batch(HISTORIES, TIMES))[0, :5], model(*batch(HISTORIES[:1], TIMES[:1]))[0])


def test_item_vectors_are_rows_of_the_table_at_unit_length() -> None:
    model = make_model()
    table = model.items.state_dict()["embeddings.item_id.weight"]
    expected = table[[4, 0]] / table[[4, 0]].norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.embed(torch.tensor([4, 0])), expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width that 3 heads divide, got 8"):
        Hstu(build_item_collection(12, DIM), DIM, LENGTH, num_heads=3)
