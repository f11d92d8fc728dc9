"""SASRec against its formulas written plainly in float64, and that no state knows of what comes later."""

from __future__ import annotations

import math

import pytest
import torch
from mtmh.modules.sasrec import SasRec
from mtmh.modules.sequence_model import build_item_collection
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

DIM, LENGTH, HEADS = 8, 6, 2
HISTORIES = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8]]


def make_model() -> SasRec:
    torch.manual_seed(0)
    return SasRec(build_item_collection(12, DIM), DIM, LENGTH, num_layers=2, num_heads=HEADS).eval()


def states_of(model: SasRec, histories: list[list[int]]) -> Tensor:
    rows = KeyedJaggedTensor(
        keys=["item_id"],
        values=torch.tensor([row for history in histories for row in history]),
        lengths=torch.tensor([len(history) for history in histories]),
    )
    found: Tensor = model(rows, torch.zeros(len(histories), max(map(len, histories)), dtype=torch.int64))
    return found


def normed(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    scaled = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def plain(weights: dict[str, Tensor], history: list[int]) -> Tensor:
    """States [N, D] of one history."""
    table, width = weights["items.embeddings.item_id.weight"], DIM // HEADS
    states = [table[row] * math.sqrt(DIM) + weights["positions"][place] for place, row in enumerate(history)]
    for number in range(2):
        layer = f"layers.layers.{number}"
        into = [
            (
                weights[f"{layer}.self_attn.in_proj_weight"] @ normed(state, weights, f"{layer}.norm1")
                + weights[f"{layer}.self_attn.in_proj_bias"]
            ).view(3, HEADS, width)
            for state in states
        ]
        after = []
        for n, state in enumerate(states):
            mixed = []
            for head in range(HEADS):
                logits = torch.stack([into[n][0, head] @ into[m][1, head] for m in range(n + 1)]) / math.sqrt(width)
                shares = logits.exp() / logits.exp().sum()
                mixed.append(sum(share * into[m][2, head] for m, share in enumerate(shares)))
            out = weights[f"{layer}.self_attn.out_proj.weight"] @ torch.cat(mixed)
            attended = state + out + weights[f"{layer}.self_attn.out_proj.bias"]
            hidden = weights[f"{layer}.linear1.weight"] @ normed(attended, weights, f"{layer}.norm2")
            hidden = (hidden + weights[f"{layer}.linear1.bias"]).clamp(min=0)
            after.append(attended + weights[f"{layer}.linear2.weight"] @ hidden + weights[f"{layer}.linear2.bias"])
        states = after
    states = [normed(state, weights, "layers.norm") for state in states]
    return torch.stack([state / state.square().sum().sqrt() for state in states])


def test_states_equal_the_formulas_in_float64() -> None:
    model = make_model()
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    with torch.no_grad():
        found = states_of(model, HISTORIES)
    assert found.shape == (3, LENGTH, DIM)
    for row, history in enumerate(HISTORIES):
        torch.testing.assert_close(found[row, : len(history)].double(), plain(weights, history), rtol=1e-4, atol=1e-5)


def test_no_state_knows_of_what_comes_later() -> None:
    model = make_model()
    whole = states_of(model, [[3, 1, 4, 1, 5]])
    changed = states_of(model, [[3, 1, 4, 7, 8]])
    torch.testing.assert_close(whole[0, :3], changed[0, :3])
    assert (whole[0, 3] - changed[0, 3]).abs().max() > 1e-3


def test_embeddings_are_rows_of_the_table_at_unit_length() -> None:
    model = make_model()
    table = model.items.state_dict()["embeddings.item_id.weight"]
    torch.testing.assert_close(model.embed(torch.tensor([4, 0])), torch.nn.functional.normalize(table[[4, 0]], dim=1))


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="3 heads divide, got 8"):
        SasRec(build_item_collection(4, 8), 8, 4, num_heads=3)


def test_first_weights_are_small_enough_to_turn_soon() -> None:
    model = SasRec(build_item_collection(2000, 64), dim=64, max_length=50)
    (table,) = model.items.parameters()
    assert table.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.positions.std().item() == pytest.approx(0.02, rel=0.1)
