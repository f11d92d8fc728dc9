"""Artifacts of an mtmh that had other settings stay readable, as far as a reader needs their recipe."""

from pathlib import Path
from typing import Any

import pytest

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import ModelConfig
from mtmh.config.recorded import recorded_config, recorded_section

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "paths": {"root": "runs"},
    "data": {"source": "synthetic"},
    "model": {"head_dim": 24},
    "service": {},
}


def write(path: Path, section: str) -> Artifact:
    """A checkpoint of a recipe with one setting that no mtmh has."""
    with write_artifact(path, "checkpoint", config=RECIPE | {section: RECIPE[section] | {"gone_since": 1}}):
        pass
    return open_artifact(path, "checkpoint")


def test_a_setting_that_is_gone_matters_only_where_its_section_is_read(tmp_path: Path) -> None:
    artifact = write(tmp_path / "a", "service")
    config = recorded_config(artifact, "model")
    assert (config.name, config.paths.root, config.model.head_dim, config.seed) == ("small", Path("runs"), 24, 0)
    assert recorded_section(artifact, "model", ModelConfig).head_dim == 24
    with pytest.raises(ValueError, match=r"service\.gone_since: no such setting"):
        recorded_config(artifact, "service")


def test_the_refusal_names_the_artifact_the_setting_and_what_to_do(tmp_path: Path) -> None:
    artifact = write(tmp_path / "a", "model")
    for read in (lambda: recorded_config(artifact, "model"), lambda: recorded_section(artifact, "model", ModelConfig)):
        with pytest.raises(ValueError, match=r"a: made with .*model\.gone_since: no such setting.*or make it anew"):
            read()
