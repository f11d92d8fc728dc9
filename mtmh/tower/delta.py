"""Items that must be embedded anew after a continued run: their inputs or table rows are no longer the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mtmh.artifacts import Artifact, open_artifact
from mtmh.config import EmbeddingConfig
from mtmh.config.recorded import recorded_config
from mtmh.data.arrays import Vectors, open_array
from mtmh.data.content_store import ContentEmbeddings
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.item_table import ItemTable
from mtmh.data.row_file import RowFile, create_array
from mtmh.data.schema import ITEM_ID, ITEMS
from mtmh.distributed.ranks import Ranks, on_all, on_first
from mtmh.distributed.state_files import stored_pieces, stored_shapes
from mtmh.modules.id_tables import NO_ROW
from mtmh.tower.artifact import DeltaSummary, EmbeddingsSummary, vectors_file
from mtmh.tower.embedder import Embedder
from mtmh.tower.raw_rows import RawRows
from mtmh.training.checkpoint import MODEL, STATE
from mtmh.training.content import content_input
from mtmh.training.continuation import RowMover, rows_of, table_of
from mtmh.training.row_maps import previous_items, previous_rows

NO_ITEM = -1
_CHUNK_ITEMS = 1 << 20
_SAMPLE_ITEMS = 2000


@dataclass(frozen=True)
class Delta:
    """The origin of the vectors of this period's items.

    Attributes:
        embeddings: the embeddings artifact of the period before.
        source: [I] int64, in memory or mapped; the item of ``embeddings`` whose vectors an item keeps, `NO_ITEM`: to be
            embedded anew.
    """

    embeddings: Artifact
    source: NDArray[np.int64]

    @property
    def num_kept(self) -> int:
        """Items that keep their vectors."""
        return sum(map(len, self._kept()))

    def kept_items(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] the items with these numbers [n] among those that keep their vectors."""
        items, before = np.empty(len(numbers), np.int64), 0
        for kept in self._kept():
            here = (numbers >= before) & (numbers < before + len(kept))
            items[here] = kept[numbers[here] - before]
            before += len(kept)
        return items

    def _kept(self) -> Iterator[NDArray[np.int64]]:
        for start in range(0, len(self.source), _CHUNK_ITEMS):
            yield start + np.flatnonzero(self.source[start : start + _CHUNK_ITEMS] != NO_ITEM)


@dataclass(frozen=True)
class DeltaEmbedder:
    """Embeds what must be embedded anew and takes the rest from the period before.

    Attributes:
        model: embeds items; all ranks call it together.
        delta: which items.
        kept: head -> [I of the period before, D] float32.
    """

    model: Embedder
    delta: Delta
    kept: dict[str, Vectors]

    @classmethod
    def open(cls, model: Embedder, delta: Delta) -> DeltaEmbedder:
        """Maps the previous embeddings.

        Raises:
            ValueError: they are of other heads or another width.
        """
        made = EmbeddingsSummary.model_validate(delta.embeddings.summary)
        if (made.heads, made.dim) != (model.heads, model.dim):
            raise ValueError(
                f"{delta.embeddings.path}: heads {', '.join(made.heads)} of width {made.dim}, the model has "
                f"{', '.join(model.heads)} of width {model.dim}; embed the whole catalogue"
            )
        shape = (made.num_items, made.dim)
        kept = {head: open_array(delta.embeddings.path / vectors_file(head), np.float32, shape) for head in made.heads}
        return cls(model, delta, kept)

    @property
    def heads(self) -> list[str]:
        """As the model's."""
        return self.model.heads

    @property
    def dim(self) -> int:
        """As the model's."""
        return self.model.dim

    def embed(self, table: ItemTable, items: NDArray[np.int64]) -> dict[str, Vectors]:
        """As `Embedder.embed`."""
        source = self.delta.source[items]
        anew = np.flatnonzero(source == NO_ITEM)
        # A sharded model is computed by all ranks together, so no rank may leave a step out.
        embedded = self.model.embed(table, items[anew] if len(anew) else items[:1])
        vectors = {head: self.kept[head][source.clip(0)] for head in self.heads}
        for head, rows in vectors.items():
            rows[anew] = embedded[head][: len(anew)]
        return vectors

    def measure(self, table: ItemTable, seed: int) -> DeltaSummary:
        """Compares a sample of kept embeddings with the model's; all ranks call it together and get the same."""
        num_kept = self.delta.num_kept
        numbers = np.random.default_rng(seed).choice(num_kept, min(_SAMPLE_ITEMS, num_kept), replace=False)
        sample = self.delta.kept_items(numbers)
        drift = np.zeros(1)
        if len(sample):
            now = self.model.embed(table, sample)
            drift = np.concatenate(
                [1.0 - (now[head] * self.kept[head][self.delta.source[sample]]).sum(axis=1) for head in self.heads]
            )
        return DeltaSummary(
            num_kept=num_kept, num_sampled=len(sample), mean_drift=float(drift.mean()), max_drift=float(drift.max())
        )


