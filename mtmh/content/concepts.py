"""Pairs of item and concept: the table they come from, the order they are trained in, and which negatives are none.

A concept is a short text that someone or something attached to an item: a hashtag, a search query that led there, a
generated tag. The same concept is on many items, and an item has many: in a batch both would pass as negatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mtmh.data.dataset import Dataset
from mtmh.data.randomness import Purpose, generator
from mtmh.modules import accidental_hits

COLUMNS = ("item_id", "concept", "source")
TIMESTAMP = "timestamp"


@dataclass(frozen=True)
class Concepts:
    """All pairs, and every item's concepts.

    Attributes:
        item: [N] int64 item index of each pair.
        concept: [N] int64 number of its concept.
        weight: [N] float32, by the pair's source.
        texts: [C] the distinct concepts; case and a leading # do not tell two apart.
        offsets: [I + 1] int64; item i has the concepts ``values[offsets[i]:offsets[i + 1]]``, whatever their weight.
        values: [.] int64.
        pairs_of_source: how many pairs of each source are used.
        dropped: reason -> rows of the table that are not.
        test_period: how concepts of the test period were kept out, or that nothing did so; for people.
    """

    item: npt.NDArray[np.int64]
    concept: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    texts: list[str]
    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    pairs_of_source: dict[str, int]
    dropped: dict[str, int]
    test_period: str

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True)
class PairDraw:
    """The pairs of one global step.

    Attributes:
        item: [B] item indices.
        concept: [B] concept numbers.
        weight: [B] float32.
    """

    item: npt.NDArray[np.int64]
    concept: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]


def open_concepts(dataset: Dataset, path: Path, source_weights: Mapping[str, float]) -> Concepts:
    """Reads the table of concepts.

    With one cut in time, rows at or after it, or without a time, are dropped before anything is read from them. Without
    a column ``timestamp`` nothing tells which those are.

    Args:
        dataset: the catalogue; concepts of other items are dropped and counted.
        path: Parquet with columns ``item_id``, ``concept`` and ``source``, and perhaps ``timestamp`` in the unit of the
            events' or as dates if theirs are dates.
        source_weights: weight of a pair by its source; 1 for sources not named, 0 leaves a source out.

    Raises:
        ValueError: no such file, a column missing or of another type, a weight for a source that is not in the table,
            or no pair left.
    """
    if not path.is_file():
        raise ValueError(f"content.encoder.concepts: no file {path}; expected Parquet with {', '.join(COLUMNS)}")
    schema = pq.read_schema(path)
    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(schema.names)}")
    has_time = TIMESTAMP in schema.names
    table = pq.read_table(path, columns=[*COLUMNS, TIMESTAMP] if has_time else list(COLUMNS)).combine_chunks()
    for name in ("concept", "source"):
        if table.schema.field(name).type not in (pa.string(), pa.large_string()):
            raise ValueError(f"{path}: column {name} is {table.schema.field(name).type}, expected string")
    source = table.column("source").combine_chunks().fill_null("").dictionary_encode()
    sources = source.dictionary.to_pylist()
    unknown = sorted(set(source_weights) - set(sources))
    if unknown:
        raise ValueError(
            f"content.encoder.training.source_weights: {path} has no source {', '.join(unknown)}; "
            f"it has {', '.join(sorted(sources))}"
        )
    cutoff, dropped_by_time = dataset.summary.cutoff, {}
    if has_time and cutoff is not None:
        time = _instants(table.column(TIMESTAMP), dataset, path)
        early = pc.fill_null(pc.less(time, cutoff), False)
        no_time = time.null_count
        num_early = pc.sum(early).as_py() or 0  # None of no rows
        dropped_by_time = {"test period": len(table) - num_early - no_time, "no timestamp": no_time}
        table, source = table.filter(early).combine_chunks(), source.filter(early.combine_chunks())
    text = pc.utf8_trim_whitespace(table.column("concept").combine_chunks().fill_null(""))
    canonical = pc.utf8_ltrim(pc.utf8_lower(text), characters="#")
    item = _find_items(dataset, table.column("item_id").combine_chunks(), path)
    empty = np.asarray(pc.equal(canonical, ""))
    known = ~empty & (item >= 0)
    weight_of_source = np.array([source_weights.get(name, 1.0) for name in sources], np.float32)
    code_of_source = np.asarray(source.indices)[known]
    weight = weight_of_source[code_of_source]

    encoded = canonical.filter(pa.array(known)).dictionary_encode()
    concept = np.asarray(encoded.indices).astype(np.int64)
    _, first = np.unique(concept, return_index=True)
    texts = text.filter(pa.array(known)).take(pa.array(first)).to_pylist()
    item = item[known]
    order = np.argsort(item, kind="stable")
    offsets = np.searchsorted(item[order], np.arange(dataset.num_items + 1))
    used = weight > 0.0
    if not used.any():
        raise ValueError(f"{path}: no concept of any item of {dataset.artifact.path} with a weight above 0")
    pairs = np.bincount(code_of_source[used], minlength=len(sources))
    return Concepts(
        item=item[used],
        concept=concept[used],
        weight=weight[used],
        texts=texts,
        offsets=offsets.astype(np.int64),
        values=concept[order],
        pairs_of_source=dict(zip(sources, pairs.tolist(), strict=True)),
        dropped={
            "empty concept": int(empty.sum()),
            "unknown item": int((~empty & ~known).sum()),
            "weight 0": int((~used).sum()),
            **dropped_by_time,
        },
        test_period=_said_of_time(has_time, cutoff, dropped_by_time),
    )


def _instants(column: pa.ChunkedArray, dataset: Dataset, path: Path) -> pa.ChunkedArray:
    """The column as numbers in the unit of the dataset's cut; NaN becomes null."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        if not dataset.summary.timestamp_is_date:
            raise ValueError(
                f"{path}: column {TIMESTAMP} holds dates, but the events' timestamps are not known to be dates; give "
                f"numbers in their unit (or run mtmh prepare again, if it was run before it recorded this)"
            )
        return pc.divide(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).cast(pa.float64()), 1e6)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"{path}: column {TIMESTAMP} is {kind}, expected numbers or dates, as in the events")
    return pc.if_else(pc.is_nan(numbers := column.cast(pa.float64(), safe=False)), None, numbers)


