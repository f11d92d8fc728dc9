"""Figure 7: how soon embeddings of items with few events come near to what they end as.

    python -m mtmh.papers.convergence synthetic+paper --set training.epochs=3 --set name=drift

Trains a model by itself, with checkpoints on the way, and measures at each the L2 distance of every rare item's
unit-length embedding to that of the last step, by how many steps had the item in their batch. What is there and
unchanged stays.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from mtmh.artifacts import write_atomically
from mtmh.config import Config, decisive, load_config
from mtmh.data.content_store import open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.loader import PairLoader
from mtmh.distributed.ranks import join_ranks
from mtmh.tower.embedder import Embedder
from mtmh.training.trainer import train

CONVERGENCE = Path("convergence.json")

NUM_CHECKPOINTS = 20
MOST_EVENTS = 10  # of an item that counts as fresh: it has few training events
UPDATES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # lower ends of the groups


class Drift(BaseModel):
    """Mean distances of one head, by number of updates.

    Attributes:
        head: name.
        updates: lower end of each group.
        distance: mean L2 distance to the last step's embedding.
        half: half of the 95 % interval of that mean, over items.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: str
    updates: list[int]
    distance: list[float]
    half: list[float]


def main() -> None:
    """Parses the command line and brings the measurement up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    measure_convergence(load_config(arguments.recipe, arguments.overrides))


def measure_convergence(config: Config) -> Path:
    """Trains and measures, unless that was done with the same data and settings.

    Args:
        config: the recipe; ``training.epochs`` must be a number.

    Returns:
        A file of `read_drifts`.

    Raises:
        ValueError: the length of training is left to be chosen.
    """
    if config.training.chooses_length:
        raise ValueError("training.epochs is auto: give the run whose embeddings are watched a length of its own")
    path = config.paths.root / config.name / CONVERGENCE
    dataset = open_dataset(config.dataset_dir)
    made_from = {"dataset": dataset.artifact.manifest.digest, "settings": decisive(config, "checkpoint")}
    if path.is_file() and json.loads(path.read_text())["made_from"] == json.loads(json.dumps(made_from)):
        return path
    items = rare_items(dataset.item_table.train_count)
    updates, every = _updates(config, dataset, items)
    kept: dict[str, Any] = {"checkpoint_every": every, "keep_checkpoints": NUM_CHECKPOINTS + 2}
    train(config.model_copy(update={"training": config.training.model_copy(update=kept)}))
    checkpoints = sorted(config.model_dir("checkpoints").glob("step-*"))
    steps = [int(folder.name.removeprefix("step-")) for folder in checkpoints]
    embedded = [_embed(config, dataset, folder, items) for folder in checkpoints]
    counts = np.stack([updates[step] for step in steps])
    drifts = [drift(head, np.stack([vectors[head] for vectors in embedded]), counts) for head in embedded[0]]
    content = {"made_from": made_from, "drifts": [of_head.model_dump() for of_head in drifts]}
    write_atomically(path, json.dumps(content, indent=2))
    return path


def read_drifts(path: Path) -> list[Drift]:
    """What `measure_convergence` wrote, a head each."""
    return [Drift.model_validate(of_head) for of_head in json.loads(path.read_text())["drifts"]]


def rare_items(train_count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Items that have training events, but few."""
    return np.flatnonzero((train_count > 0) & (train_count <= MOST_EVENTS))


def drift(head: str, vectors: npt.NDArray[np.float32], updates: npt.NDArray[np.int64]) -> Drift:
    """Groups distances to the last embedding by the number of updates before.

    Args:
        head: name.
        vectors: [S, R, D] of R items at S checkpoints, the last one last.
        updates: [S, R] steps so far that had the item in their batch.
    """
    distances = np.linalg.norm(vectors[:-1] - vectors[-1], axis=2).ravel()
    group = np.searchsorted(UPDATES, updates[:-1].ravel(), side="right") - 1
    found: list[tuple[int, float, float]] = []
    for place in np.unique(group).tolist():
        inside = distances[group == place]
        half = 1.96 * float(inside.std()) / len(inside) ** 0.5
        found.append((UPDATES[place], float(inside.mean()), half))
    return Drift(head=head, updates=[f[0] for f in found], distance=[f[1] for f in found], half=[f[2] for f in found])


def _updates(
    config: Config, dataset: Dataset, items: npt.NDArray[np.int64]
) -> tuple[dict[int, npt.NDArray[np.int64]], int]:
    """Step -> [R] updates of each item so far, at the checkpoints; and the steps between two of them."""
    content = open_content(config.content_dir, dataset) if config.needs_content else None
    seed = config.training.seed_or(config.seed)
    loader = PairLoader(dataset, config.pairs, config.loss, config.training, config.model, seed, content=content)
    every = max(1, loader.num_steps // NUM_CHECKPOINTS)
    counts = np.zeros(dataset.num_items, np.int64)
    at_step: dict[int, npt.NDArray[np.int64]] = {}
    for step, batch in enumerate(loader.iterate(), start=1):
        counts[batch.item_index.numpy()] += 1
        if step % every == 0 or step == loader.num_steps:
            at_step[step] = counts[items]
    return at_step, every


def _embed(
    config: Config, dataset: Dataset, checkpoint: Path, items: Sequence[int] | npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.float32]]:
    content = open_content(config.content_dir, dataset) if config.model.content_dim and config.needs_content else None
    with join_ranks("cpu") as ranks, torch.no_grad():
        embedder = Embedder.load(checkpoint, config.sharding, ranks, content, items_per_step=len(items))
        return embedder.embed(dataset.item_table, np.asarray(items))


if __name__ == "__main__":
    main()
