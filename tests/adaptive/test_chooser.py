"""Choices, feedback and their log: nothing counts twice, nothing is lost in a restart, bounds are kept."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtmh.adaptive import chooser as chooser_module
from mtmh.adaptive.chooser import AlphaChooser, UnknownRequestError
from mtmh.adaptive.features import FEATURES, RequestFeatures
from mtmh.adaptive.journal import Journal
from mtmh.adaptive.off_policy import values_of_alphas
from mtmh.config import AdaptiveAlphaConfig

SETTINGS = AdaptiveAlphaConfig(alphas=[20, 50, 80], explore=0.3, memory=1000)


def features(popularity: float = 0.5) -> np.ndarray:
    return np.array([1.0, popularity, 0.2, 0.0, 0.0])


def fill(chooser: AlphaChooser, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        alpha = chooser.draw(f"r{number}", features(number % 3 / 3))
        chooser.feed(f"r{number}", 0.2 if alpha == 80 else 0.1)


def test_it_learns_and_a_restart_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "feedback.sqlite"
    chooser = AlphaChooser(SETTINGS, file, seed=0)
    assert chooser.summary().reward is None
    fill(chooser, 300)
    chooser.draw("waiting", features())
    before = chooser.summary()
    assert (before.num_feedback, sum(before.chosen)) == (300, 301)
    assert before.chosen[2] > 150
    assert [set(values) for values in before.values] == [{"ips", "snips", "dr"}] * 3
    assert before.values[2]["snips"].value == pytest.approx(0.2)
    assert before.values[0]["snips"].value == pytest.approx(0.1)
    chooser.close()

    again = AlphaChooser(SETTINGS, file, seed=0)
    after = again.summary()
    assert (after.num_feedback, after.reward, sum(after.chosen)) == (300, pytest.approx(before.reward), 0)
    for old, new in zip(before.values, after.values, strict=True):
        assert new["dr"].value == pytest.approx(old["dr"].value, rel=1e-9)
    assert again.feed("waiting", 0.5)
    assert not again.feed("r299", 1.0)
    assert again.summary().num_feedback == 301
    again.close()


def test_feedback_counts_once_and_needs_a_choice(tmp_path: Path) -> None:
    chooser = AlphaChooser(SETTINGS, tmp_path / "feedback.sqlite", seed=0)
    with pytest.raises(UnknownRequestError, match="no alpha was chosen for request r0"):
        chooser.feed("r0", 0.5)
    chooser.draw("r0", features())
    assert chooser.feed("r0", 0.5)
    assert not chooser.feed("r0", 1.0)
    assert chooser.summary().reward == 0.5
    chooser.draw("r0", features())  # a client that uses its id again
    assert not chooser.feed("r0", 1.0)
    chooser.close()


def test_late_feedback_is_refused_and_old_one_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS.model_copy(update={"memory": 50, "expire_minutes": 10.0})
    file = tmp_path / "feedback.sqlite"
    now = 1_000_000.0
    monkeypatch.setattr("mtmh.adaptive.chooser.time.time", lambda: now)
    chooser = AlphaChooser(settings, file, seed=0)
    chooser.draw("early", features())
    chooser.save()
    now += 601.0
    fill(chooser, 120)
    with pytest.raises(UnknownRequestError, match="10 minutes"):
        chooser.feed("early", 1.0)
    assert chooser.summary().num_feedback == 50
    chooser.close()
    journal = Journal(file, FEATURES)
    assert [request_id for request_id, _, _ in journal.rewarded(1000)] == [f"r{number}" for number in range(70, 120)]
    assert journal.waiting(0.0) == {}
    journal.close()


def test_choices_that_nobody_told_of_leave_the_log_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"expire_minutes": 10.0})
    file, now = tmp_path / "feedback.sqlite", 1_000_000.0
    monkeypatch.setattr("mtmh.adaptive.chooser.time.time", lambda: now)
    for request_id, later in (("old", 590.0), ("new", 20.0), ("newest", 0.0)):
        chooser = AlphaChooser(settings, file, seed=0)
        chooser.draw(request_id, features())
        chooser.close()
        now += later
    journal = Journal(file, FEATURES)
    assert list(journal.waiting(0.0)) == ["new", "newest"]
    journal.close()


def test_a_log_that_cannot_be_written_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "feedback.sqlite"
    chooser = AlphaChooser(SETTINGS, file, seed=0)
    fill(chooser, 10)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "save", full)
        with pytest.raises(sqlite3.OperationalError):
            chooser.save()
    fill(chooser, 5, start=10)
    chooser.close()
    again = AlphaChooser(SETTINGS, file, seed=0)
    assert again.summary().num_feedback == 15
    again.close()


def test_feedback_is_taken_while_a_summary_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = AlphaChooser(SETTINGS, tmp_path / "feedback.sqlite", seed=0)
    fill(chooser, 30)
    estimate = values_of_alphas

    def slow(*arguments: Any) -> Any:
        other = threading.Thread(target=fill, args=(chooser, 20, 30), daemon=True)
        other.start()
        other.join(20.0)
        assert not other.is_alive()
        return estimate(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(chooser_module, "values_of_alphas", slow)
        before = chooser.summary()
    assert (before.num_feedback, sum(before.chosen)) == (30, 30)
    assert chooser.summary().num_feedback == 50
    chooser.close()


def test_alphas_that_are_no_choice_any_more_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "feedback.sqlite"
    chooser = AlphaChooser(SETTINGS, file, seed=0)
    fill(chooser, 60)
    dropped = chooser.summary().chosen[0]
    chooser.close()
    fewer = AlphaChooser(SETTINGS.model_copy(update={"alphas": [50.0, 80.0]}), file, seed=0)
    assert dropped > 0
    assert fewer.summary().num_feedback == 60 - dropped
    assert {fewer.draw(f"n{number}", features()) for number in range(50)} == {50.0, 80.0}
    fewer.close()


def test_a_log_in_use_or_of_other_features_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "feedback.sqlite"
    chooser = AlphaChooser(SETTINGS, file, seed=0)
    with pytest.raises(ValueError, match=r"feedback.sqlite: .*locked.*adaptive_alpha.file"):
        AlphaChooser(SETTINGS, file)
    chooser.close()
    with pytest.raises(ValueError, match="move the file away"):
        Journal(file, ["constant", "weather"])
    (tmp_path / "other").write_text("no database " * 100)
    with pytest.raises(ValueError, match="not a database"):
        AlphaChooser(SETTINGS, tmp_path / "other")


@pytest.mark.parametrize("alphas", [[50], [50, 50], [70, 30], [30, 101]])
def test_alphas_are_at_least_two_in_order(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match="alphas"):
        AdaptiveAlphaConfig(alphas=alphas)


def test_features_of_requests() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    counts = np.arange(40)
    alike = RequestFeatures({"engagement": vectors, "relevance": vectors}, counts)
    named = dict(zip(FEATURES, alike.of(np.array([39])), strict=True))
    assert named == pytest.approx({"constant": 1, "popularity": 1, "agreement": 1, "length": 0, "spread": 0}, abs=1e-6)
    several = dict(zip(FEATURES, alike.of(np.array([0, 5, -1, 7, 99])), strict=True))
    assert several["popularity"] == pytest.approx(np.log1p(np.array([0, 5, 7]) / 19.5).mean() / np.log1p(39 / 19.5))
    assert several["spread"] == pytest.approx(1 - np.linalg.norm(vectors[[0, 5, 7]].mean(axis=0)))
    assert several["length"] == pytest.approx(np.log(3) / np.log(500))
    opposed = RequestFeatures({"engagement": vectors, "relevance": -vectors}, counts)
    assert opposed.of(np.array([0, 5]))[2] == pytest.approx(1.0)  # a turned space has the same similarities
    other = RequestFeatures({"engagement": vectors, "relevance": np.roll(vectors, 7, axis=0)}, counts)
    assert other.of(np.arange(40))[2] < 0.4
    assert alike.of(np.array([-1])).tolist() == [1, 0, 0, 0, 0]
    assert RequestFeatures({"engagement": vectors}, 10 * counts).of(np.array([3]))[2] == 0.0
    np.testing.assert_allclose(
        RequestFeatures({"e": vectors, "r": vectors}, 10.0 * counts).of_users([np.array([1, 2])])[0],
        alike.of(np.array([1, 2])),
    )
