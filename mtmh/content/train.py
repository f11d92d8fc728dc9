"""Training of the content encoder against concepts: the story of a run."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtmh.artifacts import (
    Artifact,
    ArtifactWriter,
    DamagedArtifactError,
    OtherFormatError,
    open_artifact,
    write_artifact,
)
from mtmh.config import Config, ContentConfig, EncoderTrainingConfig, decisive
from mtmh.config.base import leaves
from mtmh.content.concepts import Concepts, PairOrder, false_negatives, open_concepts
from mtmh.content.identity import facts_of_run, identity_of_files
from mtmh.content.inputs import ItemReader, tokenize
from mtmh.content.teacher import ContentFiles, Teacher, build_teacher, catalogue_words, encoder_config
from mtmh.content.tuning import (
    encoder_optimizer,
    encoder_state,
    merge_adapters,
    prepare_tuning,
    set_learning_rate,
    set_training_mode,
    trained_parameters,
)
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.prefetch import prefetched
from mtmh.data.randomness import Purpose, chosen
from mtmh.distributed.ranks import Ranks, gather_rows, join_ranks, on_first, writing_alone
from mtmh.modules import ContentInputs, Head, contrastive_losses
from mtmh.training.checkpoint import Checkpoints, RunRecord
from mtmh.training.loop import PlainPipeline, Trainer
from mtmh.training.progress import STEP_METRICS, LossNames, RunSize, TrainingLog, quiet_libraries

logger = logging.getLogger(__name__)

DIRECTIONS = (Head("content_to_concept"), Head("concept_to_content"))


def train_content(config: Config, out: Path) -> Artifact:
    """Trains the content encoder of a recipe; alone in this process, or as one rank of torchrun.

    A run that was killed goes on from its last checkpoint and ends where it would have ended; a finished one with the
    same settings and data is returned as it is.

    Args:
        config: the recipe, with ``content.kind = encoder``; its dataset must exist.
        out: the encoder artifact; checkpoints of the run stand beside it, in ``<out>.steps``, until it is finished.

    Raises:
        ValueError: a setting, the table of concepts or a backbone does not fit.
        NonFiniteLossError: the loss is no longer a number; the last checkpoint is from before.
        NonFiniteStateError: weights or optimizer state are not; likewise.
    """
    encoder = encoder_config(config.content)  # says at once if there is none
    steps = out.with_name(f"{out.name}.steps")
    with quiet_libraries(), join_ranks(config.training.device) as ranks, writing_alone(ranks, steps):
        # A frame of its own: what holds on to the process group must be gone before the group is.
        dataset = open_dataset(config.dataset_dir)
        files = ContentFiles.find(encoder, config.media_dir)
        writer_of = partial(
            write_artifact, out, "encoder", config=config.model_dump(mode="json"), decisive=decisive(config, "encoder")
        )
        _train(config.content, config.seed, dataset, files, out, steps, ranks, writer_of)
        return open_artifact(out, "encoder")


def _train(
    content: ContentConfig,
    seed: int,
    dataset: Dataset,
    files: ContentFiles,
    out: Path,
    steps: Path,
    ranks: Ranks,
    writer_of: Callable[..., AbstractContextManager[ArtifactWriter]],
) -> None:
    encoder = encoder_config(content)
    training = encoder.training
    if files.concepts is None:
        raise ValueError(
            "content.encoder.concepts: not set; training needs a table item_id, concept, source (a simulated "
            "catalogue gets one from mtmh content simulate)"
        )
    concepts = open_concepts(dataset, files.concepts, training.source_weights)
    if ranks.is_first and encoder.concepts is not None:  # those of a simulation know nothing of events
        logger.warning("%s: %s", files.concepts, concepts.test_period)
    order = PairOrder(concepts, training.batch_size, seed)
    num_steps = training.num_steps(order.steps_per_epoch)
    told = on_first(ranks, lambda: identity_of_files(encoder, files, dataset))
    facts = facts_of_run(content, seed, dataset, concepts.pairs_of_source, num_steps, told)
    if on_first(ranks, lambda: _is_finished(out, facts)):
        return

    teacher = build_teacher(encoder, seed, catalogue_words(dataset, concepts.texts))
    prepare_tuning(teacher, encoder)
    teacher.model.to(ranks.device)
    optimizer = encoder_optimizer(teacher, training)
    trained = partial(encoder_state, trained_parameters(teacher), optimizer)
    record = RunRecord(facts, dict(leaves(facts)), inputs={})
    checkpoints = Checkpoints(steps, record, ranks, keep=1)
    found = checkpoints.find(resume=True)
    step = checkpoints.restore(found, trained()) if found else 0

    def begin_step(step: int) -> None:
        set_learning_rate(optimizer, training, step, num_steps)
        # Dropout of a step is its own, whatever ran before it.
        torch.manual_seed(_seed_of(seed, step, ranks.rank))

    reader = teacher.reader(dataset, files.images, content.max_tokens)
    batches = TrainBatches(order, concepts, teacher, reader, training, content.max_tokens, seed, ranks)
    dtype = autocast_dtype(content.precision, ranks.device)
    task = ContrastTask(_replicated(teacher, ranks), training.temperature, dtype)
    set_training_mode(teacher)
    log = TrainingLog(
        checkpoints.root,
        RunSize(num_steps, order.steps_per_epoch, training.batch_size),
        LossNames(("contrastive",), ("content",), ((1.0,),), noun="tower"),
        lambda step: [str(dataset.item_ids[item]) for item in order.draw(step).item[batches.share].tolist()],
        ranks,
        log_every=training.log_every,
        start_step=step,
    )
    trainer = Trainer(
        pipeline=PlainPipeline(task, optimizer, ranks.device),
        begin_step=begin_step,
        trained=trained,
        checkpoints=checkpoints,
        log=log,
        ranks=ranks,
        checkpoint_every=training.checkpoint_every,
    )
    trainer.run(log.timed(prefetched(batches.read_from(step, num_steps), depth=2)), step, num_steps)

    _warn_of_missing(batches, ranks)
    merge_adapters(teacher)
    summary = {
        "decisive": facts,
        "pairs_of_source": concepts.pairs_of_source,
        "dropped_concepts": concepts.dropped,
        "concepts_of_test_period": concepts.test_period,
    }
    inputs = {"dataset": dataset.artifact}
    if encoder.concepts is None:
        assert files.media is not None
        inputs["media"] = files.media

    def write() -> None:
        lines = map(json.loads, (checkpoints.root / STEP_METRICS).read_text().splitlines())
        losses = [(line["step"], line["loss"]["content"]["contrastive"]) for line in lines]
        with writer_of(inputs=inputs) as writer:
            writer.summary |= teacher.save(writer.folder) | summary | {"losses": losses}
        shutil.rmtree(checkpoints.root)

    on_first(ranks, write)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that matrix products are computed in, ``None`` for float32, by ``content.precision``."""
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and device.type == "cuda") else None


