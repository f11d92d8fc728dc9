"""Embeds the catalogue: every item under every head of the newest checkpoint, shard by shard on any number of ranks."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from rich.progress import Progress

from mtmh.artifacts import Artifact, ArtifactWriter, fsync, open_artifact, write_atomically
from mtmh.config import Config, decisive
from mtmh.data.arrays import Vectors
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.item_table import ItemTable
from mtmh.data.row_file import RowFile
from mtmh.distributed.ranks import Ranks, file_records, join_ranks, on_first, writing_alone
from mtmh.tower.artifact import DeltaSummary, EmbeddingsSummary, vectors_file
from mtmh.tower.delta import DeltaEmbedder, find_delta
from mtmh.tower.embedder import Embedder
from mtmh.training.content import content_input
from mtmh.training.newest import latest_checkpoint

logger = logging.getLogger(__name__)

PLAN = Path("plan.json")

_SHARD_ITEMS = 65_536
_CHUNK_ITEMS = 8192


def embed_catalogue(
    config: Config,
    out: Path,
    *,
    delta_from: Path | None = None,
    checkpoint: Artifact | None = None,
    dataset: Dataset | None = None,
) -> Artifact:
    """Writes an embeddings artifact: ``<head>.npy``, [I, D] float32 unit length, for every head of the model.

    Alone, or as one rank of torchrun: then the embedding tables are sharded over the ranks, and each rank embeds its
    shards of the catalogue. What is done stands in ``<out>.parts``; a run that was killed goes on with the rest, on
    any number of ranks.

    Args:
        config: names the dataset and the model's checkpoints.
        out: folder of the artifact, on a disk that all ranks see; the same on all.
        delta_from: the checkpoint that the model was continued from; items that are as they were keep the embeddings
            that were made from it (`find_delta`).
        checkpoint: of the model; None: its newest.
        dataset: with the features that items have for it; None: the recipe's.

    Raises:
        ValueError: no dataset or checkpoint, the checkpoint was trained on other features, an embedding is not finite,
            or kept embeddings have drifted from the model by more than ``embedding.max_drift``.
    """
    with join_ranks(config.training.device) as ranks, writing_alone(ranks, out):
        dataset = dataset or open_dataset(config.dataset_dir)
        checkpoint = checkpoint or open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
        trained_on = checkpoint.manifest.inputs.get("dataset")
        if trained_on != dataset.artifact.manifest.digest:
            raise ValueError(
                f"{checkpoint.path}: trained on another dataset (digest {str(trained_on)[:12]}) than"
                f" {dataset.artifact.path} (digest {dataset.artifact.manifest.digest[:12]}); train again"
            )
        content = content_input(checkpoint, config.content_dir, dataset)
        items_per_step = ranks.world_size * _CHUNK_ITEMS
        model = Embedder.load(checkpoint.path, config.sharding, ranks, content, items_per_step=items_per_step)
        embedder: Embedder | DeltaEmbedder = model
        scratch = out.with_name(f"{out.name}.delta")
        inputs, measured = {"dataset": dataset.artifact, "checkpoint": checkpoint}, None
        if content is not None:
            inputs["content"] = content.artifact
        if delta_from is not None:
            on_first(ranks, lambda: _emptied(scratch))
            delta = find_delta(dataset, checkpoint, delta_from, config.embedding, (ranks, scratch))
            embedder = DeltaEmbedder.open(model, delta)
            inputs["previous"] = delta.embeddings
            measured = embedder.measure(dataset.item_table, config.seed)
            _check_drift(measured, config.embedding.max_drift, dataset.num_items)
        parts = Parts(out.with_name(f"{out.name}.parts"), embedder.heads, dataset.num_items, embedder.dim)
        plan = {name: artifact.manifest.digest for name, artifact in inputs.items()}
        if delta_from is not None:  # which items are embedded anew follows from these settings too
            plan["embedding"] = config.embedding.model_dump_json()
        todo = on_first(ranks, lambda: parts.begin(plan))
        write_shards(embedder, dataset.item_table, parts, todo, ranks)
        dist.barrier()
        records = file_records(parts.folder, [str(vectors_file(head)) for head in parts.heads], ranks)

        def finish() -> None:
            writer = _gather(parts, measured, out)
            writer.commit(config.model_dump(mode="json"), inputs, records, decisive=decisive(config, "embeddings"))
            shutil.rmtree(parts.folder)
            shutil.rmtree(scratch, ignore_errors=True)

        on_first(ranks, finish)
        return open_artifact(out, "embeddings")


@dataclass(frozen=True)
class Parts:
    """The embeddings of a run on their way, and which shards of them are done.

    Attributes:
        folder: ``<out>.parts``.
        heads: names.
        num_items: of the catalogue.
        dim: D.
    """

    folder: Path
    heads: list[str]
    num_items: int
    dim: int

    def begin(self, plan: dict[str, str]) -> list[int]:
        """Makes the files, or goes on with those that a killed run of the same inputs has left.

        Returns:
            The shards that are to be embedded.
        """
        path = self.folder / PLAN
        files = [self.folder / vectors_file(head) for head in self.heads]
        if not path.is_file() or json.loads(path.read_text()) != plan or not all(file.is_file() for file in files):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            for file in files:
                RowFile.create(file, np.float32, (self.num_items, self.dim))
            write_atomically(path, json.dumps(plan))
        num_shards = -(-self.num_items // _SHARD_ITEMS)
        todo = [shard for shard in range(num_shards) if not self._done(shard).is_file()]
        if len(todo) < num_shards:
            logger.info("%s: %d of %d shards are done", self.folder, num_shards - len(todo), num_shards)
        return todo

    def items(self, shard: int) -> range:
        """Item indices of a shard."""
        return range(shard * _SHARD_ITEMS, min((shard + 1) * _SHARD_ITEMS, self.num_items))

    def write(self, start: int, vectors: dict[str, Vectors]) -> None:
        """Stores the embeddings of the items from ``start`` on."""
        for head, rows in vectors.items():
            RowFile(self.folder / vectors_file(head)).write(start, rows)

    def finish(self, shard: int) -> None:
        """Records that a shard is stored, once it is on the disk."""
        for head in self.heads:
            fsync(self.folder / vectors_file(head))
        self._done(shard).touch()

    def _done(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.done"


def write_shards(
    embedder: Embedder | DeltaEmbedder, table: ItemTable, parts: Parts, shards: list[int], ranks: Ranks
) -> None:
    """Embeds shards, dealt out to the ranks; all ranks call this together.

    Args:
        embedder: the model.
        table: features of all items.
        parts: where to.
        shards: those to embed, the same list on every rank.
        ranks: this process among the others.
    """
    steps = [list(_steps(parts, shards[rank :: ranks.world_size])) for rank in range(ranks.world_size)]
    own, num_steps = steps[ranks.rank], max(map(len, steps))
    with Progress(disable=not ranks.is_first, transient=True) as progress:
        task = progress.add_task("embedding the catalogue", total=sum(len(items) for items, _ in own))
        for items, finished in own:
            parts.write(items.start, embedder.embed(table, np.arange(items.start, items.stop)))
            progress.update(task, advance=len(items))
            if finished is not None:
                parts.finish(finished)
    for _ in range(num_steps - len(own)):
        # A sharded model is computed by all ranks together, so all take as many steps as the busiest one.
        embedder.embed(table, np.zeros(1, np.int64))


def _steps(parts: Parts, shards: list[int]) -> Iterator[tuple[range, int | None]]:
    """Runs of items to embed at a time, and the shard that is done after one, if any."""
    for number in shards:
        items = parts.items(number)
        for start in range(items.start, items.stop, _CHUNK_ITEMS):
            stop = min(start + _CHUNK_ITEMS, items.stop)
            yield range(start, stop), number if stop == items.stop else None


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _check_drift(measured: DeltaSummary, max_drift: float, num_items: int) -> None:
    if measured.mean_drift > max_drift:
        raise ValueError(
            f"embedding.max_drift: {measured.num_kept} of {num_items} items have the table rows they had, but their "
            f"embeddings have moved by {measured.mean_drift:.4f} on average (1 - cosine, {measured.num_sampled} "
            f"sampled), more than {max_drift}; embed the whole catalogue, or train with "
            f"training.continuation.freeze_towers=true"
        )


def _gather(parts: Parts, delta: DeltaSummary | None, out: Path) -> ArtifactWriter:
    """Moves the finished parts into a new artifact, for the caller to commit."""
    writer = ArtifactWriter(out, "embeddings")
    writer.begin()
    for head in parts.heads:
        (parts.folder / vectors_file(head)).rename(writer.folder / vectors_file(head))
    summary = EmbeddingsSummary(heads=parts.heads, dim=parts.dim, num_items=parts.num_items, delta=delta)
    writer.summary |= summary.model_dump()
    return writer
