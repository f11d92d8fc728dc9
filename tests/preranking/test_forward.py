"""What service computes in NumPy is what the trained modules compute in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mtmh.modules import Combination, UserTower, task_probability
from safetensors.torch import save_model

from mtmh.preranking.forward import CombinedEvidence, UserQueries, probability


def tower_of(hidden: list[int]) -> UserTower:
    torch.manual_seed(0)
    tower = UserTower(6, hidden, 0.1, [-5.0, -1.0, 0.5])
    with torch.no_grad():  # also what begins at zero
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter))
    return tower


def combination_of(hidden: int) -> Combination:
    torch.manual_seed(1)
    combination = Combination(5, hidden)
    combination.standardise(torch.randn(100, 5) * 3.0)
    with torch.no_grad():
        for parameter in combination.parameters():
            parameter.add_(torch.randn_like(parameter))
    return combination


@pytest.mark.parametrize("hidden", [[], [16], [16, 8]])
def test_queries_are_those_of_the_tower(hidden: list[int], tmp_path: Path) -> None:
    tower = tower_of(hidden)
    save_model(tower, str(tmp_path / "tower.safetensors"))
    rng = np.random.default_rng(0)
    history, trigger = rng.normal(size=(2, 7, 6))
    history[3] = trigger[3] = 0.0
    loaded = UserQueries.load(tmp_path / "tower.safetensors", 6, hidden, 3, 0.1)
    found = loaded(history.astype(np.float32), trigger.astype(np.float32))
    with torch.no_grad():
        expected = tower.double().queries(torch.from_numpy(history), torch.from_numpy(trigger))
    for exact, single, wanted in zip(UserQueries.of(tower)(history, trigger), found, expected, strict=True):
        np.testing.assert_allclose(exact, wanted, rtol=1e-12, atol=1e-13)
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, wanted, rtol=1e-5, atol=2e-5)
    with pytest.raises(ValueError, match=r"tower.safetensors: not the weights of this model, differs in .*mlp"):
        UserQueries.load(tmp_path / "tower.safetensors", 7, hidden, 3, 0.1)


@pytest.mark.parametrize("hidden", [0, 8])
def test_evidence_is_combined_as_the_module_does(hidden: int, tmp_path: Path) -> None:
    combination = combination_of(hidden)
    save_model(combination, str(tmp_path / "combination.safetensors"))
    evidence = np.random.default_rng(1).normal(size=(2, 40, 5)) * 20.0  # some of it is clipped
    found = CombinedEvidence.load(tmp_path / "combination.safetensors", 5, hidden)(evidence.astype(np.float32))
    with torch.no_grad():
        expected = combination.double()(torch.from_numpy(evidence))
    np.testing.assert_allclose(CombinedEvidence.of(combination)(evidence), expected, rtol=1e-12, atol=1e-12)
    assert (found.dtype, found.shape) == (np.float32, (2, 40))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-5)
    with pytest.raises(ValueError, match="differs in"):
        CombinedEvidence.load(tmp_path / "combination.safetensors", 5, hidden + 1)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tower.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"tower.safetensors: no readable safetensors"):
        UserQueries.load(tmp_path / "tower.safetensors", 6, [], 3, 0.1)


@pytest.mark.parametrize("label", [None, 0])
def test_probabilities_are_exact_to_rounding_wherever_they_lie(label: int | None) -> None:
    logits = np.array([[-300.0, -80.0, -20.0, -1.0, 0.0, 3.0, 30.0], [0.0, 2.0, -30.0, 1.0, -9.0, 4.0, 90.0]])
    expected = task_probability(torch.from_numpy(logits), label).numpy()
    found = probability(logits.astype(np.float32), label)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-6)
    assert 0.0 <= found[0] < 1e-37
