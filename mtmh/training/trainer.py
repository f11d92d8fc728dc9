"""Training of the item tower: the story of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from mtmh.config import Config
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.data.loader import PairLoader
from mtmh.data.period import Period
from mtmh.distributed.communication import items_at_a_time
from mtmh.distributed.optimizers import build_optimizer, set_learning_rates
from mtmh.distributed.ranks import join_ranks
from mtmh.distributed.raw_id_tables import IdTables
from mtmh.distributed.sharding import plan_table, shard
from mtmh.training.checkpoint import Checkpoints, RunRecord, training_state
from mtmh.training.content import fit_content, with_content
from mtmh.training.continuation import carried_table, carry_over, carry_over_frequencies, open_previous, period_of
from mtmh.training.frequencies import FREQUENCIES, streaming_frequencies
from mtmh.training.gradients import tower_gradient_norms
from mtmh.training.loop import Trainer
from mtmh.training.model_builder import build_model
from mtmh.training.padding import of_one_size
from mtmh.training.progress import LossNames, RunSize, TrainingLog, first_triggers, quiet_libraries
from mtmh.training.task import TrainTask, items_per_step


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
        ValueError: an artifact or setting does not fit; the message says which.
        NonFiniteLossError: the loss is no longer a number; the last checkpoint is from before.
        NonFiniteStateError: weights or optimizer state are not; likewise.
    """
    with quiet_libraries(), join_ranks(config.training.device) as ranks:
        dataset = open_dataset(config.dataset_dir)
        content = open_content(config.content_dir, dataset) if config.needs_content else None
        inputs = {"dataset": dataset.artifact} | ({"content": content.artifact} if content else {})
        features = with_content(dataset.summary.features, config.model, content)
        previous = (
            open_previous(continue_from, config.model, config.training, dataset.summary) if continue_from else None
        )
        inputs |= {"previous": previous} if previous else {}
        period = Period.of(dataset.summary)
        period = period.after(period_of(previous)) if previous else period
        record = RunRecord.of_recipe(config, dataset, inputs)
        record.facts.update(period=period.model_dump(), features=features.model_dump(mode="json"))
        checkpoints = Checkpoints(config.model_dir("checkpoints"), record, ranks, config.training.keep_checkpoints)
        checkpoint = checkpoints.find(resume)
        on_gpu = ranks.device.type == "cuda"
        loader = PairLoader(dataset, config, ranks.rank, ranks.world_size, content, pin_memory=on_gpu)

        torch.manual_seed(config.seed)
        model = build_model(config.model, features, ranks.device, tables=torch.device("meta"))
        if content is not None:
            fit_content(model, content, config.seed)
        frequencies = streaming_frequencies(config.loss, config.training.batch_size, dataset.item_table, ranks)
        sharded, plan = shard(
            TrainTask(model, config.loss, config.seed, frequencies),
            config.sharding,
            ranks,
            items_per_step=items_per_step(config.training, config.loss),
            training=config.training,
            seed=config.seed,
        )
        if frequencies is not None:
            checkpoints.add(FREQUENCIES, frequencies)
        optimizer = build_optimizer(sharded, config.training)
        trained = partial(training_state, sharded, optimizer)
        step = checkpoints.restore(checkpoint, trained()) if checkpoint else 0
        carried = []
        if previous and not step:
            keep = config.training.continuation.optimizer_state == "keep"
            carried = carry_over(previous, dataset, sharded, optimizer, ranks, keep_optimizer=keep)
            if frequencies is not None:
                carry_over_frequencies(previous, dataset, frequencies)
        id_tables = IdTables(sharded)

        def begin_step(step: int) -> None:
            set_learning_rates(optimizer, config.training, step, continued=previous is not None)
            id_tables.tick()

        log = TrainingLog(
            checkpoints.root,
            RunSize(loader.num_steps, loader.steps_per_epoch, config.training.batch_size),
            LossNames.of_heads(config.model.heads),
            lambda step: first_triggers(dataset, next(loader.iterate(step))),
            ranks,
            log_every=config.training.log_every,
            start_step=step,
        )
        log.add("grad_norm", partial(tower_gradient_norms, optimizer))
        if config.model.id_tables:
            log.add("id_tables", id_tables.counts)
        log.show(plan_table(plan))
        if carried:
            log.show(carried_table(carried))
        trainer = Trainer(
            pipeline=TrainPipelineSparseDist(sharded, optimizer, ranks.device, execute_all_batches=True),
            begin_step=begin_step,
            trained=trained,
            checkpoints=checkpoints,
            log=log,
            ranks=ranks,
            checkpoint_every=config.training.checkpoint_every,
            save_behind=config.training.async_checkpoint,
            profile=profile,
        )
        batches = of_one_size(log.timed(loader.batches(step)), items_at_a_time(config.sharding.communication))
        checkpoint = trainer.run(batches, step, loader.num_steps) or checkpoint
        assert checkpoint is not None
        return checkpoint
