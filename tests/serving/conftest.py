"""A trained recipe with a published index, and one service over it for tests that only read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pytest
from service_process import ServiceProcess

from mtmh.config import Config

HOSTILE_ITEM = 23
HOSTILE_TEXT = "<img src=x onerror='window.attacked=1'><script>window.attacked=1</script>"

RECIPE = """
name: served
paths: {{root: {root}}}
data:
  source: synthetic
  options: {{num_users: 300, num_items: 400, num_events: 12000, num_topics_l1: 4, num_topics_l2: 3}}
model: {{embedding_dim: 8, dense_hidden: [16], dense_dim: 8, head_hidden: [32], head_dim: 16}}
loss: {{num_uniform_negatives: 96}}
training: {{batch_size: 384, max_steps: 20, learning_rate: 0.5, dense_learning_rate: 0.05}}
index: {{num_clusters: 20}}
retrieval: {{k: 10, k_ann: 100, num_probes: 20}}
evaluation: {{num_users: 40, recall_at: [5, 50], alphas: [0, 50, 100]}}
"""


def make_served_recipe(folder: Path) -> Path:
    """Prepares, trains, embeds, builds and evaluates a small recipe; returns its file."""
    from mtmh.config import load_config
    from mtmh.content.embed import embed_content
    from mtmh.evaluation.evaluate import evaluate
    from mtmh.index.build import build_version
    from mtmh.prepare.prepare import prepare
    from mtmh.tower.embed import embed_catalogue
    from mtmh.training.trainer import train

    recipe = folder / "served.yaml"
    recipe.write_text(RECIPE.format(root=folder / "runs"))
    config = load_config(recipe)
    prepare(config, config.dataset_dir)
    embed_content(config, config.content_dir)
    train(config, resume=False)
    embed_catalogue(config, config.model_dir("embeddings"))
    build_version(config)
    write_hostile_text(config)
    evaluate(config, config.model_dir("evaluation"), compare=[])
    return recipe


def write_hostile_text(config: Config) -> None:
    """Publishes a version in which the text and topics of one item are an attack on a page that shows them."""
    from mtmh.artifacts import open_artifact, write_artifact
    from mtmh.index.artifact import ITEMS
    from mtmh.index.build import DISPLAY_COLUMNS
    from mtmh.index.item_store import open_items, write_batches
    from mtmh.index.versions import current_version, new_version, publish

    old = open_artifact(current_version(config.model_dir("index")), "index")
    folder = new_version(config.model_dir("index"))
    inputs = {"dataset": open_artifact(config.dataset_dir, "dataset")}
    with write_artifact(folder, "index", config=old.manifest.config, inputs=inputs) as writer:
        shutil.copytree(old.path, writer.folder, dirs_exist_ok=True)
        (writer.folder / "manifest.json").unlink()
        writer.summary.update(old.summary)
        items = open_items(old.path, old.summary["num_items"]).table.select(DISPLAY_COLUMNS)
        is_hostile = pc.equal(items.column("item_id"), HOSTILE_ITEM)
        for name in ("text", "topic_l1", "topic_l2"):
            column = pc.if_else(is_hostile, HOSTILE_TEXT, items.column(name))
            items = items.set_column(items.column_names.index(name), name, column)
        write_batches(writer.folder / ITEMS, items.combine_chunks().to_batches())
    publish(folder)


@pytest.fixture(scope="session")
def served_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served_recipe(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def service(served_recipe: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(served_recipe, as_users_do=True, max_body_bytes=20_000, max_triggers=20, cache_mb=1) as running:
        yield running
