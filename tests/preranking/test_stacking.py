"""Learning how evidence is combined: what foretells gets the weight, what does not gets none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mtmh.modules.combination import Combination
from mtmh.modules.preranker import UserTower
from synthetic_dataset import random_histories, write_dataset

from mtmh.config import PrerankerConfig, ValidationConfig
from mtmh.data.validation import ValidationDataset
from mtmh.preranking.forward import UserQueries
from mtmh.preranking.scorer import Scorer
from mtmh.preranking.stacking import Judged, fit_combination, judged_candidates


def planted(num_users: int, seed: int, spread: float = 5.0) -> Judged:
    """Candidates of which those with much of the second kind of evidence are held out; the others are noise."""
    rng = np.random.default_rng(seed)
    evidence = rng.normal(size=(num_users, 30, 3)).astype(np.float32)
    evidence[:, :, 1] += spread * rng.normal(size=(num_users, 1))  # differs among users, which must not matter
    present = np.ones((num_users, 30), bool)
    present[::3, 20:] = False
    place = np.where(present, evidence[:, :, 1] + rng.gumbel(size=(num_users, 30)) * 0.3, -np.inf).argmax(axis=1)
    held_out = np.zeros((num_users, 30), bool)
    held_out[np.arange(num_users), place] = True
    evidence[~present] = np.nan
    return Judged(evidence, held_out, present, np.ones(num_users, np.int64), ["noise", "signal", "other noise"])


def test_evidence_that_foretells_decides() -> None:
    model = fit_combination(planted(400, 1), 0, seed=0)
    weights = model.linear.weight.detach()[0].abs()
    assert weights[1] > 10.0 * max(weights[0], weights[2])
    fresh = planted(200, 2)
    best = np.where(fresh.present, fresh.evidence[:, :, 1], -np.inf).argmax(axis=1)
    by_signal = fresh.held_out[np.arange(200), best].mean()
    assert by_signal > 0.5
    for hidden in (0, 8):
        model = fit_combination(planted(400, 1), hidden, seed=0)
        with torch.no_grad():
            logits = model(torch.from_numpy(fresh.evidence))
        first = np.where(fresh.present, logits.numpy(), -np.inf).argmax(axis=1)
        assert fresh.held_out[np.arange(200), first].mean() > 0.95 * by_signal
        masked = logits.masked_fill(~torch.from_numpy(fresh.present), -torch.inf)
        assert abs(float(masked.logsumexp(dim=1).mean())) < 2.0


def test_users_that_are_drawn_again_in_a_step_count_as_often() -> None:
    judged = planted(20, 1)
    inputs, held_out, shown = (torch.from_numpy(array) for array in (judged.evidence, judged.held_out, judged.present))
    inputs = inputs.double().masked_fill(~shown[:, :, None], 0.0)
    torch.manual_seed(0)
    naive = Combination(3, 4).double()
    naive.standardise(inputs[shown])
    optimizer = torch.optim.Adam(naive.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 300)
    draws = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(20, generator=draws) for _ in range(1920)]).reshape(300, 128)
    for step in order:  # each draw computed by itself
        logits = naive(inputs[step]).masked_fill(~shown[step], -torch.inf)
        one = held_out[step]  # of each user one item is held out, so the loss is a softmax over all candidates
        losses = logits.logsumexp(dim=1) - logits[one]
        squares = sum(parameter.square().sum() for parameter in naive.parameters())
        optimizer.zero_grad()
        (losses.mean() + 5.0 / 20 * squares).backward()
        optimizer.step()
        schedule.step()
    found = fit_combination(judged, 4, seed=0)(inputs.float()).detach()
    expected = naive(inputs).detach()
    expected -= expected.masked_fill(~shown, -torch.inf).logsumexp(dim=1).mean()
    torch.testing.assert_close(found[shown].double(), expected[shown], atol=1e-4, rtol=0.0)


def test_few_users_are_not_learned_by_heart() -> None:
    def with_noise(judged: Judged, seed: int) -> Judged:
        noise = np.random.default_rng(seed).normal(size=(*judged.present.shape, 12)).astype(np.float32)
        evidence = np.concatenate([judged.evidence, noise], axis=2)
        return judged._replace(evidence=evidence, names=[*judged.names, *(f"noise {n}" for n in range(12))])

    fresh = with_noise(planted(400, 2, 0.5), 3)
    found = []
    for seed in range(4):
        model = fit_combination(with_noise(planted(20, 10 + seed, 0.5), 20 + seed), 16, seed=seed)
        with torch.no_grad():
            logits = model(torch.from_numpy(fresh.evidence)).numpy()
        first = np.where(fresh.present, logits, -np.inf).argmax(axis=1)
        found.append(fresh.held_out[np.arange(400), first].mean())
    by_signal = np.where(fresh.present, fresh.evidence[:, :, 1], -np.inf).argmax(axis=1)
    assert np.mean(found) > 0.75 * fresh.held_out[np.arange(400), by_signal].mean()


def test_without_anything_held_out_the_model_decides() -> None:
    judged = planted(20, 1)
    model = fit_combination(judged._replace(held_out=np.zeros_like(judged.held_out)), 8, seed=0)
    torch.testing.assert_close(model(torch.tensor([2.0, 9.0, -4.0])), torch.tensor(2.0))


@pytest.mark.parametrize("at_one_instant", [True, False])
def test_what_was_not_there_was_passed_over_by_nobody(tmp_path: Path, at_one_instant: bool) -> None:
    # Items 50 to 59 have no event in T1: after an instant they may be newer than it.
    histories = random_histories(40, num_items=60)
    times = [[4000 // len(history) * place for place in range(len(history))] for history in histories]
    dataset = write_dataset(tmp_path / "data", histories, timestamps=times if at_one_instant else None, num_items=60)
    view = ValidationDataset(dataset, ValidationConfig(fraction=0.4), seed=0)
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tower = UserQueries.of(UserTower(4, [4], 0.1, [0.0]))
    scorer = Scorer(np.concatenate([vectors, np.zeros((60, 1), np.float32)], axis=1), tower, [], 10)
    judged = judged_candidates(PrerankerConfig(neighbours=5), view, scorer, {"engagement": vectors}, seed=0)
    users = view.evaluation_users(2000, 0)
    seen = np.array([len(np.unique(users.histories.users(row, row + 1).items)) for row in range(len(users.user_index))])
    known = int((dataset.item_table.train_count > 0).sum())
    assert len(seen) > 10
    assert known <= 50
    np.testing.assert_array_equal(judged.present.sum(axis=1), (known if at_one_instant else 60) - seen)