@dataclass(frozen=True)
class TrainBatch:
    """One rank's share of a global step, and what it needs to know of the others.

    Attributes:
        inputs: texts and images of the rank's pairs.
        concept_ids: [B, L] int64 tokens of their concepts.
        concept_mask: [B, L] int64.
        weight: [B] float32.
        global_weight: of all ranks' pairs together.
        hits: for each direction, rows of this rank and columns of the global batch that are no negatives.
    """

    inputs: ContentInputs
    concept_ids: Tensor
    concept_mask: Tensor
    weight: Tensor
    global_weight: float
    hits: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

    def to(self, device: torch.device) -> TrainBatch:
        """A copy on ``device``."""
        return TrainBatch(
            self.inputs.to(device),
            self.concept_ids.to(device),
            self.concept_mask.to(device),
            self.weight.to(device),
            self.global_weight,
            tuple((rows.to(device), columns.to(device)) for rows, columns in self.hits),  # type: ignore[arg-type]
        )


class TrainBatches:
    """Reads the share of this rank of each global step; the global batch is the same for any number of ranks.

    Attributes:
        share: this rank's rows of the global batch.
        counts: missing and broken texts and images met so far by this rank.

    Raises:
        ValueError: the batch does not divide by the ranks, or images are not where the recipe says.
    """

    def __init__(
        self,
        order: PairOrder,
        concepts: Concepts,
        teacher: Teacher,
        reader: ItemReader,
        training: EncoderTrainingConfig,
        max_tokens: int,
        seed: int,
        ranks: Ranks,
    ) -> None:
        if training.batch_size % ranks.world_size:
            raise ValueError(
                f"content.encoder.training.batch_size ({training.batch_size}) must be a multiple of the number of "
                f"ranks ({ranks.world_size})"
            )
        size = training.batch_size // ranks.world_size
        self.share = slice(ranks.rank * size, (ranks.rank + 1) * size)
        self._order = order
        self._concepts = concepts
        self._reader = reader
        self._tokenizer = teacher.concept_tokenizer
        self._max_tokens = max_tokens
        self._seed = seed
        self._dropout = training.modality_dropout if {"text", "image"} <= teacher.backbones.keys() else 0.0
        self.counts: Counter[str] = Counter()

    def read_from(self, step: int, num_steps: int) -> Iterator[TrainBatch]:
        """The batches of the steps ``step`` to ``num_steps - 1``."""
        for current in range(step, num_steps):
            yield self.read(current)

    def read(self, step: int) -> TrainBatch:
        """The batch of one step, a pure function of its number."""
        draw, share = self._order.draw(step), self.share
        items = self._reader.read(draw.item[share])
        self.counts.update(items.counts)
        texts = [self._concepts.texts[number] for number in draw.concept[share]]
        ids, mask = tokenize(self._tokenizer, texts, self._max_tokens)
        rows, columns = false_negatives(self._concepts, draw)
        return TrainBatch(
            inputs=self._drop(items.inputs, step),
            concept_ids=ids,
            concept_mask=mask,
            weight=torch.from_numpy(draw.weight[share]),
            global_weight=float(draw.weight.sum(dtype=np.float64)),
            hits=(_local(rows, columns, share), _local(columns, rows, share)),
        )

    def _drop(self, inputs: ContentInputs, step: int) -> ContentInputs:
        """Takes the text or the image from some rows that have both."""
        if self._dropout == 0.0:
            return inputs
        place, seed = np.arange(self.share.start, self.share.stop), self._seed
        dropped = torch.from_numpy(chosen(place, self._dropout, Purpose.MODALITY_DROPOUT, seed, step))
        of_text = torch.from_numpy(chosen(place, 0.5, Purpose.MODALITY_DROPOUT, seed, step, 1))
        has_text, has_image = torch.zeros(2, inputs.num_rows, dtype=torch.bool)
        has_text[inputs.text_rows] = True
        has_image[inputs.image_rows] = True
        dropped &= has_text & has_image
        return inputs.without(text=dropped & of_text, image=dropped & ~of_text)


