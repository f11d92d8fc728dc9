"""Trains HSTU or SASRec on the training histories, for their item embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.data.arrays import Vectors
from mtmh.data.dataset import Dataset
from mtmh.data.histories import flat_lists, flat_numbers
from mtmh.data.schema import HISTORIES, ITEM_ID
from mtmh.modules.hstu import Hstu
from mtmh.modules.losses import contrastive_losses
from mtmh.modules.sasrec import SasRec
from mtmh.modules.sequence_model import SequenceModel, build_item_collection
from mtmh.specs import Head


@dataclass(frozen=True)
class SequenceSettings:
    """Settings of a run; those that are not a recipe's are of the published code for small data.

    Attributes:
        kind: of model.
        dim: of item vectors and states.
        num_negatives: uniform draws, shared by a batch.
        seed: of weights, order and draws.
        epochs: passes over the histories, at least.
        min_steps: of a few histories many passes, so that there are so many steps.
        batch_pieces: histories, or pieces of long ones, a step.
        max_length: of a piece.
        num_layers: of attention.
        num_heads: of each.
        dropout: of inputs and gated values.
        learning_rate: of Adam.
        temperature: of the sampled softmax.
    """

    kind: Literal["hstu", "sasrec"]
    dim: int
    num_negatives: int
    seed: int
    epochs: int = 20
    min_steps: int = 1000
    batch_pieces: int = 128
    max_length: int = 50
    num_layers: int = 2
    num_heads: int = 1
    dropout: float = 0.2
    learning_rate: float = 1e-3
    temperature: float = 0.1


@dataclass(frozen=True)
class Pieces:
    """Runs of events of one user, of at least two, as rows of the item table.

    Attributes:
        rows: [H] int64, piece after piece, oldest first.
        times: [H] int64.
        offsets: [P + 1] int64.
    """

    rows: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def read(cls, dataset: Dataset, max_length: int) -> Pieces:
        """All training histories, long ones cut, the last piece whole; an item in two pieces is in none twice."""
        path = dataset.artifact.path / HISTORIES
        table = pq.read_table(path, columns=["items", "timestamps"])
        histories, times = flat_lists(table.column("items"), path), flat_numbers(table.column("timestamps"), path)
        rows = dataset.item_table.columns[ITEM_ID].values[histories.items].astype(np.int64)
        ends: list[npt.NDArray[np.int64]] = []
        for start, end in zip(histories.offsets[:-1].tolist(), histories.offsets[1:].tolist(), strict=True):
            cuts = np.arange(end, start, -max_length)[::-1]
            ends.append(cuts)
        offsets = np.concatenate([[0], *ends])
        return cls(rows, times.astype(np.int64), offsets)

    def batches(self, size: int, order: npt.NDArray[np.int64]) -> Iterator[tuple[KeyedJaggedTensor, Tensor]]:
        """Rows and padded times [B, N] of some pieces at a time; pieces of one event teach nothing."""
        lengths = np.diff(self.offsets)
        order = order[lengths[order] > 1]
        for start in range(0, len(order), size):
            part = order[start : start + size]
            spans = [slice(self.offsets[piece], self.offsets[piece + 1]) for piece in part]
            times = np.zeros((len(part), int(lengths[part].max())), np.int64)
            for row, span in enumerate(spans):
                times[row, : span.stop - span.start] = self.times[span]
            values = torch.from_numpy(np.concatenate([self.rows[span] for span in spans]))
            counts = torch.from_numpy(lengths[part])
            yield KeyedJaggedTensor(keys=[ITEM_ID], values=values, lengths=counts), torch.from_numpy(times)


def train_sequence_model(dataset: Dataset, settings: SequenceSettings) -> Vectors:
    """Trains on all of T1 in this process; the next item of each place against uniform draws.

    Args:
        dataset: its histories and the rows of its items.
        settings: of the run.

    Returns:
        [I, D] float32 unit-length item embeddings; items without a training event share the one of row 0.
    """
    (num_rows,) = (f.num_rows for f in dataset.summary.features.id_features if f.name == ITEM_ID)
    model = fit_sequence_model(Pieces.read(dataset, settings.max_length), num_rows, settings)
    with torch.no_grad():
        rows = torch.from_numpy(dataset.item_table.columns[ITEM_ID].values.astype(np.int64))
        return model.eval().embed(rows).numpy()


def fit_sequence_model(pieces: Pieces, num_rows: int, settings: SequenceSettings) -> SequenceModel:
    """A model trained on histories of rows from 1 to ``num_rows - 1``.

    Raises:
        ValueError: no history has a next event.
    """
    num_pieces = int((np.diff(pieces.offsets) > 1).sum())
    if num_pieces == 0:
        raise ValueError("a sequence model learns the next event of a history, and no history has two events")
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    model = (Hstu if settings.kind == "hstu" else SasRec)(
        build_item_collection(num_rows, settings.dim),
        settings.dim,
        settings.max_length,
        settings.num_layers,
        settings.num_heads,
        settings.dropout,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98))
    steps_per_epoch = math.ceil(num_pieces / settings.batch_pieces)
    epochs = max(settings.epochs, math.ceil(settings.min_steps / steps_per_epoch))
    for epoch in range(epochs):
        losses = []
        for history, times in pieces.batches(settings.batch_pieces, rng.permutation(len(pieces.offsets) - 1)):
            negatives = torch.from_numpy(rng.integers(1, num_rows, settings.num_negatives))
            loss = next_item_loss(model, history, times, negatives, settings.temperature)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.4f}", flush=True)
    return model


def next_item_loss(
    model: SequenceModel, history: KeyedJaggedTensor, times: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """The sampled softmax of the next item at each place of each history, a mean over places.

    Args:
        model: of item vectors and states.
        history: rows of ``B`` histories.
        times: [B, N].
        negatives: [L] rows, shared by all places; where one is the next item it is left out.
        temperature: divides the cosines.
    """
    lengths, rows = history[ITEM_ID].lengths(), history[ITEM_ID].values()
    states = model(history, times)
    places = torch.arange(times.shape[1], device=times.device)
    asking = states[places < lengths[:, None] - 1]
    first = torch.ones_like(rows, dtype=torch.bool)
    first[history[ITEM_ID].offsets()[:-1]] = False
    wanted = rows[first]
    hits = (wanted[:, None] == negatives[None, :]).nonzero(as_tuple=True)
    sums = contrastive_losses(
        trigger=[asking],
        positive=[model.embed(wanted)],
        negative=[model.embed(negatives)],
        heads=[Head("engagement")],
        temperature=temperature,
        hits=(hits[0], hits[1]),
    )
    return sums.total / len(wanted)
