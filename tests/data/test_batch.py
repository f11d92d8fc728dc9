"""Moving a batch and passing it through TorchRec's pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from synthetic_dataset import make_config, pair_loader, random_histories, write_dataset
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from mtmh.data.batch import PairBatch
from mtmh.data.dataset import Dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "dataset", random_histories(20))


def test_to_moves_every_tensor(dataset: Dataset, tmp_path: Path) -> None:
    batch = next(pair_loader(dataset, make_config(tmp_path)).iterate())
    moved = batch.to(torch.device("meta"), non_blocking=True)
    for field in dataclasses.fields(PairBatch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, int):
            assert before == after
        else:
            assert before.device().type == "cpu" if field.name == "sparse" else before.device.type == "cpu"
            assert after.device().type == "meta" if field.name == "sparse" else after.device.type == "meta"
    assert torch.equal(batch.to(torch.device("cpu")).trigger, batch.trigger)


def test_content_travels_as_it_is_stored_and_is_widened_on_its_device(dataset: Dataset, tmp_path: Path) -> None:
    batch = next(pair_loader(dataset, make_config(tmp_path)).iterate())
    stored = torch.randn(len(batch.item_index), 8).half()
    moved = dataclasses.replace(batch, content=stored).to(torch.device("cpu"))
    assert moved.content.dtype == torch.float32
    assert torch.equal(moved.content, stored.float())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory and streams need a GPU")
def test_pinned_batches_copy_on_a_stream(dataset: Dataset, tmp_path: Path) -> None:
    plain = next(pair_loader(dataset, make_config(tmp_path)).iterate())
    batch = next(pair_loader(dataset, make_config(tmp_path), pin_memory=True).iterate())
    assert batch.trigger.is_pinned()
    assert batch.sparse.values().is_pinned()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        moved = batch.to(torch.device("cuda"), non_blocking=True)
    torch.cuda.current_stream().wait_stream(stream)
    moved.record_stream(torch.cuda.current_stream())
    assert torch.equal(moved.trigger.cpu(), plain.trigger)
    assert torch.equal(moved.sparse.values().cpu(), plain.sparse.values())


class SumOfBags(nn.Module):
    """Takes the whole batch, as a training task does."""

    def __init__(self, tables: dict[str, int]) -> None:
        super().__init__()
        self.ebc = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=rows, embedding_dim=4)
                for name, rows in tables.items()
            ],
        )

    def forward(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        embeddings = self.ebc(batch.sparse).values()
        return (embeddings[batch.trigger] * batch.weight[:, None]).sum(), batch.item_index


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_the_sparse_pipeline_takes_the_batches(dataset: Dataset, tmp_path: Path) -> None:
    loader = pair_loader(dataset, make_config(tmp_path, training={"max_steps": 6}))
    tables = {feature.name: feature.num_rows for feature in dataset.item_table.schema.id_features}
    model = DistributedModelParallel(SumOfBags(tables), device=torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"))
    batches = loader.batches()
    for expected in pair_loader(dataset, make_config(tmp_path, training={"max_steps": 6})).iterate():
        item_index = pipeline.progress(batches)
        assert torch.equal(item_index, expected.item_index)
    with pytest.raises(StopIteration):
        pipeline.progress(batches)
