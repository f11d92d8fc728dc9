"""The preranker's modules against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mtmh.modules import DenseNN, Preranker, SparseNN, UserTower, build_ebc, task_probability
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_queries_are_the_mix_of_history_and_trigger_plus_what_is_learned() -> None:
    torch.manual_seed(0)
    tower = UserTower(dim=4, hidden=[6], temperature=0.2, prior=[-3.0, 0.5]).double()
    with torch.no_grad():
        tower.mix.copy_(torch.tensor([[1.5, 0.5], [0.2, -1.0]]))
        torch.nn.init.normal_(tower.mlp[-1].weight)
    directions = unit(np.random.default_rng(0).normal(size=(7, 4)))
    histories, triggers = [[0, 1, 5], [3], [2, 2, 6, 4]], [5, 3, 0]
    queries, biases = tower(
        torch.from_numpy(directions),
        torch.tensor([item for history in histories for item in history]),
        torch.tensor([0, 3, 4, 8]),
        torch.tensor(triggers),
    )
    first, last = tower.mlp[0], tower.mlp[2]
    for row, (history, trigger) in enumerate(zip(histories, triggers, strict=True)):
        pooled = directions[history].mean(axis=0)
        inside = np.concatenate([pooled, directions[trigger]])
        hidden = np.maximum(first.weight.detach().numpy() @ inside + first.bias.detach().numpy(), 0.0)
        learned = (last.weight.detach().numpy() @ hidden + last.bias.detach().numpy()).reshape(2, 5)
        for task, (of_history, of_trigger) in enumerate(tower.mix.tolist()):
            towards = of_history * pooled + of_trigger * directions[trigger] + learned[task, :4]
            expected = np.concatenate([unit(towards) / 0.2, np.eye(2)[task]])
            np.testing.assert_allclose(queries[row, task].detach(), expected, rtol=1e-6)
            pace, prior = (10.0, -3.0) if task == 0 else (1.0, 0.5)
            assert biases[row, task].item() == pytest.approx(pace * learned[task, 4] + prior, rel=1e-6)


def test_item_vectors_are_a_unit_direction_and_a_bias_for_each_query() -> None:
    torch.manual_seed(0)
    sparse_nn = SparseNN(build_ebc({"item_id": 10}, {"item_id": 8}), ["item_id"])
    model = Preranker(sparse_nn, DenseNN(2, [4], 4), 3, [8], dim=5, temperature=0.1, prior=[-3.0, -1.0])
    ids = KeyedJaggedTensor(keys=["item_id"], values=torch.tensor([1, 2, 3]), lengths=torch.tensor([1, 1, 1]))
    dense, extra = torch.randn(3, 2), torch.randn(3, 3)
    torch.nn.init.normal_(model.item_mlp[-1].weight)
    vectors = model(ids, dense, extra)
    inputs = torch.cat([sparse_nn(ids), model.dense_nn(dense), extra], dim=1).double()
    plain = model.item_mlp.double()(inputs).detach().numpy()
    plain[:, :5] += model.project.double()(inputs[:, [*range(8), 12, 13, 14]]).detach().numpy()
    expected = np.concatenate([unit(plain[:, :5]), plain[:, 5:]], axis=1)
    np.testing.assert_allclose(vectors.detach(), expected, rtol=1e-4, atol=1e-6)


def test_a_label_is_only_as_likely_as_the_engagement() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]], dtype=torch.float64)
    sigmoid = 1.0 / (1.0 + np.exp(-logits.numpy()))
    np.testing.assert_allclose(task_probability(logits, None), sigmoid[0], rtol=1e-12)
    np.testing.assert_allclose(task_probability(logits, 0), sigmoid[0] * sigmoid[1], rtol=1e-12)


def test_widths_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="UserTower: expected widths of at least 1"):
        UserTower(dim=0, hidden=[], temperature=0.1, prior=[0.0])
    with pytest.raises(ValueError, match="a prior for each query"):
        UserTower(dim=4, hidden=[], temperature=0.1, prior=[])
