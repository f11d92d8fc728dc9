"""A dataset, a teacher and a recipe small enough to train in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic_dataset import make_config, write_dataset
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.distributed.state_files import read_state
from mtmh.distributed.state_format import StateReader
from mtmh.training.checkpoint import STATE
from mtmh.training.progress import STEP_METRICS

NUM_ITEMS = 200

MODEL = {
    "embedding_dim": 8,
    "dense_hidden": [8],
    "dense_dim": 4,
    "head_hidden": [16],
    "head_dim": 8,
    "id_dropout": 0.1,
    "content_dim": 0,  # as an input; heads learn from it all the same
    "heads": [{"name": "engagement"}, {"name": "relevance", "relevance_weight": 0.5}],
}
TRAINING = {
    "batch_size": 48,
    "num_shards": 6,
    "shuffle_pairs": 96,
    "epochs": 2,
    "log_every": 1,
    "warmup_steps": 4,
    "learning_rate": 0.05,  # larger steps make more of the rounding that runs on other ranks may differ by
    "dense_learning_rate": 0.01,
}


def write_inputs(root: Path, test: dict[int, list[int]] | None = None) -> None:
    """Dataset and teacher; a tenth of the items have no content."""
    rng = np.random.default_rng(1)
    # Each user keeps to one shelf of 20 items, so there is something to learn; the last shelf stays fresh.
    shelves = rng.integers(0, NUM_ITEMS // 20 - 1, 60)
    histories = [(20 * shelf + rng.integers(0, 20, rng.integers(0, 20))).tolist() for shelf in shelves]
    dataset = write_dataset(root / "dataset", histories, test=test, num_items=NUM_ITEMS)
    embeddings = rng.standard_normal((NUM_ITEMS, 6)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[rng.random(NUM_ITEMS) < 0.1] = 0.0
    with write_artifact(root / "content", "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / "embeddings.npy", embeddings)


def tiny_config(root: Path, name: str = "tiny", **sections: dict[str, Any]) -> Config:
    """A recipe over `write_inputs`; a section given here replaces its defaults key by key."""
    sections["model"] = MODEL | sections.get("model", {})
    sections["training"] = TRAINING | sections.get("training", {})
    sections["retrieval"] = {"sorter": "head-score"} | sections.get("retrieval", {})  # so one run, on all of T1
    config: Config = make_config(root, **sections).model_copy(update={"name": name})
    return config


def losses_of(run: Config | Path) -> dict[int, dict[str, dict[str, float]]]:
    """The losses in metrics.jsonl, by step, of an item tower's recipe or beside some checkpoints."""
    folder = run if isinstance(run, Path) else run.model_dir("checkpoints")
    lines = (folder / STEP_METRICS).read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def state_of(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint but the random states, whole."""
    return read_whole(checkpoint / STATE)


def random_state_of(checkpoint: Path) -> dict[str, Tensor]:
    """The random states of all ranks."""
    return read_whole(checkpoint / STATE, random=True)


def read_whole(folder: Path, *, random: bool = False) -> dict[str, Tensor]:
    """All tensors of a state on disk, whole: the random states, or all others."""
    entries = StateReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith("random.") == random
    }
    read_state(state, folder, prefixes=("random.",) if random else ("model.", "optimizer."), distributed=False)
    return state
