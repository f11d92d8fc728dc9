"""The host waits for a GPU once a step in the loss: what would have it wait is counted, on any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mtmh.modules import accidental_hits
from synthetic_dataset import pair_loader
from tiny_run import tiny_config, write_inputs
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.distributed.ranks import join_ranks
from mtmh.specs import Head
from mtmh.training.content import teacher_directions
from mtmh.training.frequencies import streaming_frequencies
from mtmh.training.shared_negatives import with_draws
from mtmh.training.task import GlobalLoss

# The size of their result, or the value that they return, is on the device.
ASKING = {
    "_local_scalar_dense",
    "nonzero",
    "unique_dim",
    "_unique2",
    "unique_consecutive",
    "bincount",
    "masked_select",
    "equal",
    "histc",
}
READING = {"tolist", "cpu"}  # without an operation where the tensor is on the CPU


@contextmanager
def counted_syncs() -> Iterator[Counter[str]]:
    """Counts by operation, forward and backward, until the block ends."""
    counts: Counter[str] = Counter()

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = func.overloadpacket.__name__
            by_mask = name.startswith("index") and any(
                isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8)
                for part in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ())
            )
            of_unknown_size = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
            if name in ASKING or by_mask or of_unknown_size:
                counts[name] += 1
            return func(*args, **(kwargs or {}))

    class Methods(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = getattr(func, "__name__", "")
            if name in READING:
                counts[name] += 1
            return func(*args, **(kwargs or {}))

    with Operations(), Methods():
        yield counts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("syncs")
    write_inputs(root)
    return root


@pytest.mark.parametrize(
    ("semantic_weight", "loss", "expected"),
    [
        (0.0, {}, {"cpu": 1}),
        (0.0, {"log_q": "streaming", "in_batch_share": 0.5, "teacher_dim": 3}, {"cpu": 1}),
        (0.0, {"weighting": "uncertainty"}, {"cpu": 1, "tolist": 1}),
        (2.0, {}, {"cpu": 1, "nonzero": 2}),
    ],
    ids=["default", "streaming", "uncertainty", "semantic"],
)
def test_the_host_asks_the_device_once_a_step(
    root: Path, semantic_weight: float, loss: dict[str, Any], expected: dict[str, int]
) -> None:
    """Which items have no content; twice more for the semantic task, and once where weights are learned."""
    config = tiny_config(root, loss={"num_uniform_negatives": 40, **loss})
    heads = (Head("engagement"), Head("relevance", relevance_weight=0.5, semantic_weight=semantic_weight))
    dataset = open_dataset(config.dataset_dir)
    content = open_content(config.content_dir, dataset)
    loader = pair_loader(dataset, config, content=content)
    with join_ranks("cpu") as ranks:
        frequencies = streaming_frequencies(config.loss, config.training.global_batch, dataset.item_table, ranks)
        directions = teacher_directions(content, config.model, config.loss, config.seed, ranks)
        task = GlobalLoss(heads, config.loss, config.seed, frequencies, None if semantic_weight else directions)
        batch = next(with_draws(loader.iterate(), config.loss, config.seed, frequencies))
        known = batch.content.any(dim=1)
        batch.content[~known] = batch.content[known][0]  # on the CPU, with gaps, one more is asked
        embeddings = {head.name: torch.randn(len(batch.item_index), 8, requires_grad=True) for head in heads}
        with counted_syncs() as counts:
            task(embeddings, batch)[0].sum().backward()
    assert counts == expected


def test_what_is_counted() -> None:
    with counted_syncs() as counts:
        mask = torch.arange(4) > 1
        bool(mask.any())
        assert len(torch.arange(4)[mask]) == len(torch.arange(4)[torch.tensor([2, 3])])
        torch.repeat_interleave(torch.arange(4), torch.arange(4))
        torch.repeat_interleave(torch.arange(4), torch.arange(4), output_size=6)
        accidental_hits(torch.tensor([7]), torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([7]))
    assert counts["_local_scalar_dense"] >= 2
    assert counts["index"] == 3
    assert counts["repeat_interleave"] == 3
    assert counts["unique_consecutive"] == 1
