"""Training under a mixture of logits: the loss against plain formulas, exact neighbours, a length that is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_dataset import make_config, pair_loader, shelf_histories, write_dataset

from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.distributed.ranks import join_ranks
from mtmh.papers import mixture as mixture_module
from mtmh.papers.mixture import MixtureModel, MixtureSettings, Neighbours, learn, train_mixture
from mtmh.specs import Head
from mtmh.training.model_builder import build_model
from mtmh.training.shared_negatives import GlobalBatch, with_draws
from mtmh.training.task import GlobalLoss

NUM_ITEMS, SHELF = 100, 20


@pytest.fixture(name="config")
def fixture_config(tmp_path: Path) -> Config:
    """Each user keeps to one shelf of 20 items; the last shelf stays fresh."""
    histories = shelf_histories(NUM_ITEMS, SHELF, shortest=3)
    write_dataset(tmp_path / "dataset", histories, num_items=NUM_ITEMS)
    sections: dict[str, Any] = {
        "model": {
            "embedding_dim": 8, "dense_hidden": [8], "dense_dim": 4, "head_hidden": [16], "head_dim": 8,
            "heads": [{"name": "engagement"}],
        },
        "loss": {"num_uniform_negatives": 40, "temperature": 0.2, "propensity": {}},
        "training": {
            "batch_size": 48, "num_shards": 6, "epochs": 4, "optimizer": "adagrad", "learning_rate": 0.1,
            "dense_learning_rate": 0.02,
        },
        "retrieval": {"k_ann": 30},
    }  # fmt: skip
    return make_config(tmp_path, **sections)


@pytest.fixture(name="_alone")
def fixture_alone() -> Iterator[None]:
    with join_ranks("cpu"):
        yield


def make_model(config: Config, num_components: int) -> MixtureModel:
    torch.manual_seed(0)
    tower = build_model(config.model, open_dataset(config.dataset_dir).summary.features, torch.device("cpu"))
    return MixtureModel(tower, MixtureSettings(num_components, gate_hidden=4))


def batches_of(config: Config, number: int) -> list[GlobalBatch]:
    batches = pair_loader(open_dataset(config.dataset_dir), config).iterate()
    return list(islice(with_draws(batches, config.loss, config.seed), number))


@pytest.mark.usefixtures("_alone")
def test_with_one_component_it_learns_what_our_own_loss_teaches(config: Config) -> None:
    model = make_model(config, 1)
    for batch in batches_of(config, 2):
        model.zero_grad()
        found = learn(model, batch, config.loss)
        gradients = [parameter.grad for parameter in model.tower.parameters()]
        embeddings = model.tower(batch.sparse, batch.dense)
        total, _ = GlobalLoss((Head("engagement"),), config.loss, config.seed)(embeddings, batch)
        assert found == pytest.approx(total.item(), rel=1e-5)
        for gradient, wanted in zip(
            gradients, torch.autograd.grad(total.sum(), [*model.tower.parameters()]), strict=True
        ):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_alone")
def test_the_loss_is_the_corrected_softmax_of_the_mixture(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_module, "_CHUNK_PAIRS", 1000)  # a few pairs at a time
    model = make_model(config, 2)
    (batch,) = batches_of(config, 1)
    found = learn(model, batch, config.loss)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

    double = make_model(config, 2).double()
    (rows,) = double.tower(batch.sparse, batch.dense.double()).values()
    draws = torch.cat([batch.positive, batch.uniform]).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for pair in range(len(batch.trigger)):
        trigger, positive = int(batch.trigger[pair]), int(batch.positive[pair])
        start, stop = batch.history_offsets[batch.history_row[pair] :][:2].tolist()
        own = {int(batch.item_index[row]) for row in (trigger, positive)}
        forbidden = own | set(batch.history_values[start:stop].tolist())
        columns = [row for row in draws if int(batch.item_index[row]) not in forbidden]
        similar = double.mixture(rows[[trigger]], rows[[positive, *columns]])[0] / config.loss.temperature
        expected = batch.log_q[columns].double() + math.log(len(draws))
        logits = torch.cat([similar[:1], similar[1:] - expected])
        total = total - batch.weight[pair].double() * logits.log_softmax(0)[0]
    total = total / batch.weight.double().sum()
    assert found == pytest.approx(total.item(), rel=1e-5)
    torch.autograd.backward(total)
    for name, parameter in double.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad.float(), rtol=1e-3, atol=1e-6)


def test_neighbours_are_the_most_similar_others(config: Config) -> None:
    model = make_model(config, 2)
    rows = model.embed(open_dataset(config.dataset_dir).item_table)
    found = model.neighbours(rows, 7)
    scores = model.mixture(rows, rows).detach().fill_diagonal_(-math.inf)
    np.testing.assert_allclose(found.scores, np.sort(scores.numpy(), axis=1)[:, :-8:-1], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores.numpy(), found.items, axis=1), found.scores, rtol=1e-5)
    few = found.search("engagement", np.array([3, 90]), 9)
    assert few.items[:, :7].tolist() == found.items[[3, 90]].tolist()
    assert (few.items[:, 7:] == -1).all()
    assert np.isneginf(few.scores[:, 7:]).all()


@pytest.mark.parametrize("epochs", [2, "auto"])
def test_items_of_a_shelf_become_neighbours(config: Config, epochs: int | str, tmp_path: Path) -> None:
    changed = config.training.model_copy(update={"epochs": epochs, "max_epochs": 2, "batch_size": 96})
    config = config.model_copy(update={"training": changed})
    dataset = open_dataset(config.dataset_dir)
    vectors, neighbours = train_mixture(config, dataset, None, MixtureSettings(2, gate_hidden=8))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    known = np.flatnonzero(dataset.item_table.train_count > 0)
    nearest = neighbours.items[known, :10]
    assert neighbours.items.shape == (NUM_ITEMS, 30)
    assert (nearest != known[:, None]).all()
    assert (nearest // SHELF == known[:, None] // SHELF).mean() > 0.6
    if epochs != "auto":
        again = train_mixture(config, dataset, None, MixtureSettings(2, gate_hidden=8))
        np.testing.assert_array_equal(again[1].items, neighbours.items)
    neighbours.write(tmp_path)
    np.testing.assert_array_equal(Neighbours.read(tmp_path).scores, neighbours.scores)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"heads": [{"name": "engagement"}, {"name": "other"}]}, "set model.heads to one head that learns"),
        ("model", {"heads": [{"name": "engagement", "relevance_weight": 0.5}]}, "set model.heads to one head"),
        ("model", {"id_tables": {"item_id": {"rows": 96}}}, r"set model.id_tables to \{\}"),
        ("loss", {"log_q": "streaming"}, "set loss.log_q to counts or none"),
        ("training", {"optimizer": "rowwise_adagrad"}, "set training.optimizer to adagrad"),
        ("training", {"warmup_steps": 3}, "set training.warmup_steps to 0"),
    ],
)
def test_settings_that_the_loop_does_not_know_are_refused(
    config: Config, section: str, changes: dict[str, Any], message: str
) -> None:
    settings = config.model_dump(mode="json")
    settings[section] |= changes
    with pytest.raises(ValueError, match=message):
        train_mixture(
            Config.model_validate(settings), open_dataset(config.dataset_dir), None, MixtureSettings(2, gate_hidden=8)
        )
