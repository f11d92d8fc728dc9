"""Every lookup kernel equals a float64 gather and sum, and trains the rows it looked up."""

from __future__ import annotations

import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from benchmarks.lookup.cases import SHARDINGS, Case, index_sets
from benchmarks.lookup.kernels import LEARNING_RATE, TableBatchedKernel, build, random_tables
from benchmarks.lookup.sharded import ShardedKernel, on_ranks

CPU = torch.device("cpu")
CASE = Case(rows=700, width=32, pooling=5, batch=24, tables=3, skew=0.8)


def gather_sum(case: Case, tables: list[Tensor], indices: Tensor) -> Tensor:
    """Float64 reference ``[batch, tables * width]``."""
    bags = indices.view(case.tables, case.batch, case.pooling)
    return torch.cat([table.double()[bag].sum(1) for table, bag in zip(tables, bags, strict=True)], dim=1)


@pytest.mark.parametrize(
    "change",
    [{}, {"index_bits": 32}, {"weighted": True}, {"bounds_check": "none"}, {"tables": 1}, {"pooling": 1}],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kernel", ["embedding_bag", "tbe", "ebc"])
def test_output_is_the_sum_of_the_rows(kernel: str, dtype: str, change: dict[str, object]) -> None:
    case = replace(CASE, dtype=dtype, **change)
    if kernel == "embedding_bag" and dtype == "int8":
        pytest.skip("nn.EmbeddingBag has no int8 tables")
    if kernel == "ebc" and dtype == "fp16" and case.weighted:
        pytest.skip("unsharded TorchRec takes no fp32 weights beside fp16 tables")
    tables, indices = random_tables(case, CPU), index_sets(case, 1)[0]
    expected = gather_sum(case, tables, indices)
    built = build(kernel, case, [table.clone() for table in tables])
    output = built.forward(built.prepare(indices))
    assert output.shape == (case.batch, case.tables * case.width)
    # fp16: outputs below 0.05 are rounded. int8: half a step of 0.02 / 255 a row, as much again for the fp16 scale.
    tolerance = {"fp32": 1e-8, "fp16": 5e-5, "int8": case.pooling * 0.02 / 255}[dtype]
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance)


def test_embedding_bag_trains_by_sparse_sgd() -> None:
    tables, indices = random_tables(CASE, CPU), index_sets(CASE, 1)[0]
    built = build("embedding_bag", CASE, [table.clone() for table in tables])
    expected = gather_sum(CASE, _after_sgd(tables, indices, built.gradient), indices)  # type: ignore[attr-defined]
    built.train(built.prepare(indices))
    torch.testing.assert_close(built.forward(built.prepare(indices)).double(), expected, rtol=0, atol=1e-6)


def test_collection_trains_by_dense_sgd() -> None:
    tables, indices = random_tables(CASE, CPU), index_sets(CASE, 1)[0]
    built = build("ebc", CASE, [table.clone() for table in tables])
    expected = gather_sum(CASE, _after_sgd(tables, indices, built.gradient), indices)  # type: ignore[attr-defined]
    built.train(built.prepare(indices))
    torch.testing.assert_close(built.forward(built.prepare(indices)).double(), expected, rtol=0, atol=1e-6)


def _row_gradients(tables: list[Tensor], indices: Tensor, gradient: Tensor) -> list[Tensor]:
    """Float64 gradient of every table under the output's gradient."""
    bags = indices.view(CASE.tables, CASE.batch, CASE.pooling)
    grads = []
    for number, table in enumerate(tables):
        of_bag = gradient[:, number * CASE.width : (number + 1) * CASE.width].double()
        grad = torch.zeros(table.shape, dtype=torch.float64)
        grads.append(grad.index_add_(0, bags[number].reshape(-1), of_bag.repeat_interleave(CASE.pooling, dim=0)))
    return grads


def _after_sgd(tables: list[Tensor], indices: Tensor, gradient: Tensor) -> list[Tensor]:
    grads = _row_gradients(tables, indices, gradient)
    return [table.double() - LEARNING_RATE * grad for table, grad in zip(tables, grads, strict=True)]


