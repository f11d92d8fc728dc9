"""An artifact's identity covers what its stage reads: a change elsewhere in the recipe leaves it alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtmh.artifacts import Artifact, open_artifact
from mtmh.config import Config, decisive
from mtmh.content.embed import embed_content
from mtmh.index.build import build_index
from mtmh.prepare.prepare import prepare
from mtmh.tower.embed import embed_catalogue
from mtmh.training.trainer import train

RECIPE: dict[str, Any] = {
    "name": "small",
    "data": {
        "source": "synthetic",
        "options": {"num_users": 60, "num_items": 80, "num_events": 1500, "num_topics_l1": 3, "num_topics_l2": 2},
    },
    "model": {"embedding_dim": 4, "dense_hidden": [4], "dense_dim": 4, "head_hidden": [8], "head_dim": 8},
    "loss": {"num_uniform_negatives": 12},
    "training": {"batch_size": 48, "max_steps": 2},
}
ELSEWHERE = {
    "description": "of another mind",
    "service": {"port": 9999},
    "chain": {"max_recall_drop": 0.5},
    "evaluation": {"num_users": 7},
    "plan": {"num_floats": 3},
}

STAGES: dict[str, Callable[[Config], Artifact]] = {
    "dataset": lambda config: prepare(config, config.dataset_dir),
    "content": lambda config: embed_content(config, config.content_dir),
    "embeddings": lambda config: embed_catalogue(config, config.model_dir("embeddings")),
    "index": lambda config: build_index(config, config.model_dir("index")),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("identity")
    config = recipe(root)
    STAGES["dataset"](config)
    STAGES["content"](config)
    train(config)
    STAGES["embeddings"](config)
    STAGES["index"](config)
    return root


def recipe(root: Path, **sections: Any) -> Config:
    return Config.model_validate(RECIPE | {"paths": {"root": root}} | sections)


@pytest.mark.parametrize("kind", STAGES)
def test_an_unrelated_section_changes_no_identity(root: Path, kind: Any) -> None:
    config = recipe(root)
    folders = {"dataset": config.dataset_dir, "content": config.content_dir}
    before = open_artifact(folders.get(kind) or config.model_dir(kind), kind).manifest
    # The stages run in the order of the way: each reads what the one before has written anew.
    after = STAGES[kind](recipe(root, **ELSEWHERE)).manifest
    assert after.config["service"]["port"] == 9999, "the whole recipe is recorded"
    assert after.files == before.files
    assert after.digest == before.digest


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("dataset", {"data": RECIPE["data"] | {"max_history": 5}}),
        ("dataset", {"seed": 1}),
        ("content", {"content": {"max_tokens": 5}}),
        ("index", {"index": {"iterations": 3}}),
        ("index", {"retrieval": {"num_probes": 3}}),
    ],
)
def test_a_setting_that_decides_is_part_of_the_identity(tmp_path: Path, kind: Any, sections: dict[str, Any]) -> None:
    assert decisive(recipe(tmp_path, **sections), kind) != decisive(recipe(tmp_path), kind)


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("dataset", {"data": RECIPE["data"] | {"threads": 1, "memory_limit_gb": 1.0}}),
        ("content", {"content": {"check": {"num_items": 5}}}),
        ("index", {"index": {"min_recall": 0.0, "keep_versions": 9}}),
        ("embeddings", {"index": {"iterations": 3}, "seed": 1}),
    ],
)
def test_what_changes_speed_or_gates_is_not(tmp_path: Path, kind: Any, sections: dict[str, Any]) -> None:
    assert decisive(recipe(tmp_path, **sections), kind) == decisive(recipe(tmp_path), kind)


def test_a_setting_s_own_mark_takes_the_place_of_its_section_s(tmp_path: Path) -> None:
    config = recipe(tmp_path, content={"kind": "encoder", "encoder": {"text": {"model": "m"}, "images": "pictures"}})
    assert decisive(config, "content")["content.encoder.images"] == "pictures"
    assert "content.encoder.text.model" not in decisive(config, "content"), "that is in the encoder, an input"
    encoder = decisive(config, "encoder")
    assert encoder["content.encoder.text.model"] == "m"
    assert encoder["content.encoder.training.epochs"] == 1
    assert not {"content.encoder.training.log_every", "content.batch_size", "content.check.k"} & encoder.keys()
