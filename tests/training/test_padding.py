from __future__ import annotations

from pathlib import Path

import torch
from synthetic_dataset import make_config, pair_loader, random_histories, write_dataset

from mtmh.training.model_builder import build_model
from mtmh.training.padding import padded


def test_padding_adds_items_without_ids_and_changes_no_other(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_histories(40))
    config = make_config(tmp_path, model={"embedding_dim": 8})
    batch = next(pair_loader(dataset, config).iterate())
    size = len(batch.item_index)
    wider = padded(batch, size + 3)
    assert padded(batch, size) is batch
    assert wider.sparse.keys() == batch.sparse.keys()
    assert torch.equal(wider.sparse.values(), batch.sparse.values())
    lengths = wider.sparse.lengths().view(len(batch.sparse.keys()), size + 3)
    assert torch.equal(lengths[:, :size], batch.sparse.lengths().view(-1, size))
    assert not lengths[:, size:].any()
    for name in ("dense", "item_index", "log_q", "content"):
        before, after = getattr(batch, name), getattr(wider, name)
        assert after.shape == (size + 3, *before.shape[1:])
        assert torch.equal(after[:size], before)
        assert not after[size:].any()
    model = build_model(config.model, dataset.summary.features, torch.device("cpu"))
    expected, embeddings = model(batch.sparse, batch.dense), model(wider.sparse, wider.dense)
    for head, rows in expected.items():
        torch.testing.assert_close(embeddings[head][:size], rows)