def _local(rows: Tensor, columns: Tensor, share: slice) -> tuple[Tensor, Tensor]:
    inside = (rows >= share.start) & (rows < share.stop)
    return rows[inside] - share.start, columns[inside]


class ContrastTask:
    """The loss of a batch: content against all concepts of the global batch, and concept against all contents.

    Args:
        network: the content encoder, wrapped or not.
        temperature: divides cosines.
        dtype: of autocast; ``None``: float32.
    """

    def __init__(self, network: nn.Module, temperature: float, dtype: torch.dtype | None) -> None:
        self._network = network
        self._temperature = temperature
        self._dtype = dtype

    def __call__(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Computes the loss.

        Returns:
            loss [] to differentiate, the mean of both directions a unit of weight: the ranks' losses average to that of
            the global batch; losses [1, 1], detached: added up over ranks they are that mean.
        """
        with ExitStack() as stack:
            if self._dtype is not None:
                stack.enter_context(torch.autocast(batch.weight.device.type, self._dtype))
            embedded = self._network(batch.inputs, batch.concept_ids, batch.concept_mask)
        content, concept = (embeddings.float() for embeddings in embedded)
        sizes = [len(content)] * dist.get_world_size()
        all_contents, all_concepts = gather_rows(content, sizes), gather_rows(concept, sizes)
        sides = ((content, concept, all_concepts), (concept, content, all_contents))
        losses = [
            contrastive_losses(
                [trigger],
                [positive],
                [negative],
                [direction],
                temperature=self._temperature,
                row_weight=batch.weight,
                hits=hits,
            ).total
            for direction, hits, (trigger, positive, negative) in zip(DIRECTIONS, batch.hits, sides, strict=True)
        ]
        own_part = torch.stack(losses).sum() / (2.0 * batch.global_weight)
        return own_part * len(sizes), own_part.detach().reshape(1, 1)


def _replicated(teacher: Teacher, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return teacher.model
    # A rank whose batch has no image leaves the image encoder out of that step.
    return DistributedDataParallel(teacher.model, find_unused_parameters=True, broadcast_buffers=False)


def _warn_of_missing(batches: TrainBatches, ranks: Ranks) -> None:
    names = ("broken_images", "missing_images", "empty_texts")
    counts = torch.tensor([batches.counts[name] for name in names], device=ranks.device)
    dist.all_reduce(counts)
    found = [f"{count} {name.replace('_', ' ')}" for name, count in zip(names, counts.tolist(), strict=True) if count]
    if found and ranks.is_first:
        logger.warning("stand-ins took the place of %s, each counted as often as it was drawn", ", ".join(found))


def _seed_of(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _is_finished(out: Path, facts: dict[str, Any]) -> bool:
    try:
        artifact = open_artifact(out, "encoder")
    except (DamagedArtifactError, OtherFormatError):
        return False
    if artifact.summary["decisive"] != facts:
        return False
    logger.info("%s: trained already with these settings and data", out)
    return True