def find_delta(
    dataset: Dataset,
    checkpoint: Artifact,
    previous: Path,
    watch: EmbeddingConfig,
    shared: tuple[Ranks, Path] | None = None,
) -> Delta:
    """Compares the model and the items of two periods.

    An item keeps its vectors if the period before had it with the same values of all id features (and the same float
    features, if those are watched) and training has changed none of the rows that it reads in the watched tables. Rows
    are compared as they are in the two checkpoints, so whatever moved a row counts. In a table of raw ids an item has
    the row of its id, wherever that lies; it must have had one before if it has one now, and have none if it had none.

    Args:
        dataset: of this period.
        checkpoint: of this period, continued from ``previous``.
        previous: the checkpoint of the period before; its dataset and embeddings must still be where it knows them.
        watch: ``watch_tables`` and ``watch_floats``.
        shared: this process among others that call it together, share the work and get the same; and a folder on a disk
            that all of them see, for what they all map: 8 bytes an item and a row. None: alone, in memory.

    Raises:
        ValueError: an artifact is gone or belongs to something else; the message names it.
    """
    before = open_artifact(previous, "checkpoint")
    if checkpoint.manifest.inputs.get("previous") != before.manifest.digest:
        raise ValueError(f"{checkpoint.path}: was not continued from {previous}; embed the whole catalogue")
    old, embeddings = open_period(before)
    files = [some.artifact.path / ITEMS for some in (dataset, old)]
    now_type, then_type = (pq.read_schema(file).field(ITEM_ID).type for file in files)
    if now_type != then_type:
        raise ValueError(f"{files[0]}: item ids are {now_type}, in {files[1]} {then_type}")
    names = [feature.name for feature in dataset.summary.features.id_features]
    watched = set(names) if watch.watch_tables is None else set(watch.watch_tables)
    unknown = sorted(watched - set(names))
    if unknown:
        raise ValueError(f"embedding.watch_tables: no id feature {', '.join(unknown)}; there are {', '.join(names)}")
    tables = recorded_config(checkpoint, "model").model.id_tables
    raw = {
        name: (RawRows(checkpoint.path / STATE, name), RawRows(before.path / STATE, name))
        for name in tables
        if name in watched
    }
    maps = {
        feature.name: _by_ranges(
            f"rows.{feature.name}",
            feature.num_rows,
            partial(previous_rows, feature.name, before.path, dataset.artifact.path, previous_size=then.num_rows),
            shared,
        )
        for feature, then in zip(dataset.summary.features.id_features, old.summary.features.id_features, strict=True)
        if feature.name not in tables
    }
    contents = _contents(checkpoint, before, dataset, old)
    changed = _changed_rows(checkpoint, before, dataset, old, watched, raw, None if shared is None else shared[0])

    def find(first: int, last: int) -> NDArray[np.int64]:
        source = previous_items(files[1], files[0], first, last)
        for start in range(first, last, _CHUNK_ITEMS):
            part = source[start - first : start - first + _CHUNK_ITEMS]
            known = np.flatnonzero(part != NO_ITEM)
            stale = np.zeros(len(known), np.bool_)
            for name, (now_rows, then_rows) in raw.items():
                stale |= _differs_raw(dataset, start + known, now_rows, then_rows, changed[name])
            for name, rows in maps.items():
                stale |= _differs(dataset, old, name, start + known, part[known], rows, changed[name])
            if watch.watch_floats:
                now, then = (
                    table.item_table.float_features[items]
                    for table, items in ((dataset, start + known), (old, part[known]))
                )
                stale |= (now != then).any(axis=1)
            if contents is not None:
                now, then = (
                    some.embeddings[items] for some, items in zip(contents, (start + known, part[known]), strict=True)
                )
                stale |= (now != then).any(axis=1)
            part[known[stale]] = NO_ITEM
        return source

    return Delta(embeddings, _by_ranges("items", dataset.num_items, find, shared))


def _by_ranges(
    name: str, size: int, find: Callable[[int, int], NDArray[np.int64]], shared: tuple[Ranks, Path] | None
) -> NDArray[np.int64]:
    """[size] numbers that ``find`` gives for a range; each rank finds its share and all map the file with all of it."""
    if shared is None:
        return find(0, size)
    ranks, path = shared[0], shared[1] / f"{name}.npy"
    on_first(ranks, lambda: create_array(path, np.int64, (size,)).shape)
    first, last = (size * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1))
    on_all(lambda: RowFile(path).write(first, find(first, last)))
    return open_array(path, np.int64, (size,))


