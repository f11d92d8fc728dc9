"""The mixture of logits against its formula written plainly in float64, one pair at a time."""

from __future__ import annotations

import pytest
import torch
from mtmh.modules.mixture import MixtureOfLogits
from torch import Tensor

DIM, COMPONENTS, HIDDEN = 12, 3, 5


def make_mixture() -> MixtureOfLogits:
    torch.manual_seed(0)
    return MixtureOfLogits(DIM, COMPONENTS, HIDDEN)


def network(weights: dict[str, Tensor], name: str, inputs: Tensor) -> Tensor:
    hidden = (weights[f"{name}.0.weight"] @ inputs + weights[f"{name}.0.bias"]).clamp(min=0)
    return weights[f"{name}.2.weight"] @ hidden + weights[f"{name}.2.bias"]


def plain(weights: dict[str, Tensor], trigger: Tensor, candidate: Tensor) -> Tensor:
    """The similarity of one pair."""
    own, other = ([part / part.square().sum().sqrt() for part in row.split(4)] for row in (trigger, candidate))
    logits = torch.stack([e @ f for e in own for f in other])
    gates = network(weights, "trigger_gate", trigger) * network(weights, "candidate_gate", candidate)
    gates = gates + network(weights, "pair_gate", logits)
    shares = (gates / (1.0 + (-gates).exp())).exp()
    return (shares / shares.sum()) @ logits


def test_similarities_and_gradients_equal_the_formula_in_float64() -> None:
    mixture = make_mixture()
    triggers, candidates = torch.randn(4, DIM, requires_grad=True), torch.randn(7, DIM, requires_grad=True)
    own, other = (rows.detach().double().requires_grad_() for rows in (triggers, candidates))
    weights = {name: value.detach().double().requires_grad_() for name, value in mixture.named_parameters()}
    found = mixture(triggers, candidates)
    expected = torch.stack([torch.stack([plain(weights, e, f) for f in other]) for e in own])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)

    mix = torch.randn(4, 7)
    gradients = torch.autograd.grad((found * mix).sum(), [triggers, candidates, *mixture.parameters()])
    wanted = torch.autograd.grad((expected * mix.double()).sum(), [own, other, *weights.values()])
    for gradient, of_plain in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), of_plain, rtol=1e-4, atol=1e-5)
    assert all(gradient.any() for gradient in gradients)


def test_one_component_is_the_cosine() -> None:
    mixture = MixtureOfLogits(DIM, 1, HIDDEN)
    rows = torch.randn(5, DIM)
    torch.testing.assert_close(mixture(rows, rows), torch.cosine_similarity(rows[:, None], rows[None], dim=2))


def test_components_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width that 5 components divide, got 12"):
        MixtureOfLogits(DIM, 5, HIDDEN)
