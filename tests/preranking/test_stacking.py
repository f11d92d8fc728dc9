"""Learning how evidence is combined: what foretells gets the weight, what does not gets none."""

from __future__ import annotations

import numpy as np
import torch

from mtmh.preranking.stacking import Judged, fit_combination


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
