"""Continued training: a run starts from the model of the period before, whose items and vocabularies were others."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
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
from mtmh.distributed.ranks import Ranks, exchange_rows, on_first
from mtmh.distributed.sharding import buckets_of, local_shards
from mtmh.distributed.state_files import StoredTable, read_state, stored_shapes
from mtmh.modules.id_tables import NO_ROW
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


def warn_of_known_end(previous: Artifact, summary: DatasetSummary) -> None:
    """Warns where the older model may have seen what is held back to choose by.

    Args:
        previous: the checkpoint to continue from.
        summary: of the dataset without the end of T1. Where that is the end of each user, instants tell nothing.
    """
    seen = period_of(previous)
    if summary.cutoff is None or seen is None or seen.train_end is None or seen.train_end <= summary.cutoff:
        return
    logger.warning(
        "%s: trained on events until %d, and what is held back of this dataset's T1 begins at %d: the length of "
        "training and the weights of evidence are chosen on what this model may have learned. Hold back no more than "
        "what is new (validation.fraction), or continue from an older model",
        previous.path,
        seen.train_end - 1,
        summary.cutoff,
    )


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

    Each rank reads its share of a previous table, once, and sends the rows to the ranks of today (`RowMover`).

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
    pieces = {name: list(local_shards(state[name])) for name in by_row}
    # A rank names the tables that it holds a part of; all of them move each one together.
    held: list[dict[str, tuple[int, tuple[int, ...]]]] = [{} for _ in range(ranks.world_size)]
    dist.all_gather_object(held, {name: (len(own), tuple(state[name].size()[1:])) for name, own in pieces.items()})
    movers = {
        feature: RowMover.by_vocabulary(feature, previous.path, dataset.artifact.path, size)
        for feature, size in rows_before.items()
    }
    for name in sorted({name for part in held for name in part}):
        feature = table_of(name)
        assert feature is not None
        most, columns = max(part[name] for part in held if name in part)
        wanted = (rows_before[feature], *columns)
        if stored.get(name) != wanted:
            raise ValueError(
                f"{folder}: {name}: expected a tensor of shape {wanted}, found {stored.get(name, 'none')}; tables must "
                f"keep their optimizer, and data-parallel ones stay data-parallel; or set "
                f"training.continuation.optimizer_state=reset"
            )
        own = pieces.get(name, [])
        for number in range(most):
            movers[feature](folder, name, own[number] if number < len(own) else None)
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
        mover(folder, name, ((first,), part))

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
    """Fills pieces of a table from the table of the period before, together with the other ranks.

    Ranges of the previous table go round the ranks: each is read by one of them, which sends its rows to those that
    want them, so that a rank reads its share and holds one range of it at a time.

    Args:
        find: gives the rows that some rows of this table (first, one behind the last) had in the one before, `NO_ROW`
            for new ones.
        range_bytes: of the previous table that a rank reads at a time.
    """

    def __init__(self, find: Callable[[int, int], NDArray[np.int64]], range_bytes: int = 1 << 26) -> None:
        self._find = find
        self._range_bytes = range_bytes

    @classmethod
    def by_vocabulary(cls, feature: str, previous: Path, current: Path, previous_size: int) -> Self:
        """By the vocabularies of both periods.

        Args:
            feature: whose table.
            previous: folder that holds ``vocabulary/`` of the period before.
            current: the same of this period.
            previous_size: rows of the previous table.
        """
        # Weights and sums of a table are cut alike: the vocabularies are joined once for both.
        return cls(
            lru_cache(maxsize=1)(partial(previous_rows, feature, previous, current, previous_size=previous_size))
        )

    def __call__(self, folder: Path, name: str, piece: tuple[tuple[int, ...], Tensor] | None) -> None:
        """Fills the rows of a piece whose values are known, leaves the others; all ranks call it together.

        Args:
            folder: state on disk that holds the previous table.
            name: the table there, the same on all ranks.
            piece: where it lies in the present table (first row, and first column if it has columns), and [rows] or
                [rows, columns], filled in place; None: this rank has none to fill.
        """
        (first, *columns), target = piece or ((0,), torch.empty(0))
        rows = self._find(first, first + len(target)) if piece else np.empty(0, np.int64)
        places = np.flatnonzero(rows != NO_ROW)
        places = places[np.argsort(rows[places])]
        rows, into = rows[places], torch.from_numpy(places)
        table = StoredTable(folder, name)
        rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        step = max(1, self._range_bytes // (table.dtype.itemsize * math.prod(table.shape[1:])))
        for start in range(0, table.shape[0], num_ranks * step):
            edges = start + step * np.arange(num_ranks + 1)
            cuts = np.searchsorted(rows, edges)
            wanted = torch.from_numpy(rows[cuts[0] : cuts[-1]])
            asked, sizes = exchange_rows(wanted, np.diff(cuts).tolist())
            low = int(edges[rank])
            # Unasked, nothing is read.
            read = table.rows(low, min(low + step, table.shape[0]) if len(asked) else low)
            found, _ = exchange_rows(read.index_select(0, asked - low), sizes)
            for column in columns:  # each rank may have cut the columns in its own way
                found = found.narrow(1, column, target.shape[1])
            if len(found):
                target[into[cuts[0] : cuts[-1]].to(target.device)] = found.to(target)


def rows_of(schema: FeatureSchema) -> dict[str, int]:
    """Rows of each id feature's vocabulary, row 0 (unknown) included, by name."""
    return {feature.name: feature.num_rows for feature in schema.id_features}


def table_of(name: str) -> str | None:
    """The table that an entry of a training state belongs to; ``None``: it belongs to none."""
    return name.split(TABLE_KEY)[1].split(".")[0] if TABLE_KEY in name else None
