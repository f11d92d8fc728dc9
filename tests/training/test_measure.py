"""Recall on held-back items against lists made plainly, one user at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_dataset import random_histories, write_dataset
from torch import Tensor
from torch.nn import functional

from mtmh.config import ValidationConfig
from mtmh.data.validation import ValidationDataset
from mtmh.distributed.ranks import join_ranks
from mtmh.training import measure as module
from mtmh.training.measure import NUM_TRIGGERS, ValidationMeasure

NUM_ITEMS = 60
HEADS = ["engagement", "relevance", "third"]


def vectors_of(num_heads: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        head: functional.normalize(torch.randn(NUM_ITEMS, 4, generator=generator), dim=1) for head in HEADS[:num_heads]
    }


def plain_list(by_head: list[Tensor], triggers: list[int], seen: set[int], length: int) -> list[int]:
    """Quotas filled head by head from the best unseen items, then sorted by the first head."""
    scores = [(rows[triggers] @ rows.T).amax(dim=0).tolist() for rows in by_head]
    rankings = [sorted(set(range(NUM_ITEMS)) - seen, key=lambda item, row=row: -row[item]) for row in scores]
    half = length // 2 if len(by_head) > 1 else 0
    quotas = [length - half] + [half // max(1, len(by_head) - 1)] * (len(by_head) - 1)
    taken: list[int] = []
    for ranking, quota in zip(rankings, quotas, strict=True):
        taken += [item for item in ranking if item not in taken][:quota]
    return sorted(taken, key=lambda item: -scores[0][item])


@pytest.mark.parametrize("num_heads", [1, 2, 3])
@pytest.mark.parametrize("block", [1 << 24, 200])
def test_recall_is_that_of_lists_made_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_heads: int, block: int
) -> None:
    monkeypatch.setattr(module, "CUTS", (5, 20))
    monkeypatch.setattr(module, "_BLOCK_SCORES", block)
    dataset = write_dataset(tmp_path / "dataset", random_histories(40), num_items=NUM_ITEMS)
    view = ValidationDataset(dataset, ValidationConfig(fraction=0.4), seed=0)
    vectors = vectors_of(num_heads)
    with join_ranks("cpu") as ranks:
        measure = ValidationMeasure(view, 1000, 0, ranks)
        found = measure(lambda items: {head: rows[items] for head, rows in vectors.items()})
    users = view.evaluation_users(1000, 0)
    recalls = []
    for user in range(len(users.user_index)):
        history = users.histories.users(user, user + 1).items.tolist()
        wanted = set(users.test.users(user, user + 1).items.tolist()) - set(history)
        if wanted:
            listed = plain_list(list(vectors.values()), history[-NUM_TRIGGERS:], set(history), 20)
            recalls.append([len(wanted & set(listed[:cut])) / len(wanted) for cut in (5, 20)])
    assert len(recalls) > 10
    assert [found["recall@5"], found["recall@20"]] == pytest.approx(np.mean(recalls, axis=0))
    assert found["score"] == pytest.approx(float(np.exp(np.log(np.mean(recalls, axis=0) + 1e-4).mean())))


def test_a_large_catalogue_is_measured_on_a_sample_with_all_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_ITEMS", 5)
    dataset = write_dataset(tmp_path / "dataset", random_histories(8), num_items=NUM_ITEMS)
    view = ValidationDataset(dataset, ValidationConfig(fraction=0.2), seed=0)
    vectors = vectors_of(2)
    with join_ranks("cpu") as ranks:
        measure = ValidationMeasure(view, 3, 0, ranks)
        found = measure(lambda items: {head: rows[items] for head, rows in vectors.items()})
    users = view.evaluation_users(3, 0)
    assert len(measure.items) < NUM_ITEMS
    assert set(users.test.items.tolist()) <= set(measure.items.tolist())
    assert found["recall@500"] == 1.0, "a list as long as the sample holds every answer"


def test_measurements_come_by_epochs_by_events_and_by_cost(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_histories(40), num_items=NUM_ITEMS)
    view = ValidationDataset(dataset, ValidationConfig(fraction=0.4), seed=0)
    events = view.summary.num_train_events
    assert events > 100
    with join_ranks("cpu") as ranks:
        measure = ValidationMeasure(view, 1000, 0, ranks)
        assert measure.interval(40, 2, 10_000_000) == 10, "a quarter of an epoch"
        assert measure.interval(1_000_000, 1, 10_000_000) == 2 * events, "long histories make an epoch of many pairs"
        assert measure.interval(1_000_000, 10_000, 10_000_000) == 200, "a few steps show chance alone"
        assert measure.interval(8, 1, 0) == 8, "dear beside a step: once an epoch"
