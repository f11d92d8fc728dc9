"""The loss of a training step on several threads: chunks dealt out among them, beside operations shared among them.

Both compute the same on the same inputs and take turns, so that other work on the machine hits both; one thread alone
stands beside them. Sizes are those of a training step by default: 1,536 pairs, as many in-batch and 1,024 uniform
negatives, two heads, the teacher's 192 directions, 40 masked items a pair.

    OMP_WAIT_POLICY=passive python -m benchmarks.loss_threads --out loss-threads.json       # half a minute
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mtmh.modules import Head, TeacherEmbeddings, contrastive_losses
from mtmh.modules.losses import chunked
from torch import Tensor
from torch.nn import functional

from benchmarks.report import report_head

HEADS = (Head("engagement"), Head("relevance", relevance_weight=0.5))
NEVER = 1 << 62  # logits, below which operations are shared
WARM_UP = 3


def main() -> None:
    """Prints medians and their ratio, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1536)
    parser.add_argument("--negatives", type=int, default=2560)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--teacher-width", type=int, default=192)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    step = make_step(args)
    least = chunked.LEAST_SHARED
    torch.set_num_threads(args.threads)
    turns = [[seconds(step, shared) for shared in (least, NEVER)] for _ in range(WARM_UP + args.repeats)][WARM_UP:]
    torch.set_num_threads(1)
    alone = [seconds(step, least) for _ in range(WARM_UP + args.repeats)][WARM_UP:]
    result = {
        "chunks_ms": 1e3 * statistics.median(turn[0] for turn in turns),
        "operations_ms": 1e3 * statistics.median(turn[1] for turn in turns),
        "one_thread_ms": 1e3 * statistics.median(alone),
        "operations_over_chunks_ratio": statistics.median(turn[1] / turn[0] for turn in turns),
    }
    for name, figure in result.items():
        print(f"{name:<30} {figure:8.2f}")
    if args.out is not None:
        args.out.write_text(json.dumps(report_head(args) | {"results": result}, indent=2))


def make_step(args: argparse.Namespace) -> Callable[[], Any]:
    """The loss of random embeddings with its gradients."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int, width: int) -> Tensor:
        return functional.normalize(torch.randn(rows, width, generator=generator), dim=1)

    sizes = (args.rows, args.rows, args.negatives)
    embeddings = [[unit(rows, args.width).requires_grad_() for _ in HEADS] for rows in sizes]
    trigger, positive, negative = (unit(rows, args.teacher_width) for rows in sizes)
    teacher = TeacherEmbeddings(trigger, positive, negative, temperature=0.07)
    hits = tuple(torch.randint(0, size, (40 * args.rows,), generator=generator) for size in (args.rows, args.negatives))
    weights, log_weights = torch.rand(args.rows, generator=generator), torch.randn(args.negatives, generator=generator)

    def step() -> None:
        loss = contrastive_losses(
            embeddings[0],
            embeddings[1],
            embeddings[2],
            HEADS,
            temperature=0.07,
            row_weight=weights,
            log_weight_negative=log_weights,
            teacher=teacher,
            hits=(hits[0], hits[1]),
        )
        loss.total.backward()

    return step


def seconds(step: Callable[[], Any], least_shared: int) -> float:
    """Wall time of a step whose chunks are dealt out from so many logits on."""
    chunked.LEAST_SHARED = least_shared
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
