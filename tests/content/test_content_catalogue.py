"""Embedding with a trained encoder: what is missing is counted, kills cost no finished shard, ranks change nothing."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from forked_ranks import Launcher
from tiny_catalogue import (
    CUT_OFF,
    NO_IMAGE,
    NO_PICTURE,
    NO_TEXT,
    NOT_THERE,
    NOTHING,
    NUM_ITEMS,
    topic_of,
    write_dataset,
)

from mtmh.config import Config
from mtmh.content.catalogue import ContentEmbedder
from mtmh.content.embed import embed_content
from mtmh.content.inputs import ItemReader
from mtmh.content.teacher import ContentFiles, open_teacher
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset


def with_content(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"content": config.content.model_copy(update=changes)})


@pytest.fixture(scope="module")
def embedded(trained: Config) -> np.ndarray:
    embed_content(trained, trained.content_dir)
    return open_content(trained.content_dir, open_dataset(trained.dataset_dir)).embeddings


def test_rows_are_unit_vectors_that_follow_topics(embedded: Any) -> None:
    assert embedded.shape == (NUM_ITEMS, 8)
    assert embedded.dtype == np.float16
    rows = embedded.astype(np.float64)
    expected = np.ones(NUM_ITEMS)
    expected[NOTHING] = 0.0
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), expected, atol=2e-3)
    known = np.delete(np.arange(NUM_ITEMS), NOTHING)
    topics = topic_of(known)
    cosine = rows[known] @ rows[known].T
    same = topics[:, None] == topics
    assert cosine[same].mean() > cosine[~same].mean() + 0.5


def test_what_is_missing_or_broken_is_counted_and_named(trained: Any, embedded: Any) -> None:
    summary = open_content(trained.content_dir, open_dataset(trained.dataset_dir)).artifact.summary
    assert summary["num_empty_texts"] == 2
    assert summary["num_missing_images"] == 2
    assert summary["num_broken_images"] == 3
    assert sorted(summary["broken_images"]) == [10 * item for item in (CUT_OFF, NOT_THERE, NO_PICTURE)]
    assert summary["num_items_without_content"] == 1
    assert (embedded[[NO_TEXT, NO_IMAGE, CUT_OFF]] != 0.0).any(axis=1).all()


def reader_of(config: Any, dataset: Any) -> Any:
    images = ContentFiles.find(config.content.encoder, config.media_dir).images
    return open_teacher(config.encoder_dir).reader(dataset, images, config.content.max_tokens)


def test_batches_do_not_change_an_embedding(trained: Any, embedded: Any) -> None:
    dataset, teacher = open_dataset(trained.dataset_dir), open_teacher(trained.encoder_dir)
    embedder = ContentEmbedder(
        teacher.model, reader_of(trained, dataset), with_content(trained, batch_size=1).content, torch.device("cpu")
    )
    alone = embedder.embed(np.array([9, NO_TEXT, NOTHING]), lambda _: None)
    np.testing.assert_allclose(alone.rows, embedded[[9, NO_TEXT, NOTHING]], atol=2e-3)
    assert alone.complete.tolist() == [True, False, False]
    assert alone.counts["empty_texts"] == 2


def test_modalities_can_be_hidden(trained: Any) -> None:
    dataset, teacher = open_dataset(trained.dataset_dir), open_teacher(trained.encoder_dir)
    embedder = ContentEmbedder(teacher.model, reader_of(trained, dataset), trained.content, torch.device("cpu"))
    items = np.arange(10, 20)
    rows = {
        name: embedder.embed(items, lambda _: None, **hidden).rows
        for name, hidden in (("both", {}), ("text", {"use_image": False}), ("image", {"use_text": False}))
    }
    assert not np.allclose(rows["both"], rows["text"], atol=1e-3)
    assert not np.allclose(rows["text"], rows["image"], atol=1e-3)


def test_a_killed_run_does_no_finished_shard_again_and_two_ranks_change_nothing(
    trained: Any, embedded: Any, tmp_path: Path
) -> None:
    config, out = with_content(trained, shard_items=4), tmp_path / "content"
    embed = partial(embed_content, out=out)
    alone = Launcher(1, run=embed)
    job = alone.start(config)
    parts, deadline = tmp_path / "content.parts", time.monotonic() + 120.0
    while len(list(parts.glob("part-*.json"))) < 2:
        assert job.is_running(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    job.ranks[0].kill()
    job.end()
    finished = {path.name: path.read_bytes() for path in parts.glob("part-*.npy")}
    # A mark that only survives if a finished shard is taken as it is.
    marked = np.load(parts / "part-000000.npy")
    np.save(parts / "part-000000.npy", np.roll(marked, 1, axis=0))
    assert not out.exists()
    two = Launcher(2, run=embed)
    two.start(config).finish()
    resumed = open_content(out, open_dataset(config.dataset_dir)).embeddings
    assert finished
    np.testing.assert_allclose(resumed[4:], embedded[4:], atol=2e-3)
    np.testing.assert_allclose(resumed[:4], np.roll(marked, 1, axis=0), atol=0.0)
    assert not parts.exists()


def test_parts_of_other_settings_are_dropped(trained: Any, embedded: Any, tmp_path: Path) -> None:
    out, parts = tmp_path / "content", tmp_path / "content.parts"
    parts.mkdir()
    (parts / "plan.json").write_text('{"dataset": "another"}')
    (parts / "part-000000.json").write_text('{"counts": {}, "broken": []}')
    np.save(parts / "part-000000.npy", np.zeros((20, 8), np.float16))
    artifact = embed_content(trained, out)
    assert artifact.summary["num_broken_images"] == 3
    np.testing.assert_allclose(np.load(out / "embeddings.npy"), embedded, atol=2e-3)


def test_reader_counts_and_places(tmp_path: Path, trained: Any) -> None:
    teacher = open_teacher(trained.encoder_dir)
    dataset = write_dataset(
        tmp_path / "d", {"item_id": [1, 2, 3, 4], "text": pa.array(["oak", None, " \t", "an oak and a pine"])}
    )
    reader = ItemReader(
        dataset.items(["text"]).column("text").combine_chunks(), teacher.backbones["text"], None, None, max_tokens=4
    )
    read = reader.read(np.array([3, 2, 1, 0]))
    assert read.inputs.text_rows.tolist() == [0, 3]
    assert read.inputs.token_mask.sum(dim=1).tolist() == [4, 3]
    assert read.counts["empty_texts"] == 2
    assert read.has_content.tolist() == read.complete.tolist() == [True, False, False, True]
    assert reader.text_lengths(np.array([0, 1, 3])).tolist() == [3, 0, 17]


def test_no_encoder_says_what_to_run(trained: Any, tmp_path: Path) -> None:
    config = trained.model_copy(update={"paths": trained.paths.model_copy(update={"root": tmp_path})})
    with pytest.raises(ValueError, match="no encoder artifact here"):
        embed_content(config, tmp_path / "content")


def test_a_damaged_encoder_is_refused(trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.encoder_dir, tmp_path / "encoder")
    weights = tmp_path / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    config = trained.model_copy(update={"paths": trained.paths.model_copy(update={"encoder": tmp_path / "encoder"})})
    with pytest.raises(ValueError, match="the manifest says"):
        embed_content(config, Path(tmp_path / "content"))