def open_period(checkpoint: Artifact) -> tuple[Dataset, Artifact]:
    """The artifacts that must be left of a period for its vectors to be kept.

    Args:
        checkpoint: of that period.

    Returns:
        The dataset that it was trained on, and the embeddings made from it.

    Raises:
        ValueError: one is gone or belongs to something else.
    """
    config = recorded_config(checkpoint, "model")
    old = open_dataset(config.dataset_dir)
    if old.artifact.manifest.digest != checkpoint.manifest.inputs["dataset"]:
        raise ValueError(f"{old.artifact.path}: no longer the dataset of {checkpoint.path}; embed the whole catalogue")
    embeddings = open_artifact(config.model_dir("embeddings"), "embeddings")
    if embeddings.manifest.inputs["checkpoint"] != checkpoint.manifest.digest:
        raise ValueError(f"{embeddings.path}: not made from {checkpoint.path}; embed the whole catalogue")
    return old, embeddings


def _contents(
    checkpoint: Artifact, before: Artifact, dataset: Dataset, old: Dataset
) -> tuple[ContentEmbeddings, ContentEmbeddings] | None:
    """The teacher's embeddings of the items of both periods; None: the model does not take them in."""
    now = content_input(checkpoint, recorded_config(checkpoint).content_dir, dataset)
    then = content_input(before, recorded_config(before).content_dir, old)
    return None if now is None or then is None else (now, then)


def _changed_rows(
    checkpoint: Artifact,
    before: Artifact,
    dataset: Dataset,
    old: Dataset,
    watched: Set[str],
    raw: Mapping[str, tuple[RawRows, RawRows]],
    ranks: Ranks | None,
) -> dict[str, NDArray[np.bool_]]:
    """For each table [R]: rows that are new or whose weights are no longer the same; none in tables not watched."""
    share = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    folder = checkpoint.path / STATE
    sizes = rows_of(old.summary.features)
    num_rows = rows_of(dataset.summary.features) | {name: len(now) for name, (now, _) in raw.items()}
    changed = {name: np.zeros(rows, np.bool_) for name, rows in num_rows.items()}
    for name in stored_shapes(folder):
        feature = table_of(name)
        if feature is None or feature not in watched or not name.startswith(MODEL):
            continue
        move = (
            RowMover(partial(raw[feature][0].in_other, raw[feature][1]))
            if feature in raw
            else RowMover.by_vocabulary(feature, before.path, dataset.artifact.path, sizes[feature])
        )
        pieces = stored_pieces(folder, name)
        for start in range(0, len(pieces), share[1]):  # all ranks move rows together, with a piece or without
            if (number := start + share[0]) >= len(pieces):
                move(before.path / STATE, name, None)
                continue
            offsets, piece = pieces[number]
            then = torch.full_like(piece, torch.nan)  # equals nothing
            move(before.path / STATE, name, (offsets, then))
            changed[feature][offsets[0] : offsets[0] + len(piece)] |= (piece != then).any(dim=1).numpy()
    if share[1] > 1:
        for name in sorted(watched):
            dist.all_reduce(torch.from_numpy(changed[name].view(np.uint8)), dist.ReduceOp.MAX)
    return changed


def _differs_raw(
    dataset: Dataset, items: NDArray[np.int64], now: RawRows, then: RawRows, changed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """[n] items whose rows in a watched table of raw ids changed, came or went; an item's raw id stays the same."""
    ids = dataset.item_table.raw_ids[items]
    rows, had_row = now.of_ids(ids), then.of_ids(ids) != NO_ROW
    stale: NDArray[np.bool_] = np.where(rows == NO_ROW, had_row, ~had_row | changed[rows])
    return stale


def _differs(
    dataset: Dataset,
    old: Dataset,
    feature: str,
    items: NDArray[np.int64],
    old_items: NDArray[np.int64],
    rows_before: NDArray[np.int64],
    changed: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """[n] items whose values of one id feature are others, or have rows that changed."""
    values, lengths = dataset.item_table.columns[feature].gather(items)
    old_values, old_lengths = old.item_table.columns[feature].gather(old_items)
    owner = np.repeat(np.arange(len(items)), lengths)
    differs = np.bincount(owner, changed[values], len(items)) > 0
    same_length = lengths == old_lengths
    differs |= ~same_length
    # In the order of the rows of the period before; the two vocabularies have orders of their own.
    ours = _sorted_within(rows_before[values], owner)
    theirs = _sorted_within(old_values, np.repeat(np.arange(len(items)), old_lengths))
    keep, old_keep = np.repeat(same_length, lengths), np.repeat(same_length, old_lengths)
    unequal = ours[keep] != theirs[old_keep]
    differs |= np.bincount(owner[keep], unequal, len(items)) > 0
    return differs


def _sorted_within(values: NDArray[np.integer[Any]], owner: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
    return values[np.lexsort((values, owner))]
