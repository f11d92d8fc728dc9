"""Content embeddings from a column and from text through a tiny random BERT, built offline."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from synthetic_dataset import make_config, write_dataset

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.content.embed import embed_content
from mtmh.content.shards import EmbeddingShards
from mtmh.data.arrays import unit_rows
from mtmh.data.content_store import open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.schema import ITEMS

NUM_ITEMS = 12
TEXTS = ["red shoe", "red shoe", "", "blue hat with a long ribbon", None, "   ", "hat", "red", "shoe", "a", "b", "c"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def make_dataset(root: Path, columns: dict[str, pa.Array], dim: int | None = None) -> Dataset:
    """A dataset whose items have the given columns beside their id."""
    plain = write_dataset(root / "plain", [[0, 1], [2, 3]], num_items=NUM_ITEMS)
    with write_artifact(root / "dataset", "dataset", config={}) as writer:
        shutil.copytree(plain.artifact.path, writer.folder, dirs_exist_ok=True)
        (writer.folder / "manifest.json").unlink()
        pq.write_table(pa.table({"item_id": np.arange(NUM_ITEMS), **columns}), writer.folder / ITEMS)
        writer.summary.update(plain.artifact.summary | {"content_embedding_dim": dim})
    return open_dataset(root / "dataset")


def text_config(root: Path, model: Path | str) -> Config:
    return make_config(root, content={"kind": "transformers", "model": str(model), "batch_size": 3})


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_text_equals_the_model_called_by_hand(tmp_path: Path, bert: Path, pooling: str) -> None:
    if pooling == "cls":
        (bert / "1_Pooling").mkdir()
        modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        (bert / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    dataset = make_dataset(tmp_path, {"text": pa.array(TEXTS)})
    artifact = embed_content(text_config(tmp_path, bert), tmp_path / "content")
    embeddings = open_content(artifact.path, dataset).embeddings
    model, tokenizer = (
        transformers.BertModel.from_pretrained(bert).eval(),
        transformers.AutoTokenizer.from_pretrained(bert),
    )
    for item, text in enumerate(TEXTS):
        if not (text or "").strip():
            assert (embeddings[item] == 0).all()
            continue
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        pooled = (hidden.mean(dim=0) if pooling == "mean" else hidden[0]).numpy()
        np.testing.assert_allclose(embeddings[item], pooled / np.linalg.norm(pooled), atol=1e-5)
    assert artifact.summary["num_items_without_content"] == 3
    assert artifact.summary["dim"] == 16


def test_topics_are_not_read(tmp_path: Path, bert: Path) -> None:
    files = []
    for topic in ("shoes", "hats"):
        root = tmp_path / topic
        make_dataset(root, {"text": pa.array(TEXTS), "topic_l1": pa.array([topic] * NUM_ITEMS)})
        files.append((embed_content(text_config(root, bert), root / "content").path / "embeddings.npy").read_bytes())
    assert files[0] == files[1]


def test_column_is_normalised_and_nulls_become_zero_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtmh.content.embed._CHUNK_ITEMS", 5)
    monkeypatch.setattr(Dataset, "items", None)  # that would take the memory of the whole column
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype(np.float32)
    rows = [None if item in (0, 5) else vectors[item].tolist() for item in range(NUM_ITEMS)]
    column = pa.array(rows, pa.list_(pa.float32(), 4))
    dataset = make_dataset(tmp_path, {"content_embedding": column}, dim=4)
    artifact = embed_content(make_config(tmp_path), tmp_path / "content")
    embeddings = open_content(artifact.path, dataset).embeddings
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected[[0, 5]] = 0
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    assert artifact.summary["num_items_without_content"] == 2


def test_unit_rows_survive_extremes() -> None:
    rows = unit_rows(np.array([[3e38, 3e38], [1e-30, 0], [0, 0], [0, -2]], np.float32))
    np.testing.assert_allclose(rows, [[0.5**0.5, 0.5**0.5], [0, 0], [0, 0], [0, -1]], atol=1e-6)


def stop_after_a_shard(config: Config, out: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Ends a run in shards of five items when the first is written; the recipe with these shards."""
    config = config.model_copy(update={"content": config.content.model_copy(update={"shard_items": 5})})
    write = EmbeddingShards.write

    def stopped(parts: EmbeddingShards, shard: int, *rest: Any) -> None:
        if shard > 0:
            raise KeyboardInterrupt
        write(parts, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingShards, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            embed_content(config, out)
    return config


def test_a_killed_run_starts_anew_with_another_model_in_the_same_folder(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path, {"text": pa.array(TEXTS)})
    config = text_config(tmp_path, bert)
    config = stop_after_a_shard(config, tmp_path / "content", monkeypatch)
    assert [path.name for path in (tmp_path / "content.parts").glob("part-*.json")] == ["part-000000.json"]
    model = transformers.BertModel.from_pretrained(bert)
    with torch.no_grad():
        for weight in model.parameters():
            weight.neg_()
    model.save_pretrained(bert)
    found, expected = (embed_content(config, tmp_path / name).path / "embeddings.npy" for name in ("content", "alone"))
    assert found.read_bytes() == expected.read_bytes()


def test_what_is_missing_is_said(tmp_path: Path, bert: Path) -> None:
    make_dataset(tmp_path, {"text": pa.array(TEXTS)})
    with pytest.raises(ValueError, match=r"no column content_embedding .* content.kind = transformers"):
        embed_content(make_config(tmp_path), tmp_path / "content")
    with pytest.raises(ValueError, match=r"content.model: cannot load some/model: .*hf download"):
        embed_content(text_config(tmp_path, "some/model"), tmp_path / "content")
    with pytest.raises(ValueError, match="no Python package not_there"):
        embed_content(text_config(tmp_path, "package:not_there"), tmp_path / "content")
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        embed_content(text_config(tmp_path, bert), tmp_path / "content")
    assert not (tmp_path / "content").exists()


def test_a_catalogue_without_any_text(tmp_path: Path, bert: Path) -> None:
    make_dataset(tmp_path, {"text": pa.array([None] * NUM_ITEMS, pa.string())})
    with pytest.raises(ValueError, match="no item has content"):
        embed_content(text_config(tmp_path, bert), tmp_path / "content")


def test_values_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtmh.content.embed._CHUNK_ITEMS", 5)
    vectors = np.ones((NUM_ITEMS, 2), np.float32)
    vectors[7, 1] = np.nan
    column = pa.array(vectors.tolist(), pa.list_(pa.float32(), 2))
    make_dataset(tmp_path, {"content_embedding": column}, dim=2)
    with pytest.raises(ValueError, match="row 7: not finite"):
        embed_content(make_config(tmp_path), tmp_path / "content")


EMBED = """
import sys
from pathlib import Path
from mtmh.config import Config
from mtmh.content import embed

config = Config.model_validate_json(Path(sys.argv[1]).read_text())
copy = embed._copy_column

def at_work(*arguments):
    print("at work", flush=True)
    sys.stdin.readline()
    return copy(*arguments)

embed._copy_column = at_work
embed.embed_content(config, config.content_dir)
"""


def test_two_at_once_the_second_is_told_and_the_first_finishes(tmp_path: Path) -> None:
    vectors = pa.array(np.eye(NUM_ITEMS, 4, dtype=np.float32).tolist(), pa.list_(pa.float32(), 4))
    dataset = make_dataset(tmp_path, {"content_embedding": vectors}, dim=4)
    config = make_config(tmp_path, content={"kind": "column"})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", EMBED, str(tmp_path / "config.json")]

    def begin() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        return process

    killed = begin()
    killed.kill()
    killed.communicate()
    first = begin()
    try:
        with pytest.raises(ValueError, match=rf"{config.content_dir}: being written by .*process {first.pid}; wait"):
            embed_content(config, config.content_dir)
        assert not config.content_dir.exists()
        assert first.communicate("\n", timeout=300)[0] == ""
        assert first.returncode == 0
    finally:
        first.kill()
        first.communicate()
    np.testing.assert_array_equal(open_content(config.content_dir, dataset).embeddings[:4], np.eye(4))
    embed_content(config, config.content_dir)
