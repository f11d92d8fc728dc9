"""The teacher for items that come after training: the same embeddings as the catalogue's, one item at a time."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_embed_content import TEXTS, make_dataset, text_config

from mtmh.config import Config
from mtmh.content.embed import embed_content
from mtmh.content.fresh import open_fresh_content
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset


def test_a_fresh_text_gets_the_embedding_that_the_catalogue_gives_it(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path, {"text": pa.array(TEXTS)})
    config = text_config(tmp_path, bert)
    made = embed_content(config, config.content_dir)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and still it is the CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    teacher = open_fresh_content(config.content, config.content_dir, config.encoder_dir, config.media_dir, "cpu")
    assert teacher is not None
    assert teacher.dim == 16
    assert teacher.fields == ("text",)
    found = teacher(pa.table({"text": pa.array([*TEXTS, None])}))
    np.testing.assert_allclose(found[:-1], open_content(made.path, dataset).embeddings, atol=1e-6)
    assert not found[-1].any()


def test_another_teacher_than_the_catalogues_is_refused(tmp_path: Path, bert: Path) -> None:
    make_dataset(tmp_path, {"text": pa.array(TEXTS)})
    config = text_config(tmp_path, bert)
    embed_content(config, config.content_dir)
    other = config.content.model_copy(update={"model": str(tmp_path / "other")})
    with pytest.raises(ValueError, match="made by another teacher"):
        open_fresh_content(other, config.content_dir, config.encoder_dir, config.media_dir, "auto")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"training.device is cuda, but PyTorch sees no GPU here"):
            open_fresh_content(config.content, config.content_dir, config.encoder_dir, config.media_dir, "cuda")


def test_an_encoder_sees_the_pictures_of_fresh_items_too(trained: Config, tmp_path: Path) -> None:
    made = embed_content(trained, tmp_path / "content")
    dataset = open_dataset(trained.dataset_dir)
    teacher = open_fresh_content(trained.content, made.path, trained.encoder_dir, trained.media_dir, "auto")
    assert teacher is not None
    assert teacher.fields == ("text", "image")
    items = dataset.items(["text", "image"])
    embedded = open_content(made.path, dataset).embeddings.astype(np.float32)
    np.testing.assert_allclose(teacher(items), embedded, atol=2e-3)  # stored in float16
    without = teacher(items.set_column(1, "image", pa.nulls(len(items), pa.string())))
    assert not np.allclose(without, embedded, atol=1e-2)
