"""Continued training: a run starts from the model of the period before, whose items and vocabularies were others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from mtmh.artifacts import Artifact, open_artifact
from mtmh.config import ModelConfig, TrainingConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.dataset import Dataset
from mtmh.data.period import Period, why_it_may_leak
from mtmh.data.schema import ITEM_ID, DatasetSummary, FeatureSchema
from mtmh.distributed.optimizers import TABLE_KEY
from mtmh.distributed.ranks import Ranks, on_first
from mtmh.distributed.sharding import buckets_of, local_shards
from mtmh.distributed.state_files import read_state, stored_pieces, stored_shapes
from mtmh.training.checkpoint import OPTIMIZER, STATE, training_state
from mtmh.training.frequencies import FREQUENCIES, StreamingFrequencies
from mtmh.training.row_maps import num_carried, previous_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CarriedRows:
    """Rows of the table of one id feature, before and after carrying over.

    Attributes:
        feature: its name.
        num_rows: rows now.
        num_previous: rows in the period before.
        num_carried: rows of values that both periods know, row 0 (unknown) among them.
    """

    feature: str
    num_rows: int
    num_previous: int
    num_carried: int


def open_previous(path: Path, model: ModelConfig, training: TrainingConfig, summary: DatasetSummary) -> Artifact:
    """Opens the checkpoint to continue from.

    Args:
        path: folder of one checkpoint.
        model: of the run that begins.
        training: of the run that begins.
        summary: of its dataset.

    Raises:
        ValueError: no complete checkpoint there, its model has other features, widths or heads, or it may have been
            trained on the test period of the dataset.
    """
    artifact, features = open_artifact(path, "checkpoint"), summary.features
    before = FeatureSchema.model_validate(artifact.summary["features"])
    problems = []
    for kind, then, now in (
        ("id features", [f.name for f in before.id_features], [f.name for f in features.id_features]),
        ("float features", before.float_features, features.float_features),
    ):
        if then != now:
            problems.append(f"its {kind} are {', '.join(then) or 'none'}; the dataset has {', '.join(now) or 'none'}")
    model_then = recorded_section(artifact, "model", ModelConfig)
    problems += [
        f"model.{name} was {getattr(model_then, name)}, is {getattr(model, name)}"
        for name in ModelConfig.model_fields
        if getattr(model_then, name) != getattr(model, name)
    ]
    optimizer = artifact.manifest.config["training"]["optimizer"]
    if optimizer != training.optimizer:
        problems.append(f"training.optimizer was {optimizer}, is {training.optimizer}")
    if problems:
        raise ValueError(f"{path}: cannot continue from this model: {'; '.join(problems)}")
    leak = why_it_may_leak(period_of(artifact), Period.of(summary))
    if leak and training.continuation.check_period:
        raise ValueError(
            f"{path}: cannot continue from this model: {leak}. Continue from an older one or cut later (data.split); "
            f"if it is known to be older, or nothing is tested, set training.continuation.check_period=false"
        )
    if leak:
        logger.warning("%s: %s; training.continuation.check_period=false goes on all the same", path, leak)
    return artifact


def period_of(checkpoint: Artifact) -> Period | None:
    """The period that the model of a checkpoint has seen; None: nobody recorded it."""
    recorded = checkpoint.summary.get("period")
    return None if recorded is None else Period.model_validate(recorded)


@torch.no_grad()
def carry_over(
    previous: Artifact,
    dataset: Dataset,
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    ranks: Ranks,
    *,
    keep_optimizer: bool = True,
) -> list[CarriedRows]:
    """Fills a fresh model with what that of the period before has learned; all ranks call it together.

    A value of an id feature finds its row by the vocabularies of both periods: weights and Adagrad sums of known values
    move to their new rows; rows of new values keep their initial weights and empty sums, so that they learn at the full
    rate. Rows of values that are gone are dropped. Towers and heads are taken over as they are.

    A rank reads a previous table piece by piece, as it was written, and holds one piece at a time.

    Args:
        previous: the checkpoint, as `open_previous` gives it.
        dataset: of this period.
        model: fresh and sharded.
        optimizer: of the model.
        ranks: this process among the others.
        keep_optimizer: take the Adagrad sums over; otherwise all rows learn at the full rate again.

    Returns:
        one entry an id feature that has a vocabulary.

    Raises:
        ValueError: a vocabulary is missing or does not fit, or the checkpoint does not hold what the model needs.
    """
    rows_before = rows_of(FeatureSchema.model_validate(previous.summary["features"]))
    rows_now = rows_of(dataset.summary.features)
    state = training_state(model, optimizer)
    id_tables = buckets_of(model).keys()
    if not keep_optimizer:
        state = {name: value for name, value in state.items() if not name.startswith(OPTIMIZER)}
    # Tables of raw ids have no vocabulary: they go on as they are, their ids with them.
    by_row = {
        name: feature
        for name in state
        if (feature := table_of(name)) and feature not in id_tables and state[name].dim() > 0
    }
    folder = previous.path / STATE
    stored = stored_shapes(folder)
    for name, feature in by_row.items():
        wanted = (rows_before[feature], *state[name].size()[1:])
        if stored.get(name) != wanted:
            raise ValueError(
                f"{folder}: {name}: expected a tensor of shape {wanted}, found {stored.get(name, 'none')}; tables must "
                f"keep their optimizer, and data-parallel ones stay data-parallel; or set "
                f"training.continuation.optimizer_state=reset"
            )
        move = RowMover.by_vocabulary(feature, previous.path, dataset.artifact.path, rows_before[feature])
        for offsets, piece in local_shards(state[name]):
            move(folder, name, offsets, piece)
    read_state({name: value for name, value in state.items() if name not in by_row}, folder, prefixes=())
    return on_first(
        ranks,
        lambda: [
            CarriedRows(name, rows, rows_before[name], num_carried(name, previous.path, dataset.artifact.path))
            for name, rows in rows_now.items()
            if name not in id_tables
        ],
    )


def carry_over_frequencies(previous: Artifact, dataset: Dataset, frequencies: StreamingFrequencies) -> None:
    """Fills fresh estimates with those of the period before, as `carry_over` fills the tables; all ranks call it.

    If that run did not estimate from its batches, they stay fresh.

    Args:
        previous: the checkpoint, as `open_previous` gives it.
        dataset: of this period.
        frequencies: untouched.

    Raises:
        ValueError: a vocabulary is missing or does not fit, or the estimates are not of its items.
    """
    folder = previous.path / STATE
    stored = stored_shapes(folder)
    rows_before = rows_of(FeatureSchema.model_validate(previous.summary["features"]))[ITEM_ID]
    if not any(name.startswith(f"{FREQUENCIES}.") for name in stored):
        return
    mover = RowMover.by_vocabulary(ITEM_ID, previous.path, dataset.artifact.path, rows_before)

    def move(name: str, first: int, part: Tensor) -> None:
        name = f"{FREQUENCIES}.{name}"
        if stored.get(name) != (rows_before,):
            raise ValueError(f"{folder}: {name}: expected {rows_before} estimates, found {stored.get(name, 'none')}")
        mover(folder, name, (first,), part)

    batch_size = previous.summary.get("batch_size", previous.manifest.config["training"]["batch_size"])
    frequencies.carry_over(move, int(previous.summary["step"]), int(batch_size))


def carried_table(carried: list[CarriedRows]) -> Table:
    """The rows that were carried over, one line a table, for people."""
    view = Table("table", "rows before", "rows now", "carried over", "new", "gone", title="Continued from")
    for table in carried:
        new, gone = table.num_rows - table.num_carried, table.num_previous - table.num_carried
        numbers = (table.num_previous, table.num_rows, table.num_carried, new, gone)
        view.add_row(table.feature, *(f"{number:,}" for number in numbers))
    return view


class RowMover:
    """Fills pieces of a table from the table of the period before.

    Args:
        find: gives the rows that some rows of this table (first, one behind the last) had in the one before, `NO_ROW`
            for new ones.
    """

    def __init__(self, find: Callable[[int, int], NDArray[np.int64]]) -> None:
        self._find = find

    @classmethod
    def by_vocabulary(cls, feature: str, previous: Path, current: Path, previous_size: int) -> Self:
        """By the vocabularies of both periods.

        Args:
            feature: whose table.
            previous: folder that holds ``vocabulary/`` of the period before.
            current: the same of this period.
            previous_size: rows of the previous table.
        """
        return cls(partial(previous_rows, feature, previous, current, previous_size=previous_size))

    def __call__(self, folder: Path, name: str, offsets: tuple[int, ...], piece: Tensor) -> None:
        """Fills the rows of ``piece`` whose values are known, leaves the others.

        Args:
            folder: state on disk that holds the previous table.
            name: the table there.
            offsets: where ``piece`` lies in the present table: first row, and first column if it has columns.
            piece: [rows] or [rows, columns], filled in place.
        """
        rows = torch.from_numpy(self._find(offsets[0], offsets[0] + len(piece)))
        for (first, *columns), part in stored_pieces(folder, name):
            here = ((rows >= first) & (rows < first + len(part))).nonzero().squeeze(1)
            found = part.index_select(0, rows[here] - first)
            if not columns:
                piece[here.to(piece.device)] = found.to(piece)
                continue
            # Both may be cut by columns, each in its own way.
            start, stop = max(columns[0], offsets[1]), min(columns[0] + part.shape[1], offsets[1] + piece.shape[1])
            if start < stop:
                piece[here.to(piece.device), start - offsets[1] : stop - offsets[1]] = found[
                    :, start - columns[0] : stop - columns[0]
                ].to(piece)


def rows_of(schema: FeatureSchema) -> dict[str, int]:
    """Rows of each id feature's vocabulary, row 0 (unknown) included, by name."""
    return {feature.name: feature.num_rows for feature in schema.id_features}


def table_of(name: str) -> str | None:
    """The table that an entry of a training state belongs to; ``None``: it belongs to none."""
    return name.split(TABLE_KEY)[1].split(".")[0] if TABLE_KEY in name else None