def _said_of_time(has_time: bool, cutoff: float | None, dropped: Mapping[str, int]) -> str:
    if not has_time:
        return (
            f"it has no column {TIMESTAMP}: that none of its rows comes from the test period is for its maker to vouch"
        )
    if cutoff is None:
        return "the events are split by user, so that no instant divides its rows: all are used"
    late, unknown = dropped["test period"], dropped["no timestamp"]
    return f"rows at {cutoff:.0f} or later are left out: {late}; without a time: {unknown}"


def _find_items(dataset: Dataset, ids: pa.Array, path: Path) -> npt.NDArray[np.int64]:
    """Item index of each row, -1 for unknown or missing ids."""
    kind = pa.int64() if dataset.summary.id_type == "int64" else pa.string()
    try:
        values = ids.drop_null().cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: column item_id is {ids.type}, the dataset has {kind} ids: {error}") from None
    item = np.full(len(ids), -1)
    item[np.asarray(ids.is_valid())] = dataset.find(
        values.to_numpy() if kind == pa.int64() else np.array(values.to_pylist(), np.dtypes.StringDType())
    )
    return item


class PairOrder:
    """The pairs of each global step: a fresh permutation an epoch, a pure function of the step.

    Args:
        concepts: all pairs.
        batch_size: pairs of a step; what is left at the end of an epoch is not trained on in that epoch.
        seed: of the permutations.

    Raises:
        ValueError: fewer pairs than one batch.
    """

    def __init__(self, concepts: Concepts, batch_size: int, seed: int) -> None:
        if len(concepts) < batch_size:
            raise ValueError(
                f"content.encoder.training.batch_size ({batch_size}) exceeds the pairs of item and concept "
                f"({len(concepts)})"
            )
        self._concepts = concepts
        self._batch_size = batch_size
        self._seed = seed
        self._permutation: tuple[int, npt.NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return len(self._concepts) // self._batch_size

    def draw(self, step: int) -> PairDraw:
        """The pairs of global step ``step``, counted through all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._permutation is None or self._permutation[0] != epoch:
            order = generator(Purpose.CONCEPT_PAIRS, self._seed, epoch).permutation(len(self._concepts))
            self._permutation = (epoch, order)
        pairs = self._permutation[1][place * self._batch_size : (place + 1) * self._batch_size]
        return PairDraw(self._concepts.item[pairs], self._concepts.concept[pairs], self._concepts.weight[pairs])


def false_negatives(concepts: Concepts, draw: PairDraw) -> tuple[Tensor, Tensor]:
    """Pairs of row and column of a batch in which the column's concept is one of the row's item.

    Returns:
        rows (contents) and columns (concepts), [K] int64 each. Every pair's own place is among them.
    """
    items, row_to_item = np.unique(draw.item, return_inverse=True)
    starts, stops = concepts.offsets[items], concepts.offsets[items + 1]
    offsets = np.concatenate([[0], np.cumsum(stops - starts)])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], stops - starts)
    return accidental_hits(
        torch.from_numpy(concepts.values[places]),
        torch.from_numpy(offsets),
        torch.from_numpy(row_to_item),
        torch.from_numpy(draw.concept),
    )
