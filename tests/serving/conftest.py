"""A trained recipe with a published index, and one service over it for tests that only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service_process import ServiceProcess

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
    from mtmh.data.prepare import prepare
    from mtmh.evaluation.evaluate import evaluate
    from mtmh.index.embed import embed_catalogue
    from mtmh.index.publish import build_version
    from mtmh.training.trainer import train

    recipe = folder / "served.yaml"
    recipe.write_text(RECIPE.format(root=folder / "runs"))
    config = load_config(recipe)
    prepare(config, config.dataset_dir)
    embed_content(config, config.content_dir)
    train(config, resume=False)
    embed_catalogue(config, config.model_dir("embeddings"))
    build_version(config)
    evaluate(config, config.model_dir("evaluation"), compare=[])
    return recipe


@pytest.fixture(scope="session")
def served_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served_recipe(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def service(served_recipe: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(served_recipe, max_body_bytes=20_000, max_triggers=20, cache_mb=1) as running:
        yield running
