"""Settings of a training run: loss, optimisers, checkpoints, and what it continues from."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mtmh.config.base import Decides, NonNegative, Positive, RunLength, Settings

_MOST_PAIRS = 1536  # of a step whose size is chosen, on CPUs by measurement (docs/defaults.md)
_LEAST_STEPS = 4  # of an epoch, where smaller steps make them


class PropensityConfig(Settings):
    """Off-policy weight ``1 / (a + count^b)`` (related-video paper), scaled to mean 1 over T1 events.

    ``count_of``: whose count weighs a pair: the ``trigger``'s, as in the paper, the ``candidate``'s, or ``both``.
    """

    count_of: Literal["trigger", "candidate", "both"] = "trigger"
    a: NonNegative = 1.0
    b: NonNegative = 0.5

    @model_validator(mode="before")
    @classmethod
    def _read_old_name(cls, tree: object) -> object:
        """Takes ``on``, the name in 0.1.0, also as YAML reads it: as ``true``."""
        old = [key for key in tree if key == "on" or key is True] if isinstance(tree, dict) else []
        if not isinstance(tree, dict) or not old or "count_of" in tree:
            return tree
        warnings.warn("loss.propensity.on is called loss.propensity.count_of now", FutureWarning, stacklevel=2)
        return {"count_of" if key in old else key: value for key, value in tree.items()}


class SemanticConfig(Settings):
    """Pseudo-labels of heads with a ``semantic_weight``: pairs whose teacher cosine is at least ``threshold``.

    ``share`` of the batch's pairs lend their trigger to the task; fewer make the step cheaper.
    """

    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class GradNormConfig(Settings):
    """The way ``weighting: gradnorm`` moves the weights of losses.

    ``alpha``: how much more a loss shall pull that has come down less; 0: all pull alike. ``learning_rate``: of the
    weights, relative to the mean pull. ``every``: steps from one look to the next; a look costs a pass and a backward
    of each loss.
    """

    alpha: NonNegative = 1.5
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.025
    every: Positive = 10


class LossConfig(Settings):
    """InfoNCE and KL distillation over shared negatives (paper, equations 1 to 3)."""

    # Divides the heads' similarities; lower looks at harder negatives.
    temperature: Annotated[float, Field(gt=0.0)] = 0.07
    teacher_temperature: Annotated[float, Field(gt=0.0)] = 0.07  # divides the teacher's similarities
    # Principal directions of the teacher's embeddings that distillation compares, where they are wider; 0: all.
    # Pseudo-labels, whose threshold is a cosine of the whole embeddings, take them all.
    teacher_dim: Annotated[int, Field(ge=0), Decides("checkpoint", "check")] = 192
    in_batch_negatives: bool = True  # the other pairs' candidates are negatives
    # Of the pairs, whose candidates are negatives of all: what the loss costs on many ranks follows their number.
    in_batch_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    num_uniform_negatives: Annotated[int, Field(ge=0)] = 1024  # of the global batch
    # How often a negative is expected: by the training period's events, by the batches so far, or not corrected for.
    log_q: Literal["counts", "streaming", "none"] = "counts"
    log_q_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.02  # streaming: what one more hit changes in an estimate
    mask_history: bool = True  # items of the user's history are no negatives
    history_mask_length: Positive = 100  # the last items of a history that are masked as accidental hits
    propensity: PropensityConfig | None = None
    # fixed: losses add up by the heads' weights. uncertainty: each loss of a head is also divided by a learned variance
    # (1705.07115), so that one that cannot get small weighs less. gradnorm: weights begin as the heads' and then
    # move so that losses pull alike on what the heads share (1711.02257).
    weighting: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    gradnorm: GradNormConfig = GradNormConfig()
    semantic: SemanticConfig = SemanticConfig()
    chunk_rows: Annotated[Positive, Decides()] = 256
    # auto: Triton on GPUs where it is installed. Not the default before a GPU has run it.
    kernel: Annotated[Literal["auto", "torch", "triton"], Decides()] = "torch"

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if not self.in_batch_negatives and self.num_uniform_negatives == 0:
            raise ValueError("loss: no negatives: turn on in_batch_negatives or set num_uniform_negatives")
        if not self.in_batch_negatives and self.log_q == "streaming":
            raise ValueError(
                "loss.log_q = streaming estimates how often items are in a batch: it needs in_batch_negatives"
            )
        return self


class PlanConfig(Settings):
    """A catalogue that is not prepared yet, for ``mtmh plan``; a dataset artifact takes precedence."""

    # Rows of each id feature's table, item_id among them, row 0 (unknown) included.
    rows: dict[str, Positive] = {}
    num_floats: Annotated[int, Field(ge=0)] = 0  # float features
    events: Annotated[int, Field(ge=0)] = 0  # of the training period; 0: five an item
    users: Annotated[int, Field(ge=0)] = 0  # with a history; 0: one for fifty events
    content_dim: Annotated[int, Field(ge=0)] = 0  # width of the content embeddings; 0: the encoder's, or not counted

    @field_validator("rows")
    @classmethod
    def _has_items(cls, rows: dict[str, int]) -> dict[str, int]:
        if rows and "item_id" not in rows:
            raise ValueError(f"plan.rows needs item_id, the feature of every dataset; got {', '.join(rows)}")
        return rows


class ContinuationConfig(Settings):
    """The way a run goes on from the model of the period before (``mtmh train --continue-from``).

    ``optimizer_state``: with ``keep``, rows that have learned much go on with small steps and new rows start with
    large ones, as Adagrad has it; ``reset`` gives all of them large steps again. ``learning_rate_scale`` multiplies
    both rates. ``freeze_towers`` trains the tables alone: items whose rows do not change keep their embeddings.
    ``check_period`` refuses a model that may have been trained on the dataset's test period; without it the run only
    warns.
    """

    optimizer_state: Literal["keep", "reset"] = "keep"
    learning_rate_scale: Annotated[float, Field(gt=0.0)] = 1.0
    freeze_towers: bool = False
    check_period: Annotated[bool, Decides()] = True


class TrainingConfig(RunLength):
    """One training run. ``batch_size`` counts pairs of the global batch, whatever the number of ranks.

    ``batch_size: auto`` takes 1,536, and fewer where an epoch would have less than four steps.

    ``epochs: auto`` chooses the length on the end of T1 (section ``validation``): a first run without that end, of at
    most ``max_epochs``, is measured a few times an epoch and stops when ``patience`` measurements in a row were not
    better by a hundredth. ``final``: then its best model trains on with all of T1, a third as long as it took
    (``continue``), or a new one is trained on all of T1 for as many epochs as were best (``retrain``), or it stays as
    it is (``keep``); ``auto`` keeps it where less than a twentieth of T1's events were held back, and else continues.
    A number is the length of the model that serves, on all of T1. Where a learned sorter weighs what the heads say, a
    model as long is trained before it without the end of T1, to weigh by: twice the time.

    With ``max_steps`` nothing is chosen and nothing is held back.
    """

    epochs: Annotated[Positive | Literal["auto"], Decides()] = "auto"  # type: ignore[assignment]
    max_steps: Annotated[Positive | None, Decides()] = None
    max_epochs: Annotated[Positive, Decides()] = 40
    patience: Annotated[Positive, Decides()] = 3
    final: Literal["auto", "continue", "retrain", "keep"] = "auto"
    # With the rates below by measurement on two cores (docs/defaults.md).
    batch_size: Positive | Literal["auto"] = "auto"
    num_shards: Positive = 12  # virtual data shards; the number of ranks must divide it
    shuffle_pairs: Positive = 262_144  # pairs of one shard that are shuffled together
    optimizer: Literal["rowwise_adagrad", "adagrad"] = "rowwise_adagrad"
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.3  # of the embedding tables
    dense_learning_rate: Annotated[float, Field(gt=0.0)] = 0.02  # of all other layers
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # in which both rates rise from 0
    continuation: ContinuationConfig = ContinuationConfig()
    checkpoint_every: Annotated[Positive, Decides()] = 500
    # Of those steps only the ones at least so long after the last checkpoint: nobody has to know how long a step takes.
    checkpoint_minutes: Annotated[NonNegative, Decides()] = 0.0
    keep_checkpoints: Annotated[Positive, Decides()] = 2
    # Train on while files are written, from a copy of the state in host memory.
    async_checkpoint: Annotated[bool, Decides()] = False
    log_every: Annotated[Positive, Decides()] = 20
    prefetch_batches: Annotated[Positive, Decides()] = 2
    device: Annotated[Literal["auto", "cpu", "cuda"], Decides()] = "auto"
    # Of float32 products: highest; high: TF32 on GPUs; bf16: high, and the loss's factors rounded to bf16, summed in
    # float32, on any device. auto: high on GPUs, highest on CPUs.
    matmul_precision: Literal["auto", "highest", "high", "bf16"] = "auto"
    # Only operations of PyTorch that give the same bits each time: slower on GPUs, and how a CPU computes anyway.
    deterministic: Annotated[bool, Decides()] = False
    # Of weights and order, where it is to be another than the recipe's: models of several seeds on one dataset.
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    def seed_or(self, seed: int) -> int:
        """The run's own seed, or else the recipe's."""
        return seed if self.seed is None else self.seed

    def sized(self, num_pairs: int | None = None) -> Self:
        """These settings with a number for ``batch_size``: as given, or chosen for so many pairs; None: very many."""
        if self.batch_size != "auto":
            return self
        fits = _MOST_PAIRS if num_pairs is None else min(_MOST_PAIRS, num_pairs // _LEAST_STEPS)
        shards = max(1, fits // self.num_shards)
        return self.model_copy(update={"batch_size": shards * self.num_shards})

    @property
    def global_batch(self) -> int:
        """``batch_size`` of settings that are sized."""
        assert self.batch_size != "auto", "settings go through `sized` before anything is trained by them"
        return self.batch_size

    @property
    def chooses_length(self) -> bool:
        """True if the length is chosen by measuring."""
        return self.epochs == "auto" and self.max_steps is None

    def second_run(self, holds_back_little: bool) -> Literal["continue", "retrain", "keep"]:
        """``final``, with few events held back or not."""
        if self.final != "auto":
            return self.final
        return "keep" if holds_back_little else "continue"

    def num_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run, at most so many if the length is chosen."""
        if self.epochs == "auto":
            return self.max_steps or self.max_epochs * steps_per_epoch
        return super().num_steps(steps_per_epoch)

    @model_validator(mode="after")
    def _batch_splits(self) -> Self:
        if self.batch_size != "auto" and self.batch_size % self.num_shards:
            raise ValueError(
                f"training.batch_size ({self.batch_size}) must be a multiple of training.num_shards ({self.num_shards})"
            )
        return self
