"""Memory and time that a step takes beside the tables, by calculation: batch, towers, negatives, loss, loader.

What is counted follows the code: `share_negatives` gathers every rank's distinct negatives, `chunked.one_pass` holds a
few rows of logits and one gradient of each embedding, the towers keep what their backward needs. Peaks that cannot
coincide are counted as if they did; what the allocator, NCCL and CUDA's context take is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from mtmh.config import LossConfig, ModelConfig, TrainingConfig
from mtmh.data.schema import FeatureSchema
from mtmh.distributed.hardware import Cluster
from mtmh.distributed.optimizers import TABLE_KEY
from mtmh.modules.losses.chunked import rows_at_a_time
from mtmh.modules.mtmh import MTMH
from mtmh.training.task import items_per_step

FLOAT, INDEX = 4, 8  # bytes
TOWER_COPIES = 4  # weight, gradient, Adagrad's sum, bucket of DDP's all-reduce
ACTIVATION_COPIES = 3  # of a layer: what it computes, what its nonlinearity makes of that, the gradient
BATCHES = 2  # on the device: the one of this step, and the next, whose ids travel meanwhile
LOGIT_PASSES = 10  # of a head over a logit, reading or writing, beside the products
LOADER_PAIRS = 1_000_000  # a second that a core makes (benchmarks/loader.py)


@dataclass(frozen=True)
class StepCost:
    """One step of one rank, beside the tables.

    Attributes:
        batch: bytes of the inputs on the device.
        towers: bytes of weights, gradients and optimizer state.
        activations: bytes that the towers' backward needs.
        negatives: bytes of the gathered negatives, and of their gradients on the way back.
        loss: bytes of logits, gradients and the teacher's side.
        towers_ms: forward and backward of the towers, and the all-reduce of their gradients.
        exchange_ms: negatives to all ranks, and their gradients back.
        loss_ms: forward and backward of the loss.
        loader_ms: a batch, in a thread beside the others.
    """

    batch: int
    towers: int
    activations: int
    negatives: int
    loss: int
    towers_ms: float
    exchange_ms: float
    loss_ms: float
    loader_ms: float

    @property
    def memory(self) -> int:
        """All bytes."""
        return self.batch + self.towers + self.activations + self.negatives + self.loss


def step_cost(
    config: ModelConfig,
    loss: LossConfig,
    training: TrainingConfig,
    schema: FeatureSchema,
    content_dim: int,
    model: MTMH,
    cluster: Cluster,
) -> StepCost:
    """Calculates a step.

    Args:
        config: heads and their width.
        loss: number of negatives, chunks, width of the teacher.
        training: pairs of a step.
        schema: features.
        content_dim: width of the teacher's embeddings, an input or not; 0: there are none.
        model: on any device, ``meta`` too; its towers are counted.
        cluster: the machines.
    """
    world_size, device = cluster.world_size, cluster.device
    num_heads, dim = len(config.heads), config.head_dim
    num_pairs = -(-training.global_batch // world_size)
    num_items = -(-items_per_step(training, loss) // world_size)
    in_batch = loss.in_batch_share if loss.in_batch_negatives else 0.0
    num_negatives = math.ceil(in_batch * training.global_batch) + loss.num_uniform_negatives
    distils = any(head.relevance_weight for head in config.heads)
    compared = any(head.semantic_weight for head in config.heads)
    content = content_dim if distils or compared else 0
    if loss.teacher_dim and distils and not compared:
        content = min(content, loss.teacher_dim)

    row = FLOAT * (len(schema.float_features) + content_dim + 1) + INDEX * (1 + 2 * len(schema.id_features))
    history = INDEX * loss.history_mask_length if loss.mask_history else 0
    batch = BATCHES * (num_items * row + num_pairs * (FLOAT + 3 * INDEX + history))

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    parameters = sum(p.numel() for name, p in model.named_parameters() if TABLE_KEY not in name and p.requires_grad)
    widths = sum(layer.out_features for layer in layers) + model.sparse_nn.out_dim
    activations = ACTIVATION_COPIES * FLOAT * num_items * widths

    gathered = FLOAT * num_negatives * (num_heads * dim + content + 1) + 3 * INDEX * num_negatives
    # As they came, without those that several ranks have, and on the way back once more.
    negatives = gathered * (2 if world_size > 1 else 1) + FLOAT * num_negatives * num_heads * dim * (world_size > 1)

    rows = rows_at_a_time(loss.chunk_rows, num_negatives, torch.device(device.kind))
    chunks = (3 + bool(content)) * FLOAT * min(rows, num_pairs) * (num_negatives + 1)
    gradients = 2 * FLOAT * num_heads * dim * (2 * num_pairs + num_negatives)  # and scaled in the backward pass
    teacher = 2 * FLOAT * content * (2 * num_pairs + num_negatives)

    flops, bandwidth = cluster.rank_flops, cluster.rank_bandwidth
    logits = num_pairs * (num_negatives + 1)
    products = 2 * logits * (3 * num_heads * dim + content)
    passes = LOGIT_PASSES * FLOAT * logits * (num_heads + bool(content))
    link = (
        (device.between_hosts if cluster.num_hosts > 1 else device.inside_host) * 1e9
        if world_size > 1
        else float("inf")
    )
    back = FLOAT * num_negatives * num_heads * dim
    return StepCost(
        batch=batch,
        towers=TOWER_COPIES * FLOAT * parameters,
        activations=activations,
        negatives=negatives,
        loss=chunks + gradients + teacher,
        towers_ms=1e3 * (6 * num_items * parameters / flops + 2 * FLOAT * parameters / link),
        exchange_ms=1e3 * (gathered + back) / link,
        loss_ms=1e3 * (products / flops + passes / bandwidth),
        loader_ms=1e3 * num_pairs / LOADER_PAIRS,
    )
