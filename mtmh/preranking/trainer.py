"""Training of the preranker: the same story as `mtmh.training.trainer`, with examples instead of pairs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from mtmh.config import Config, decisive
from mtmh.data.dataset import open_dataset
from mtmh.data.validation import ValidationDataset
from mtmh.distributed.communication import items_at_a_time
from mtmh.distributed.optimizers import build_optimizer, set_learning_rates
from mtmh.distributed.ranks import join_ranks, on_first
from mtmh.distributed.sharding import plan_table, shard
from mtmh.preranking.examples import ExampleLoader
from mtmh.preranking.inputs import open_inputs
from mtmh.preranking.labels import Labels
from mtmh.preranking.model_builder import build_preranker, priors
from mtmh.preranking.task import PrerankerTask
from mtmh.training.checkpoint import Checkpoints, RunRecord, training_state
from mtmh.training.gradients import tower_gradient_norms
from mtmh.training.loop import Trainer
from mtmh.training.padding import of_one_size
from mtmh.training.progress import LossNames, RunSize, TrainingLog, first_triggers, quiet_libraries


def train_preranker(config: Config, *, resume: bool = True) -> Path:
    """Trains the preranker of a recipe on T1 but for its end; alone in this process, or as one rank of torchrun.

    The events that ``validation`` holds back are left for learning how much the model's opinion counts beside other
    evidence, which shows only on events that the model has not seen.

    Resuming, sharding, optimizers and checkpoints are those of `mtmh.training.trainer.train`.

    Args:
        config: the recipe; the dataset must exist, and the item embeddings if they are inputs.
        resume: with ``False``, existing checkpoints are an error: nothing is ever overwritten.

    Returns:
        The folder of the last checkpoint.

    Raises:
        ValueError: an artifact or setting does not fit; the message says which.
        NonFiniteLossError: the loss is no longer a number; the last checkpoint is from before.
        NonFiniteStateError: weights or optimizer state are not; likewise.
    """
    settings, training = config.preranker, config.preranker.training
    with quiet_libraries(), join_ranks(training.device) as ranks:
        dataset = open_dataset(config.dataset_dir)
        embeddings = config.model_dir("embeddings") if settings.head_embeddings else None
        inputs, artifacts = open_inputs(dataset, embeddings)
        labels = Labels(settings.tasks, dataset.summary)
        features = dataset.summary.features
        record = RunRecord.of_dataset(
            config.model_dump(mode="json"),
            decisive(config, "preranker-checkpoint"),
            dataset,
            artifacts,
            "preranker-checkpoint",
        )
        checkpoints = Checkpoints(config.preranker_checkpoints, record, ranks, training.keep_checkpoints)
        checkpoint = checkpoints.find(resume)
        on_gpu = ranks.device.type == "cuda"
        view = ValidationDataset(dataset, config.validation, config.seed)
        loader = ExampleLoader(
            view, settings, inputs, labels, config.seed, ranks.rank, ranks.world_size, pin_memory=on_gpu
        )
        prior = on_first(ranks, lambda: priors(dataset, labels))
        record.facts["preranker"] = {"prior": prior, "frozen_dim": inputs.frozen_dim}

        torch.manual_seed(config.seed)
        model = build_preranker(settings, features, inputs.frozen_dim, prior, ranks.device, tables=torch.device("meta"))
        sharded, plan = shard(
            PrerankerTask(model, settings.in_batch_negatives),
            config.sharding,
            ranks,
            items_per_step=2 * training.batch_size + settings.num_uniform_negatives,
            training=training,
            seed=config.seed,
        )
        optimizer = build_optimizer(sharded, training)
        trained = partial(training_state, sharded, optimizer)
        step = checkpoints.restore(checkpoint, trained()) if checkpoint else 0

        columns = ("engagement", *labels.names)
        log = TrainingLog(
            checkpoints.root,
            RunSize(loader.num_steps, loader.steps_per_epoch, training.batch_size),
            LossNames(("cross_entropy",), columns, ((1.0,) * len(columns),), noun="task"),
            lambda step: first_triggers(dataset, next(loader.iterate(step))),
            ranks,
            log_every=training.log_every,
            start_step=step,
        )
        log.add("grad_norm", partial(tower_gradient_norms, optimizer))
        log.show(plan_table(plan))
        trainer = Trainer(
            pipeline=TrainPipelineSparseDist(sharded, optimizer, ranks.device, execute_all_batches=True),
            begin_step=partial(set_learning_rates, optimizer, training),
            trained=trained,
            checkpoints=checkpoints,
            log=log,
            ranks=ranks,
            checkpoint_every=training.checkpoint_every,
            save_behind=training.async_checkpoint,
        )
        batches = of_one_size(log.timed(loader.batches(step)), items_at_a_time(config.sharding.communication))
        checkpoint = trainer.run(batches, step, loader.num_steps) or checkpoint
        assert checkpoint is not None
        return checkpoint
