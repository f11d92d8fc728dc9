"""Training of the item tower: the story of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from mtmh.artifacts import Artifact
from mtmh.config import Config, LossConfig, ModelConfig, PairsConfig, ShardingConfig, TrainingConfig, decisive
from mtmh.data.content_store import ContentEmbeddings, open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.loader import PairLoader
from mtmh.data.pairs import WindowPairs
from mtmh.data.period import Period
from mtmh.data.stream import sized
from mtmh.data.validation import ValidationDataset
from mtmh.distributed.communication import items_at_a_time
from mtmh.distributed.content_table import CONTENT_ROWS
from mtmh.distributed.optimizers import build_optimizer, set_learning_rates, tower_gradient_norms
from mtmh.distributed.ranks import Ranks, join_ranks, writing_alone
from mtmh.distributed.raw_id_tables import IdTables
from mtmh.distributed.sharding import plan_table, shard, train_pipeline
from mtmh.training.arithmetic import arithmetic
from mtmh.training.checkpoint import Checkpoints, RunRecord, training_state
from mtmh.training.content import content_table, fill_content_table, fit_content, teacher_directions, with_content
from mtmh.training.continuation import (
    carried_table,
    carry_over,
    carry_over_frequencies,
    open_previous,
    period_of,
    warn_of_known_end,
)
from mtmh.training.early_stopping import EarlyStopping
from mtmh.training.frequencies import FREQUENCIES, streaming_frequencies
from mtmh.training.local_copy import local_copy
from mtmh.training.loop import Trainer, Validation
from mtmh.training.measure import CatalogueEmbedder, ValidationMeasure
from mtmh.training.model_builder import build_model
from mtmh.training.newest import LENGTH, VALIDATION
from mtmh.training.progress import LossNames, RunSize, TrainingLog, first_triggers, quiet_libraries
from mtmh.training.shared_negatives import with_draws
from mtmh.training.task import TrainTask, items_per_step

CONTINUED = 1 / 3  # of the epochs that were best, on all of T1, where the best model trains on


def train(config: Config, *, resume: bool = True, continue_from: Path | None = None, profile: int = 0) -> Path:
    """Trains the model of a recipe; alone in this process, or as one rank of torchrun.

    Goes on from the newest whole checkpoint of the recipe if there is one. A run that was killed and resumed on the
    same number of ranks computes what one that was not would have computed, bit for bit.

    Args:
        config: the recipe; the dataset (and the content embeddings, if a loss needs them) must exist.
        resume: with ``False``, existing checkpoints are an error: nothing is ever overwritten.
        continue_from: a checkpoint of the period before; a fresh run starts from its model (`carry_over`), a resumed
            one must name it again.
        profile: so many steps are traced into the folder ``trace`` beside the checkpoints (`tracing`).

    Returns:
        The folder of the last checkpoint.

    Raises:
        ValueError: an artifact or setting does not fit, or another process trains here; the message says which.
        NonFiniteLossError: the loss is no longer a number; the last checkpoint is from before.
        NonFiniteStateError: weights or optimizer state are not; likewise.
    """
    root = config.model_dir("checkpoints")
    with (
        quiet_libraries(),
        join_ranks(config.training.device) as ranks,
        writing_alone(ranks, root),
        arithmetic(config.training, ranks.device),
    ):
        disk = config.paths.local
        dataset = open_dataset(local_copy(config.dataset_dir, "dataset", disk, ranks))
        content = None
        if config.needs_content:
            content = open_content(local_copy(config.content_dir, "content", disk, ranks), dataset)
        inputs = {"dataset": dataset.artifact} | ({"content": content.artifact} if content else {})
        previous = None
        if continue_from:
            previous = open_previous(continue_from, config.model, config.training, dataset.summary)
            inputs["previous"] = previous
        recipe = config.model_dump(mode="json")
        view, chooses = None, config.training.chooses_length
        if config.trains_without_end:
            if chooses and dataset.summary.rides_along:
                raise ValueError(
                    "training.epochs: auto measures a run without the end of T1, whose items have other counts than "
                    "those that ride along (data.item_features); set a number"
                )
            view = ValidationDataset(dataset, config.validation, config.seed)
            if previous:
                warn_of_known_end(previous, view.summary)
        expansion = WindowPairs(config.pairs.window, config.pairs.direction)
        run = _Run(
            model=config.model,
            loss=config.loss,
            pairs=config.pairs,
            training=sized(config.training, view if view and chooses else dataset, expansion),
            sharding=config.sharding,
            validation_users=config.validation.num_users,
            content_in_table=config.content.storage == "table",
            seed=config.training.seed_or(config.seed),
            dataset=dataset,
            content=content,
            previous=previous,
            record=RunRecord.of_dataset(recipe, decisive(config, "checkpoint"), dataset, inputs),
        )
        stopping = None
        if view is not None:
            # First without the end of T1: to find how long, and for the preranker, which weighs on that end what the
            # heads say; then on all of it.
            first = replace(run, dataset=view)
            stopping = _train(first, ranks, root / VALIDATION, resume=resume, view=view if chooses else None)[1]
        final = config.training.second_run(view.holds_back_little) if view and stopping else "retrain"
        return _train(run, ranks, root, resume=resume, profile=profile, chosen=stopping, final=final)[0]


@dataclass(frozen=True)
class _Run:
    """The sections that a run goes by, what it reads, and what its checkpoints record of both."""

    model: ModelConfig
    loss: LossConfig
    pairs: PairsConfig
    training: TrainingConfig
    sharding: ShardingConfig
    validation_users: int
    content_in_table: bool
    seed: int
    dataset: Dataset
    content: ContentEmbeddings | None
    previous: Artifact | None
    record: RunRecord


def _train(
    run: _Run,
    ranks: Ranks,
    root: Path,
    *,
    resume: bool,
    profile: int = 0,
    view: ValidationDataset | None = None,
    chosen: EarlyStopping | None = None,
    final: Literal["continue", "retrain", "keep"] = "retrain",
) -> tuple[Path, EarlyStopping | None]:
    """One run from its newest checkpoint, or the beginning, to its end.

    Args:
        run: settings and inputs.
        ranks: this process among the others.
        root: of its checkpoints.
        resume: see `train`.
        profile: see `train`.
        view: the dataset of a run that is measured on what this holds back, and ends when that gets no better.
        chosen: the run before, which says how long this one is.
        final: what becomes of the best model of that run.

    Returns:
        The last checkpoint; what was measured, if there is a ``view``.
    """
    dataset, content, previous, training = run.dataset, run.content, run.previous, run.training
    features = with_content(dataset.summary.features, run.model, content)
    period = Period.of(dataset.summary)
    period = period.after(period_of(previous)) if previous else period
    facts = {"period": period.model_dump(), "features": features.model_dump(mode="json")}
    if chosen is not None:
        facts["validation"] = {"best": asdict(chosen.best), "curve": [asdict(point) for point in chosen.curve]}
    record = replace(run.record, facts=run.record.facts | facts | {"batch_size": training.global_batch})
    # Of a run that is measured, the best model must be left when it ends: at most a hundredth above it, one may come
    # within the patience, and as much patience after that.
    kept = 2 * training.patience if view else training.keep_checkpoints
    checkpoints = Checkpoints(root, record, ranks, kept)
    checkpoint = checkpoints.find(resume)
    on_gpu, in_table = ranks.device.type == "cuda", content is not None and run.content_in_table
    loader = PairLoader(
        dataset,
        run.pairs,
        run.loss,
        training,
        run.model,
        run.seed,
        ranks.rank,
        ranks.world_size,
        content,
        content_rows=CONTENT_ROWS if in_table else None,
        pin_memory=on_gpu,
    )
    best: Path | None = None  # to start from
    if chosen is not None:
        epochs = chosen.best.epoch * (CONTINUED if final == "continue" else 1.0)
        # The very step of the model that is kept.
        loader.num_steps = chosen.best.step if final == "keep" else max(1, round(epochs * loader.steps_per_epoch))
        best = None if final == "retrain" else root / VALIDATION / f"step-{chosen.best.step:08d}"

    record.facts[LENGTH] = loader.num_steps
    torch.manual_seed(run.seed)
    model = build_model(run.model, features, ranks.device, tables=torch.device("meta"))
    directions = None
    if content is not None and not in_table:
        content.expect_random_reads(reads_for_host=ranks.rank % ranks.local_world_size == 0)
    if content is not None:
        fit_content(model, content, run.seed)
        directions = teacher_directions(content, run.model, run.loss, run.seed, ranks)
    frequencies = streaming_frequencies(run.loss, training.global_batch, dataset.item_table, ranks)
    sharded, plan = shard(
        TrainTask(
            model,
            run.loss,
            run.seed,
            frequencies,
            directions,
            content_table(content) if content is not None and in_table else None,
            run.pairs.sim if in_table and run.pairs.sim.kind == "content" else None,
            products="bfloat16" if training.matmul_precision == "bf16" else "float32",
        ),
        run.sharding,
        ranks,
        items_per_step=items_per_step(training, run.loss),
        training=training,
        seed=run.seed,
    )
    if content is not None and in_table:
        fill_content_table(sharded.module.content, content)
    if frequencies is not None:
        checkpoints.add(FREQUENCIES, frequencies)
    optimizer = build_optimizer(sharded, training)
    trained = partial(training_state, sharded, optimizer)
    step = checkpoints.restore(checkpoint, trained()) if checkpoint else 0
    carried = []
    if best is not None and not step:
        finished = checkpoints.restore(best, trained())
        if final == "keep":
            return checkpoints.save(finished, trained()), None
    elif previous and not step:
        keep_optimizer = training.continuation.optimizer_state == "keep"
        carried = carry_over(previous, dataset, sharded, optimizer, ranks, keep_optimizer=keep_optimizer)
        if frequencies is not None:
            carry_over_frequencies(previous, dataset, frequencies)
    id_tables = IdTables(sharded)

    def begin_step(step: int) -> None:
        set_learning_rates(optimizer, training, step, continued=previous is not None)
        id_tables.tick()

    log = TrainingLog(
        root,
        RunSize(loader.num_steps, loader.steps_per_epoch, training.global_batch, at_most=view is not None),
        LossNames.of_heads(run.model.heads),
        lambda step: first_triggers(dataset, next(loader.iterate(step))),
        ranks,
        log_every=training.log_every,
        start_step=step,
    )
    log.add("grad_norm", partial(tower_gradient_norms, optimizer))
    if isinstance(dataset, ValidationDataset):
        purpose = "finds how long to train" if view else "as long as the one on all of T1, for weighing evidence"
        log.show(f"First run, without the end of T1: {purpose}")
    if run.model.id_tables:
        log.add("id_tables", id_tables.counts)
    log.show(plan_table(plan))
    if carried:
        log.show(carried_table(carried))
    pipeline = train_pipeline(sharded, optimizer, run.sharding, ranks.device)
    validation = stopping = None
    if view is not None:
        measure = ValidationMeasure(view, run.validation_users, run.seed, ranks)
        embedder = CatalogueEmbedder(pipeline, sharded, view, content, ranks.device, frozenset(run.model.id_tables))
        every = measure.interval(loader.steps_per_epoch, training.global_batch, run.loss.num_uniform_negatives)
        stopping = EarlyStopping(
            partial(embedder.measured, measure), root, loader.steps_per_epoch, training.patience, ranks, log.show, step
        )
        validation = Validation(every, stopping)
        log.add("validation", stopping.latest)
        if stopping.is_over:
            loader.num_steps = step
    trainer = Trainer(
        pipeline=pipeline,
        begin_step=begin_step,
        trained=trained,
        checkpoints=checkpoints,
        log=log,
        ranks=ranks,
        checkpoint_every=validation.every if validation else training.checkpoint_every,
        checkpoint_seconds=0.0 if validation else 60 * training.checkpoint_minutes,
        save_behind=training.async_checkpoint,
        profile=profile,
        validation=validation,
    )
    multiple_of = items_at_a_time(run.sharding.communication)
    batches = with_draws(log.timed(loader.batches(step)), run.loss, run.seed, frequencies, multiple_of)
    checkpoint = trainer.run(batches, step, loader.num_steps) or checkpoint
    assert checkpoint is not None
    if stopping is not None and not stopping.curve:  # over before the first look
        stopping(step)
    return checkpoint, stopping
