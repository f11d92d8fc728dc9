"""Training of the preranker: the same story as `mtmh.training.trainer`, with examples instead of pairs."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from mtmh.artifacts import Artifact
from mtmh.config import Config, PrerankerConfig, ShardingConfig, decisive
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.stream import sized
from mtmh.data.validation import ValidationDataset
from mtmh.distributed.communication import items_at_a_time
from mtmh.distributed.optimizers import build_optimizer, set_learning_rates, tower_gradient_norms
from mtmh.distributed.ranks import Ranks, join_ranks, on_first, writing_alone
from mtmh.distributed.sharding import plan_table, shard, train_pipeline
from mtmh.preranking.examples import ExampleLoader, LaterEvents
from mtmh.preranking.held_back import embedded_by, model_without_end
from mtmh.preranking.inputs import ItemInputs, open_inputs
from mtmh.preranking.labels import Labels
from mtmh.preranking.model_builder import build_preranker, priors
from mtmh.preranking.task import PrerankerTask
from mtmh.tower.embed import embed_catalogue
from mtmh.training.arithmetic import arithmetic
from mtmh.training.checkpoint import Checkpoints, RunRecord, training_state
from mtmh.training.loop import Trainer
from mtmh.training.newest import VALIDATION
from mtmh.training.padding import of_one_size
from mtmh.training.progress import LossNames, RunSize, TrainingLog, first_triggers, quiet_libraries
from mtmh.training.trainer import CONTINUED

logger = logging.getLogger(__name__)


def train_preranker(config: Config, *, resume: bool = True) -> Path:
    """Trains the preranker of a recipe twice; alone in this process, or as one rank of torchrun.

    First on T1 without the events that ``validation`` holds back: how much the model's opinion counts beside other
    evidence shows only on events that neither it nor the embeddings have seen. Then the model trains on with all of T1,
    for service; where little was held back, the first one serves; where the tower began anew, so does the preranker
    (``training.final``).

    Resuming, sharding, optimizers and checkpoints are those of `mtmh.training.trainer.train`.

    Args:
        config: the recipe; the dataset must exist, and the item embeddings if they are inputs.
        resume: with ``False``, existing checkpoints are an error: nothing is ever overwritten.

    Returns:
        The folder of the last checkpoint of the second run; those of the first are beside it, in ``validation``.

    Raises:
        ValueError: an artifact or setting does not fit; the message says which.
        NonFiniteLossError: the loss is no longer a number; the last checkpoint is from before.
        NonFiniteStateError: weights or optimizer state are not; likewise.
    """
    root = config.preranker_checkpoints
    with (
        quiet_libraries(),
        join_ranks(config.preranker.training.device) as ranks,
        writing_alone(ranks, root),
        arithmetic(config.preranker.training, ranks.device),
    ):
        dataset = open_dataset(config.dataset_dir)
        view = ValidationDataset(dataset, config.validation, config.seed)
        embeddings = config.model_dir("embeddings") if config.preranker.head_embeddings else None
        held_back, checkpoint = embeddings, None
        if embeddings is not None:
            checkpoint = on_first(ranks, lambda: _model_without_end(config.model_dir("checkpoints"), embeddings))
        if checkpoint is not None:
            held_back = config.held_back_embeddings
            if not on_first(ranks, lambda: embedded_by(config.held_back_embeddings, checkpoint)):
                embed_catalogue(config, held_back, checkpoint=checkpoint, dataset=view)
        training = sized(config.preranker.training, view, LaterEvents())
        settings = config.preranker.model_copy(update={"training": training})
        final = second_run(config, view.holds_back_little, has_two_models=checkpoint is not None)
        first: Path | None = None
        for folder, data, vectors in ((root / VALIDATION, view, held_back), (root, dataset, embeddings)):
            inputs, artifacts = open_inputs(data, vectors)
            record = RunRecord.of_dataset(
                config.model_dump(mode="json"),
                decisive(config, "preranker-checkpoint"),
                data,
                artifacts,
                "preranker-checkpoint",
            )
            checkpoints = Checkpoints(folder, record, ranks, config.preranker.training.keep_checkpoints)
            start = None if final == "retrain" else first
            seed = config.preranker.training.seed_or(config.seed)
            first = _run(
                settings, config.sharding, seed, data, inputs, record, checkpoints, ranks, resume, start, final
            )
        assert first is not None
        return first


def second_run(
    config: Config, holds_back_little: bool, *, has_two_models: bool
) -> Literal["continue", "retrain", "keep"]:
    """How the preranker comes to know all of T1.

    Args:
        config: the recipe.
        holds_back_little: of T1.
        has_two_models: the heads say something else in each run: one model has not seen the end of T1, one has.
    """
    training = config.preranker.training
    if training.final == "auto" and has_two_models:
        tower = config.training.second_run(holds_back_little) if config.training.chooses_length else "retrain"
        if tower != "keep":  # its embeddings lie elsewhere than those of the first run: a little, or altogether
            return tower
    return training.second_run(holds_back_little)


def _model_without_end(checkpoints: Path, embeddings: Path) -> Artifact | None:
    """The model that has not seen the end of T1; None, with a warning, where there is none."""
    checkpoint = model_without_end(checkpoints, embeddings)
    if checkpoint is None:
        logger.warning(
            "preranker: there is no model that has not seen the end of T1, so the similarities under the heads may get"
            " too much weight; `mtmh train` makes one, unless training.max_steps is set or item features ride along"
        )
    return checkpoint


def _run(
    settings: PrerankerConfig,
    sharding: ShardingConfig,
    seed: int,
    dataset: Dataset,
    inputs: ItemInputs,
    record: RunRecord,
    checkpoints: Checkpoints,
    ranks: Ranks,
    resume: bool,
    first: Path | None,
    final: Literal["continue", "retrain", "keep"],
) -> Path:
    """One run from its newest checkpoint, or the beginning, to its end; the second from ``first``, by ``final``."""
    training = settings.training
    labels = Labels(settings.tasks, dataset.summary)
    features = dataset.summary.features
    checkpoint = checkpoints.find(resume)
    on_gpu = ranks.device.type == "cuda"
    loader = ExampleLoader(dataset, settings, inputs, labels, seed, ranks.rank, ranks.world_size, pin_memory=on_gpu)
    prior = on_first(ranks, lambda: priors(dataset, labels))
    record.facts["preranker"] = {"prior": prior, "frozen_dim": inputs.frozen_dim}

    torch.manual_seed(seed)
    model = build_preranker(settings, features, inputs.frozen_dim, prior, ranks.device, tables=torch.device("meta"))
    sharded, plan = shard(
        PrerankerTask(model, settings.in_batch_negatives),
        sharding,
        ranks,
        items_per_step=2 * training.global_batch + settings.num_uniform_negatives,
        training=training,
        seed=seed,
    )
    optimizer = build_optimizer(sharded, training)
    trained = partial(training_state, sharded, optimizer)
    if first is not None and final == "keep":
        return checkpoint or checkpoints.save(checkpoints.restore(first, trained()), trained())
    step = checkpoints.restore(checkpoint, trained()) if checkpoint else 0
    if first is not None:
        loader.num_steps = max(1, round(CONTINUED * loader.num_steps))
        if not step:
            checkpoints.restore(first, trained())

    columns = ("engagement", *labels.names)
    log = TrainingLog(
        checkpoints.root,
        RunSize(loader.num_steps, loader.steps_per_epoch, training.global_batch),
        LossNames(("cross_entropy",), columns, ((1.0,) * len(columns),), noun="task"),
        lambda step: first_triggers(dataset, next(loader.iterate(step))),
        ranks,
        log_every=training.log_every,
        start_step=step,
    )
    log.add("grad_norm", partial(tower_gradient_norms, optimizer))
    log.show(plan_table(plan))
    trainer = Trainer(
        pipeline=train_pipeline(sharded, optimizer, sharding, ranks.device),
        begin_step=partial(set_learning_rates, optimizer, training),
        trained=trained,
        checkpoints=checkpoints,
        log=log,
        ranks=ranks,
        checkpoint_every=training.checkpoint_every,
        checkpoint_seconds=60 * training.checkpoint_minutes,
        save_behind=training.async_checkpoint,
    )
    batches = of_one_size(log.timed(loader.batches(step)), items_at_a_time(sharding.communication))
    checkpoint = trainer.run(batches, step, loader.num_steps) or checkpoint
    assert checkpoint is not None
    return checkpoint
