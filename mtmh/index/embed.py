"""Embeds the catalogue: every item under every head of the newest checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import Config
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.index.layout import EmbeddingsSummary, vectors_file
from mtmh.modules.mtmh import MTMH
from mtmh.training.checkpoint import latest_checkpoint
from mtmh.training.model import load_model

_CHUNK_ITEMS = 8192


def embed_catalogue(config: Config, out: Path) -> Artifact:
    """Writes an embeddings artifact: ``<head>.npy``, [I, D] float32 unit length, for every head of the model.

    Args:
        config: names the dataset and the model's checkpoints.
        out: folder of the artifact.

    Raises:
        ValueError: no dataset or checkpoint, or the checkpoint was trained on other features.
    """
    dataset = open_dataset(config.dataset_dir)
    checkpoint = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    trained_on = checkpoint.manifest.inputs.get("dataset")
    if trained_on != dataset.artifact.manifest.digest:
        raise ValueError(
            f"{checkpoint.path}: trained on another dataset (digest {str(trained_on)[:12]}) than"
            f" {dataset.artifact.path} (digest {dataset.artifact.manifest.digest[:12]}); train again"
        )
    model = load_model(checkpoint.path)
    inputs = {"dataset": dataset.artifact, "checkpoint": checkpoint}
    with write_artifact(out, "embeddings", config=config.model_dump(mode="json"), inputs=inputs) as writer:
        dim = write_embeddings(model, dataset, writer.folder)
        heads = [head.name for head in model.heads]
        writer.summary |= EmbeddingsSummary(heads=heads, dim=dim, num_items=dataset.num_items).model_dump()
    return open_artifact(out, "embeddings")


@torch.inference_mode()
def write_embeddings(model: MTMH, dataset: Dataset, folder: Path) -> int:
    """Runs the catalogue through the model in chunks; no process memory grows with the catalogue.

    Returns:
        D, the width of the embeddings.
    """
    files: dict[str, np.memmap[tuple[int, ...], np.dtype[np.float32]]] = {}
    dim = 0
    with Progress(transient=True) as progress:
        task = progress.add_task("embedding the catalogue", total=dataset.num_items)
        for start in range(0, dataset.num_items, _CHUNK_ITEMS):
            end = min(start + _CHUNK_ITEMS, dataset.num_items)
            sparse, dense = dataset.item_table.gather(np.arange(start, end))
            for head, embeddings in model(sparse, dense).items():
                # Unit length whatever the model's own setting: search is by cosine.
                unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
                if not torch.isfinite(unit).all():
                    raise ValueError(f"head {head}: embeddings of items {start} to {end - 1} are not finite numbers")
                if head not in files:
                    dim = unit.shape[1]
                    files[head] = np.lib.format.open_memmap(
                        folder / vectors_file(head), mode="w+", dtype=np.float32, shape=(dataset.num_items, dim)
                    )
                files[head][start:end] = unit.numpy()
            progress.update(task, completed=end)
    for file in files.values():
        file.flush()
    return dim