def test_table_batched_kernel_trains_by_rowwise_adagrad() -> None:
    tables, indices = random_tables(CASE, CPU), index_sets(CASE, 1)[0]
    built = TableBatchedKernel(CASE, tables)
    grads = _row_gradients(tables, indices, built.gradient)
    built.train(built.prepare(indices))
    for weights, table, grad in zip(built.module.split_embedding_weights(), tables, grads, strict=True):
        momentum = grad.square().mean(1, keepdim=True).sqrt()
        expected = table.double() - LEARNING_RATE * grad / (momentum + 1e-8)
        torch.testing.assert_close(weights.double(), expected, rtol=0, atol=1e-6)


def test_quantised_tables_do_not_train() -> None:
    case = replace(CASE, dtype="int8")
    built = build("tbe", case, random_tables(case, CPU))
    with pytest.raises(ValueError, match="inference only"):
        built.train(built.prepare(index_sets(case, 1)[0]))


def test_adagrad_is_a_setting_of_embedding_bag() -> None:
    case = replace(CASE, optimizer="adagrad")
    tables, indices = random_tables(case, CPU), index_sets(case, 1)[0]
    built = build("embedding_bag", case, [table.clone() for table in tables])
    touched = torch.zeros(case.rows, dtype=torch.bool)
    touched[indices.view(case.tables, -1)[0]] = True
    built.train(built.prepare(indices))
    moved = (built.bags[0].weight.detach() - tables[0]).abs()  # type: ignore[attr-defined]
    assert torch.all(moved[~touched] == 0)
    assert torch.allclose(moved[touched], torch.tensor(LEARNING_RATE), atol=1e-4)  # the first step of Adagrad


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of embedding_bag, tbe, ebc"):
        build("numpy", CASE, random_tables(CASE, CPU))


def _sharded_outputs(device: torch.device, case: Case, folder: Path) -> None:
    """On each rank: put the reference tables into the shards, look up, keep the output."""
    torch.set_num_threads(1)
    tables, indices = random_tables(case, CPU), index_sets(case, 1)[0]
    for sharding in SHARDINGS:
        kernel = ShardedKernel(sharding, case, device)
        for name, held in kernel.module.state_dict().items():
            table = tables[int(name.removeprefix("embedding_bags.t").removesuffix(".weight"))]
            if not isinstance(held, ShardedTensor):
                held.copy_(table)
                continue
            for shard in held.local_shards():
                (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                shard.tensor.detach().copy_(table[row : row + rows, column : column + columns])
        output = kernel.forward(kernel.prepare(indices)).detach()
        kernel.train(kernel.prepare(indices))
        after = kernel.forward(kernel.prepare(indices)).detach()
        torch.save((output, after), folder / f"{sharding}-{kernel.rank}.pt")


def test_sharded_outputs_equal_the_reference_for_every_sharding(tmp_path: Path) -> None:
    case = replace(CASE, ranks=2)
    list(on_ranks(_sharded_outputs, 2, CPU, case, tmp_path))
    expected = gather_sum(case, random_tables(case, CPU), index_sets(case, 1)[0])
    for sharding in SHARDINGS:
        ranks = [torch.load(tmp_path / f"{sharding}-{rank}.pt", weights_only=True) for rank in range(2)]
        output = torch.cat([before for before, _ in ranks])
        assert torch.allclose(output.double(), expected, rtol=0, atol=1e-8), sharding
        assert not torch.equal(output, torch.cat([after for _, after in ranks])), f"{sharding} did not train"


def test_bags_must_divide_over_ranks() -> None:
    with pytest.raises(Exception, match="25 bags does not divide over 2 ranks"):
        list(on_ranks(_odd_batch, 2, CPU, replace(CASE, ranks=2, batch=25)))


def _odd_batch(device: torch.device, case: Case) -> None:
    ShardedKernel("row_wise", case, device)


def test_ranks_end_when_nobody_waits_for_them_any_more() -> None:
    turns = on_ranks(_forever, 2, CPU)
    next(turns)
    assert len(active_children()) == 2
    turns.close()
    assert active_children() == []


def _forever(device: torch.device) -> None:
    time.sleep(3600)
