"""Runs of a benchmark are found again by their settings, and by no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import one_run
from benchmarks.run_folders import run_name, shared_folders
from mtmh.artifacts import write_artifact
from mtmh.config import load_config


class RunError(Exception):
    """A verb was started."""


def test_a_name_follows_from_what_decides_a_run_and_from_nothing_else() -> None:
    plain = run_name("mtmh", load_config("synthetic"))
    assert plain == run_name("mtmh", load_config("synthetic", ["service.port=9999", "name=other"]))
    changes = ["training.epochs=9", "loss.num_uniform_negatives=7", "evaluation.num_users=11", "retrieval.k=3"]
    names = [run_name("mtmh", load_config("synthetic", [change])) for change in changes]
    assert len({plain, run_name("mtmh", load_config("synthetic"), training_seed=1), *names}) == 6


def test_shared_folders_follow_from_the_data_alone() -> None:
    plain, epochs, items = (
        shared_folders(load_config("synthetic", [change]))
        for change in ("seed=0", "training.epochs=9", "data.options.num_items=500")
    )
    assert plain == epochs
    assert not set(plain) & set(items)
    named = shared_folders(load_config("synthetic", ["paths.dataset=/somewhere/data"]))
    assert named == ["paths.dataset=/somewhere/data", plain[1]]


def test_a_run_of_another_configuration_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*words: object) -> None:
        raise RunError(words)

    monkeypatch.setattr(results, "verb", started)
    shared = [f"paths.root={tmp_path}"]
    name = run_name("mtmh-seed0", load_config("synthetic", shared), training_seed=0)
    with write_artifact(tmp_path / name / "evaluation", "evaluation", config={}) as writer:
        (writer.folder / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="Field required"):  # the run that is there is read, and is none
        one_run("synthetic", "mtmh", 0, shared, jobs=1)
    for seed, more in ((0, ["training.epochs=9"]), (1, [])):
        with pytest.raises(RunError, match="train"):
            one_run("synthetic", "mtmh", seed, [*shared, *more], jobs=1)
