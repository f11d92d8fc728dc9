"""Training of sequence models: pieces of histories, the loss against its plain formula, neighbours that are learned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from mtmh.modules.hstu import Hstu
from mtmh.modules.sasrec import SasRec
from mtmh.modules.sequence_model import build_item_collection
from synthetic_dataset import shelf_histories, write_dataset
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.data.dataset import Dataset
from mtmh.papers.sequence_model import (
    Pieces,
    SequenceSettings,
    fit_sequence_model,
    next_item_loss,
    train_sequence_model,
)

NUM_ITEMS, SHELF = 100, 20


@pytest.fixture(name="dataset")
def fixture_dataset(tmp_path: Path) -> Dataset:
    """Each user keeps to one shelf of 20 items; the last shelf stays fresh."""
    histories = shelf_histories(NUM_ITEMS, SHELF, shortest=1)
    times = [list(range(100, 100 + len(history))) for history in histories]
    return write_dataset(tmp_path / "dataset", histories, num_items=NUM_ITEMS, timestamps=times)


def test_long_histories_are_cut_from_their_end() -> None:
    pieces = Pieces(np.arange(9), np.arange(9), np.array([0, 1, 4, 7, 9]))
    batches = list(pieces.batches(2, np.array([3, 0, 1, 2])))
    assert [history.lengths().tolist() for history, _ in batches] == [[2, 3], [3]]  # one event teaches nothing
    assert batches[0][0].values().tolist() == [7, 8, 1, 2, 3]
    assert batches[0][1].tolist() == [[7, 8, 0], [1, 2, 3]]


def test_pieces_of_a_dataset_hold_every_event_once(dataset: Dataset) -> None:
    pieces = Pieces.read(dataset, 7)
    lengths = dataset.history_reader().lengths
    assert (len(pieces.rows), pieces.offsets[-1]) == (lengths.sum(), lengths.sum())
    assert np.diff(pieces.offsets).max() == 7
    assert len(pieces.offsets) - 1 == sum(math.ceil(length / 7) for length in lengths)
    assert np.isin(np.cumsum(lengths), pieces.offsets).all()


@pytest.mark.parametrize("kind", [Hstu, SasRec])
def test_the_loss_is_the_sampled_softmax_of_the_next_item(kind: type[Hstu] | type[SasRec]) -> None:
    torch.manual_seed(0)
    model = kind(build_item_collection(12, 8), 8, max_length=4, num_layers=1)
    lists = [[3, 1, 4], [9], [2, 6]]
    history = KeyedJaggedTensor(
        keys=["item_id"], values=torch.tensor([row for rows in lists for row in rows]), lengths=torch.tensor([3, 1, 2])
    )
    times = torch.tensor([[0, 5, 9], [2, 0, 0], [1, 2, 0]])
    negatives = torch.tensor([1, 7, 6, 11])
    found = next_item_loss(model, history, times, negatives, temperature=0.1)

    states = model(history, times).detach().double()
    table = model.items.state_dict()["embeddings.item_id.weight"].double()
    unit = table / table.norm(dim=1, keepdim=True)
    losses = []
    for user, rows in enumerate(lists):
        for place, row in enumerate(rows[1:]):
            others = [other for other in negatives.tolist() if other != row]
            logits = [float(states[user, place] @ unit[item]) / 0.1 for item in (row, *others)]
            losses.append(math.log(sum(map(math.exp, logits))) - logits[0])
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert len(losses) == 3


@pytest.mark.parametrize("kind", ["hstu", "sasrec"])
def test_items_that_follow_each_other_come_to_lie_together(dataset: Dataset, kind: Literal["hstu", "sasrec"]) -> None:
    epochs = {"hstu": 20, "sasrec": 80}[kind]  # the transformer begins with layers that say more than the items
    settings = SequenceSettings(
        kind, dim=8, num_negatives=40, seed=0, epochs=epochs, min_steps=0, batch_pieces=16, learning_rate=0.01
    )
    vectors = train_sequence_model(dataset, settings)
    assert vectors.shape == (NUM_ITEMS, 8)
    known = np.flatnonzero(dataset.item_table.train_count > 0)
    shelf = known // SHELF
    cosines = vectors[known] @ vectors[known].T
    same = (shelf[:, None] == shelf[None, :]) & ~np.eye(len(known), dtype=bool)
    assert cosines[same].mean() > cosines[~same].mean() + 0.2
    again = train_sequence_model(dataset, settings)
    np.testing.assert_array_equal(vectors, again)
    fresh = np.flatnonzero(dataset.item_table.train_count == 0)
    assert np.ptp(vectors[fresh], axis=0).max() == 0.0  # nothing is known of them


@pytest.mark.parametrize(("epochs", "min_steps", "passes"), [(1, 5, 3), (4, 5, 4)])
def test_few_histories_are_passed_over_more_often(
    capsys: pytest.CaptureFixture[str], epochs: int, min_steps: int, passes: int
) -> None:
    pieces = Pieces(np.arange(1, 10), np.arange(9), np.array([0, 1, 4, 7, 9]))  # three of two events and more
    settings = SequenceSettings(
        "sasrec", dim=4, num_negatives=2, seed=0, epochs=epochs, min_steps=min_steps, batch_pieces=2
    )
    fit_sequence_model(pieces, 10, settings)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"epoch {passes}/{passes}  loss")


def test_histories_of_single_events_are_refused() -> None:
    pieces = Pieces(np.arange(1, 4), np.arange(3), np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="no history has two events"):
        fit_sequence_model(pieces, 10, SequenceSettings("sasrec", dim=4, num_negatives=2, seed=0))
