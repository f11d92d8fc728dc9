"""An alpha for each user: learned where there is something to learn, measured against fixed alphas of equal match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_dataset import make_config

from mtmh.papers.adaptive import compare, measure_adaptive, read_adaptive
from mtmh.papers.alpha_policy import ALPHAS, FIXED, Outcomes, Policy, fixed_at_match, most_recall
from mtmh.papers.claims import judge_adaptive
from mtmh.papers.page import Page, html, markdown
from mtmh.papers.tables import adaptive_tables

SCALED = np.array(ALPHAS) / 50 - 1


def simulated(num_users: int, gain: float, seed: int) -> Outcomes:
    """Users whose best alpha follows their second feature, by so much; match falls with alpha, for all alike."""
    rng = np.random.default_rng(seed)
    features = np.concatenate([np.ones((num_users, 1)), rng.normal(size=(num_users, 2))], axis=1)
    wanted = np.clip(0.6 * features[:, 1], -1, 1)
    recall = 0.4 - gain * (SCALED[None, :] - wanted[:, None]) ** 2 + 0.05 * rng.normal(size=(num_users, 1))
    recall = recall + 0.02 * rng.normal(size=recall.shape)
    pairs = np.full(recall.shape, 300.0)
    return Outcomes(features, recall, np.round(pairs * (0.5 - 0.2 * SCALED)), pairs)


def test_a_policy_learns_whose_alpha_differs_and_keeps_the_match() -> None:
    fitted, measured = simulated(3000, 0.1, seed=0), simulated(3000, 0.1, seed=1)
    found = compare(fitted, measured, 500, seed=0)
    policy = Policy.fit(fitted)
    high, low = (policy.choose(np.array([[1.0, value, 0.0]]))[0] for value in (1.5, -1.5))
    assert ALPHAS[high] > 65
    assert ALPHAS[low] < 35
    assert found.match.value == pytest.approx(measured.match_of(np.full(3000, ALPHAS.index(FIXED))), abs=0.01)
    assert found.above_frontier.low > 0.01
    assert found.above_best.low > 0.01
    assert found.oracle_above_frontier.value >= found.above_frontier.value
    assert sum(found.alphas) == pytest.approx(1)
    assert found.recall.value - found.above_frontier.value == pytest.approx(
        fixed_at_match(measured, found.match.value).mean(), abs=1e-9
    )


def test_where_nothing_is_to_be_learned_nothing_is_gained() -> None:
    found = compare(simulated(3000, 0.0, seed=0), simulated(3000, 0.0, seed=1), 500, seed=0)
    assert abs(found.above_frontier.value) < 0.005
    assert found.oracle_above_frontier.low > 0.005  # hindsight finds the noise


def test_the_page_shows_every_alpha_and_what_is_gained() -> None:
    found = [compare(simulated(2000, 0.1, seed=seed), simulated(2000, 0.1, seed=9), 500, seed=0) for seed in (0, 1)]
    assert adaptive_tables([], []) == judge_adaptive([]) == []
    (table,) = adaptive_tables(found, ["python -m mtmh.papers.adaptive synthetic+paper"])
    assert [line[0] for line in table.lines[:2]] == ["alpha = 0 for all, here", "alpha = 10 for all, here"]
    assert [line[0] for line in table.lines[-2:]] == [
        "an alpha for each user, here", "the best alpha of each user in hindsight, here"
    ]  # fmt: skip
    mean = 100 * np.mean([of_seed.recall.value for of_seed in found])
    assert table.lines[-2][1].startswith(f"{mean:.2f} ±")
    claims = judge_adaptive(found)
    assert [claim.verdict for claim in claims] == ["holds", "holds"]
    assert claims[0].difference.num_seeds == 2
    page = Page(title="", facts=[], command="", tables=[table], figures=[], claims=claims)
    assert "an alpha for each user is above fixed alphas of equal match in recall@500" in markdown(page)
    assert "an alpha for each user, here" in html(page)


def test_fixed_alphas_are_mixed_to_a_match() -> None:
    outcomes = simulated(50, 0.1, seed=0)
    matches = [outcomes.match_of(np.full(50, arm)) for arm in range(len(ALPHAS))]
    np.testing.assert_allclose(fixed_at_match(outcomes, matches[3]), outcomes.recall[:, 3])
    halfway = fixed_at_match(outcomes, (matches[3] + matches[4]) / 2)
    np.testing.assert_allclose(halfway, outcomes.recall[:, 3:5].mean(axis=1))
    np.testing.assert_allclose(fixed_at_match(outcomes, 0.99), outcomes.recall[:, int(np.argmax(matches))])


def test_hindsight_has_at_least_the_match_that_is_asked_for() -> None:
    outcomes = simulated(400, 0.1, seed=2)
    for match in (0.35, 0.5, 0.65):
        assert outcomes.match_of(most_recall(outcomes.recall, outcomes, match)) >= match - 1e-9
    free = most_recall(outcomes.recall, outcomes, 0.0)
    assert (free == outcomes.recall.argmax(axis=1)).all()


def test_a_recipe_without_a_held_back_end_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert not config.training.chooses_length
    with pytest.raises(ValueError, match="epochs = auto"):
        measure_adaptive(config)


@pytest.mark.slow
def test_a_whole_measurement_and_again_without_training(tmp_path: Path) -> None:
    from mtmh.config import load_config

    config = load_config(
        "synthetic+paper",
        [
            f"paths.root={tmp_path}",
            "name=adaptive",
            "data.options.num_users=150",
            "data.options.num_items=520",
            "data.options.num_events=5000",
            "model.embedding_dim=16",
            "model.head_dim=16",
            "training.max_epochs=1",
            "evaluation.num_users=60",
            "evaluation.recall_at=[20]",
            "retrieval.k_ann=60",
        ],
    )
    path = measure_adaptive(config)
    found = read_adaptive(path)
    assert list(found.fixed) == list(ALPHAS)
    assert found.recall_at == 20
    assert 0 < found.recall.value < 1
    assert found.fixed[0.0][1].value != found.fixed[100.0][1].value
    written = path.stat().st_mtime_ns
    assert measure_adaptive(config) == path
    assert path.stat().st_mtime_ns == written
