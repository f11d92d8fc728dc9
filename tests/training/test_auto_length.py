"""`epochs: auto`: the length is found on the end of T1, in runs that can be killed, and used on all of it."""

from pathlib import Path

import pytest
import torch
from synthetic_dataset import random_histories, write_dataset
from tiny_run import state_of, tiny_config

from mtmh.artifacts import open_artifact
from mtmh.config import Config
from mtmh.training.early_stopping import EarlyStopping, read_validation_curve
from mtmh.training.newest import VALIDATION
from mtmh.training.trainer import train

MODEL = {"heads": [{"name": "engagement"}]}


def config_of(root: Path, name: str, **training: object) -> Config:
    settings = {"epochs": "auto", "max_epochs": 4, "patience": 2} | training
    return tiny_config(root, name, model=MODEL, training=settings)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "dataset", random_histories(60, num_items=200), num_items=200, test={3: [1, 2]})
    return tmp_path


def test_the_best_length_is_trained_on_all_of_t1(root: Path) -> None:
    config = config_of(root, "auto", final="retrain")
    checkpoint = train(config)
    artifact = open_artifact(checkpoint, "checkpoint")
    curve = read_validation_curve(config.model_dir("checkpoints") / VALIDATION)
    highest = max(point.measured["score"] for point in curve)
    best = next(point for point in curve if point.measured["score"] >= highest / 1.01)
    found = artifact.summary["validation"]
    assert [point["step"] for point in found["curve"]] == [point.step for point in curve]
    assert found["best"]["step"] == best.step
    # A run of just so many steps on all of T1, without a choice, is the same.
    plain = train(config_of(root, "plain", max_steps=artifact.summary["step"]))
    expected = state_of(plain)
    for name, value in state_of(checkpoint).items():
        assert torch.equal(value, expected[name]), name


def test_the_best_model_trains_on_with_all_of_t1(root: Path) -> None:
    config = config_of(root, "goes-on", final="continue")
    checkpoint = train(config)
    artifact = open_artifact(checkpoint, "checkpoint")
    best = artifact.summary["validation"]["best"]
    first = config.model_dir("checkpoints") / VALIDATION / f"step-{best['step']:08d}"
    # As a run of just so many steps that continues from that checkpoint by hand.
    by_hand = config_of(root, "by-hand", max_steps=artifact.summary["step"], continuation={"check_period": False})
    expected = state_of(train(by_hand, continue_from=first))
    for name, value in state_of(checkpoint).items():
        assert torch.equal(value, expected[name]), name
    assert train(config) == checkpoint


def test_a_run_killed_while_it_is_measured_finds_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config_of(root, "whole"))
    measure, config = EarlyStopping.__call__, config_of(root, "killed")
    looks = 0

    def killed(self: EarlyStopping, step: int) -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt
        return measure(self, step)

    monkeypatch.setattr(EarlyStopping, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(EarlyStopping, "__call__", measure)
    resumed = train(config)
    assert (
        open_artifact(resumed, "checkpoint").summary["validation"]
        == (open_artifact(whole, "checkpoint").summary["validation"])
    )
    expected = state_of(whole)
    for name, value in state_of(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_the_best_model_of_the_first_run_can_be_kept(root: Path) -> None:
    config = config_of(root, "kept", final="keep")
    checkpoint = train(config)
    best = open_artifact(checkpoint, "checkpoint").summary["validation"]["best"]["step"]
    expected = state_of(config.model_dir("checkpoints") / VALIDATION / f"step-{best:08d}")
    for name, value in state_of(checkpoint).items():
        assert torch.equal(value, expected[name]), name
    assert train(config) == checkpoint
    with pytest.raises(ValueError, match=r"training.final was keep, is auto"):
        train(config_of(root, "kept"))


@pytest.mark.parametrize(("held_back", "kept"), [(3, True), (60, False)])
def test_the_model_trains_on_where_much_was_held_back(root: Path, held_back: int, kept: bool) -> None:
    config = config_of(root, f"held-{held_back}", max_epochs=2)
    config = config.model_copy(update={"validation": config.validation.model_copy(update={"num_users": held_back})})
    checkpoint = train(config)
    best = open_artifact(checkpoint, "checkpoint").summary["validation"]["best"]["step"]
    first = state_of(config.model_dir("checkpoints") / VALIDATION / f"step-{best:08d}")
    equal = [torch.equal(value, first[name]) for name, value in state_of(checkpoint).items()]
    assert all(equal) == kept


def test_a_continued_run_is_trained_again_as_well(root: Path) -> None:
    before = train(config_of(root, "before", max_steps=3))
    config = config_of(root, "continued", max_epochs=2, final="retrain", continuation={"check_period": False})
    checkpoint = train(config, continue_from=before)
    best = open_artifact(checkpoint, "checkpoint").summary["validation"]["best"]["step"]
    first = state_of(config.model_dir("checkpoints") / VALIDATION / f"step-{best:08d}")
    assert not all(torch.equal(value, first[name]) for name, value in state_of(checkpoint).items())
