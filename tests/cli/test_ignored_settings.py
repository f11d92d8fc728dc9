"""A setting on the command line that the verb would not heed is refused; all others pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_config, write_inputs

from mtmh.artifacts import open_artifact, write_artifact
from mtmh.cli.ignored_settings import load_for
from mtmh.config import decisive


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe whose dataset, teacher and checkpoint are there."""
    write_inputs(tmp_path)
    config = tiny_config(tmp_path)
    inputs = {"dataset": open_artifact(tmp_path / "dataset", "dataset")}
    made = config.model_dump(mode="json")
    checkpoint = config.model_dir("checkpoints") / "step-00000002"
    checkpoint.parent.mkdir(parents=True)
    with write_artifact(checkpoint, "checkpoint", config=made, decisive=decisive(config, "checkpoint"), inputs=inputs):
        pass
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return str(path)


def test_what_an_earlier_stage_decided_is_refused(recipe: str) -> None:
    with pytest.raises(ValueError, match=r"--set model\.head_dim: would be ignored\. .*head_dim = 8; mtmh train heeds"):
        load_for("embed", recipe, ["model.head_dim=32"])
    with pytest.raises(ValueError, match=r"--set loss: would be ignored"):
        load_for("evaluate", recipe, ["loss={temperature: 0.5}"])


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("train", "model.head_dim=32"),  # its own
        ("embed", "model.head_dim=8"),  # as it was made
        ("embed", "training.log_every=7"),  # decides nothing
        ("evaluate", "retrieval.alpha=70"),
        ("evaluate", "seed=7"),  # of the checkpoint, and of the evaluation
    ],
)
def test_what_the_verb_heeds_passes(recipe: str, stage: str, override: str) -> None:
    key, _, value = override.partition("=")
    config = load_for(stage, recipe, [override]).model_dump()
    for part in key.split("."):
        config = config[part]
    assert str(config) in (value, f"{value}.0")


def test_without_artifacts_there_is_nothing_to_compare_with(recipe: str, tmp_path: Path) -> None:
    elsewhere = [f"paths.root={tmp_path / 'new'}", "model.head_dim=32"]
    assert load_for("embed", recipe, elsewhere).model.head_dim == 32
