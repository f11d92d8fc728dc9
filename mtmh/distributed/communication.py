"""Rounding of pooled embeddings and their gradients on their way between ranks."""

from __future__ import annotations

import torch
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from mtmh.config import CommunicationConfig

GROUP = 32  # consecutive values that share a scale
GROUPED = frozenset({"int8", "fp8", "mx4"})
# Ranks add up the rows of a table that is cut by rows while they travel, and scaled integers cannot be added. As
# TorchRec has it; gradients, of which some are tiny, keep the exponents of fp32.
INSTEAD_OF_GROUPED = ("fp16", "bf16")


def codecs_of(config: CommunicationConfig, device: torch.device) -> dict[str, QuantizedCommCodecs] | None:
    """The codecs for TorchRec's sharders, by operation; ``None``: everything travels as fp32.

    Not by TorchRec's `get_qcomm_codecs_registry`, which sends fp16 on gloo where bf16 was asked for; gloo sends and
    adds bf16 by now.

    Args:
        config: what to round to.
        device: where the ranks compute.

    Raises:
        ValueError: the device has no such codec.
    """
    wanted = (config.forward, config.backward)
    if wanted == ("fp32", "fp32"):
        return None
    if device.type == "cpu" and "fp8" in wanted:
        raise ValueError(
            "sharding.communication: FBGEMM rounds to fp8 on CUDA only; on training.device=cpu ask for int8, which "
            "takes as much room, or for bf16 or fp16"
        )
    forward, backward = (
        instead if precision in GROUPED else precision
        for precision, instead in zip(wanted, INSTEAD_OF_GROUPED, strict=True)
    )
    return {
        CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL.name: _codecs(*wanted),
        CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER.name: _codecs(forward, backward),
    }


def items_at_a_time(config: CommunicationConfig) -> int:
    """Number of which the items of a rank's batch must be a multiple, so that groups are whole.

    The values that one rank sends another are its items times the width of tables, and widths are multiples of 4.
    """
    return GROUP // 4 if GROUPED & {config.forward, config.backward} else 1


def _codecs(forward: str, backward: str) -> QuantizedCommCodecs:
    return get_qcomm_codecs(
        QCommsConfig(
            forward_precision=CommType[forward.upper()],
            backward_precision=CommType[backward.upper()],
            # TorchRec warns of a group size that is not needed. That of int8 is fixed.
            fp8_quantize_dim=GROUP if "fp8" in (forward, backward) else None,
            fp8_quantize_dim_bwd=GROUP if backward == "fp8" else None,
            mx4_quantize_dim=GROUP if "mx4" in (forward, backward) else None,
            mx4_quantize_dim_bwd=GROUP if backward == "mx4" else None,
        )
    )
