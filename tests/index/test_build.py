"""From a checkpoint to embeddings to an index."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ivf_in_memory import build_ivf
from mtmh.modules import MTMH
from synthetic_dataset import NUM_ITEMS, make_config, random_histories, write_dataset
from tiny_run import tiny_config, write_inputs

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.schema import ITEMS
from mtmh.distributed.ranks import join_ranks
from mtmh.index.artifact import IndexSummary
from mtmh.index.build import build_index
from mtmh.index.recall import RecallMeter
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever
from mtmh.tower import embed
from mtmh.tower.artifact import EmbeddingsSummary
from mtmh.tower.embed import Parts, embed_catalogue, write_shards
from mtmh.tower.embedder import Embedder
from mtmh.training.model_builder import build_model, load_model
from mtmh.training.trainer import train


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "dataset", random_histories(20))


def test_embeddings_are_the_models_unit_outputs_whatever_the_chunks(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = make_config(tmp_path, model={"head_dim": 8, "normalize": False})
    model = build_model(config.model, dataset.summary.features, torch.device("cpu")).eval()
    monkeypatch.setattr(embed, "_CHUNK_ITEMS", 7)
    monkeypatch.setattr(embed, "_SHARD_ITEMS", 20)
    parts = Parts(tmp_path / "parts", [head.name for head in model.heads], NUM_ITEMS, 8)
    with join_ranks("cpu") as ranks:
        write_shards(embedder_of(model), dataset.item_table, parts, parts.begin({}), ranks)
    assert parts.begin({}) == []
    sparse, dense = dataset.item_table.gather(np.arange(NUM_ITEMS))
    with torch.no_grad():
        outputs = model(sparse, dense)
    for head, expected in outputs.items():
        found = np.load(parts.folder / f"{head}.npy", allow_pickle=False)
        assert (found.dtype, found.shape) == (np.float32, (NUM_ITEMS, 8))
        unit = expected / expected.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(found, unit.numpy(), atol=1e-6)


def embedder_of(model: MTMH) -> Embedder:
    return Embedder(model, [head.name for head in model.heads], model.head_dim, torch.device("cpu"))


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_SHARD_ITEMS", 20)
    parts = Parts(tmp_path / "parts", ["engagement"], NUM_ITEMS, 4)
    plan = {"checkpoint": "a"}
    assert parts.begin(plan) == [0, 1, 2]
    parts.write(20, {"engagement": np.full((20, 4), 7, np.float32)})
    parts.finish(1)
    assert parts.begin(plan) == [0, 2]
    assert (np.load(parts.folder / "engagement.npy", allow_pickle=False)[20:40] == 7).all()
    # Another checkpoint, or files that are gone: nothing of it is kept.
    assert parts.begin({"checkpoint": "b"}) == [0, 1, 2]
    assert not np.load(parts.folder / "engagement.npy", allow_pickle=False).any()
    parts.finish(0)
    (parts.folder / "engagement.npy").unlink()
    assert parts.begin({"checkpoint": "b"}) == [0, 1, 2]


def test_broken_weights_stop(tmp_path: Path, dataset: Dataset) -> None:
    model = build_model(make_config(tmp_path).model, dataset.summary.features, torch.device("cpu")).eval()
    with torch.no_grad():
        next(model.dense_nn.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="head engagement: the embedding of item index 5 is not finite"):
        embedder_of(model).embed(dataset.item_table, np.arange(5, 9))


def test_embed_needs_a_checkpoint(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        embed_catalogue(make_config(tmp_path), tmp_path / "embeddings")


def write_vectors(config: Config, dataset: Dataset, heads: list[str]) -> None:
    rng = np.random.default_rng(0)
    inputs = {"dataset": dataset.artifact}
    with write_artifact(config.model_dir("embeddings"), "embeddings", config={}, inputs=inputs) as writer:
        for head in heads:
            vectors = rng.normal(size=(NUM_ITEMS, 8)).astype(np.float32)
            np.save(writer.folder / f"{head}.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        writer.summary |= EmbeddingsSummary(heads=heads, dim=8, num_items=NUM_ITEMS).model_dump()


def with_topics(root: Path, plain: Dataset) -> Dataset:
    """A copy of a dataset whose items have the display columns."""
    with write_artifact(root / "dataset", "dataset", config={}) as writer:
        shutil.copytree(plain.artifact.path, writer.folder, dirs_exist_ok=True)
        (writer.folder / "manifest.json").unlink()
        table = pq.read_table(plain.artifact.path / ITEMS)
        for name in ("topic_l1", "topic_l2"):
            labels = pa.array([f"{name} {item % 3}" for item in range(NUM_ITEMS)])
            table = table.set_column(table.column_names.index(name), name, labels)
        pq.write_table(table, writer.folder / ITEMS)
        writer.summary |= plain.artifact.summary
    return open_dataset(root / "dataset")


def test_index_holds_what_serving_needs(tmp_path: Path, dataset: Dataset) -> None:
    dataset = with_topics(tmp_path, dataset)
    config = make_config(tmp_path, index={"num_clusters": 5}, retrieval={"num_probes": 5})
    write_vectors(config, dataset, ["engagement", "relevance"])
    artifact = build_index(config, config.model_dir("index"))
    artifact.verify()
    summary = IndexSummary.model_validate(artifact.summary)
    assert (summary.heads, summary.num_items, summary.num_clusters) == (["engagement", "relevance"], NUM_ITEMS, 5)
    assert {head: found.recall for head, found in summary.ann_recall.items()} == {"engagement": 1.0, "relevance": 1.0}
    answers = Retriever.load(artifact.path).retrieve(Query([30], k=8, alpha=100))[0]
    vectors = np.load(config.model_dir("embeddings") / "engagement.npy", allow_pickle=False)
    ranked = [item for item in np.argsort(-(vectors @ vectors[3])).tolist() if item != 3]
    assert [answer.item for answer in answers] == [10 * item for item in ranked[:8]]


def test_embeddings_of_another_dataset_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    config = make_config(tmp_path)
    write_vectors(config, dataset, ["engagement"])
    with_topics(tmp_path, dataset)
    with pytest.raises(ValueError, match="embeddings of another dataset"):
        build_index(config, tmp_path / "index")


def test_from_a_trained_checkpoint(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    config = tiny_config(tmp_path, training={"max_steps": 2})
    checkpoint = train(config)
    artifact = embed_catalogue(config, config.model_dir("embeddings"))
    assert artifact.summary == {"heads": ["engagement", "relevance"], "dim": 8, "num_items": 200, "delta": None}
    sparse, dense = open_dataset(config.dataset_dir).item_table.gather(np.arange(200))
    with torch.no_grad():
        outputs = load_model(checkpoint)(sparse, dense)
    for head, expected in outputs.items():
        found = np.load(artifact.path / f"{head}.npy", allow_pickle=False)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    write_dataset(config.dataset_dir, random_histories(20), num_items=200)
    with pytest.raises(ValueError, match="trained on another dataset"):
        embed_catalogue(config, tmp_path / "again")


def test_missing_embeddings_are_said(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="no embeddings artifact"):
        build_index(make_config(tmp_path), tmp_path / "index")


def test_ann_recall_is_the_share_of_exact_neighbours() -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = build_ivf(vectors, num_clusters=30)
    meter = RecallMeter(index, vectors, seed=0)
    assert meter.recall(30).recall == 1.0
    found = meter.recall(2)
    exact = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :100]
    _, items = index.search(vectors, 100, 2)
    shared = [len(set(a) & set(b) - {-1}) for a, b in zip(exact.tolist(), items.tolist(), strict=True)]
    assert found.recall == pytest.approx(np.mean(shared) / 100, abs=1e-3)
    assert (found.k, found.num_probes, found.num_queries) == (100, 2, 600)


def test_of_items_with_one_vector_it_does_not_matter_which_are_found() -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    vectors[::2] = vectors[0]  # more than a list holds
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # The order of the items decides which of equal ones exact search names.
    index = build_ivf(vectors, num_clusters=30)
    meter = RecallMeter(index, vectors, seed=0)
    _, items = index.search(vectors, 100, 30)
    _, others = build_ivf(vectors[::-1].copy(), num_clusters=30).search(vectors, 100, 30)
    assert set(items[0].tolist()) != set((599 - others[0]).tolist())
    assert meter.recall(30).recall == 1.0
    found = meter.recall(1)
    scores = vectors @ vectors.T
    least = np.sort(scores, axis=1)[:, -100] - 1e-6
    _, items = index.search(vectors, 100, 1)
    near = [
        sum(scores[row, item] >= least[row] for item in set(found_items) - {-1})
        for row, found_items in enumerate(items.tolist())
    ]
    assert found.recall == pytest.approx(np.mean(near) / 100, abs=1e-3)
    assert found.recall < 1.0


def test_the_fewest_probes_that_reach_the_recall_are_chosen() -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = build_ivf(vectors, num_clusters=30)
    meter = RecallMeter(index, vectors, seed=0)
    chosen = meter.fewest_probes(0.9)
    tried = [measured.num_probes for measured in meter.curve]
    assert tried == [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27, 30][: len(tried)]
    assert chosen == tried[-1] < 30
    assert [measured.recall >= 0.9 for measured in meter.curve] == [False] * (len(tried) - 1) + [True]
    assert meter.fewest_probes(1.0) <= 30, "all of them find everything"
    codes = build_ivf(vectors, num_clusters=30, storage="sq8")
    coarse = RecallMeter(codes, vectors, seed=0)
    chosen = coarse.fewest_probes(1.0)  # which these codes do not reach
    assert coarse.curve[-1].recall < 1.0
    assert coarse.recall(chosen).recall == pytest.approx(coarse.curve[-1].recall, abs=0.005)


def test_a_build_chooses_the_probes_of_all_heads_and_records_the_curve(tmp_path: Path, dataset: Dataset) -> None:
    dataset = with_topics(tmp_path, dataset)
    config = make_config(tmp_path, index={"num_clusters": 5, "min_recall": 0.5})
    write_vectors(config, dataset, ["engagement", "relevance"])
    summary = IndexSummary.model_validate(build_index(config, config.model_dir("index")).summary)
    assert 1 < summary.num_probes < 5
    for head in summary.heads:
        recalls = {point.num_probes: point.recall for point in summary.recall_curve[head]}
        assert summary.ann_recall[head].num_probes == summary.num_probes
        assert summary.ann_recall[head].recall == recalls[summary.num_probes] >= 0.5
    assert any(
        all(point.recall < 0.5 for point in curve if point.num_probes < summary.num_probes)
        for curve in summary.recall_curve.values()
    ), "fewer are not enough under one of the heads"
    assert Retriever.load(config.model_dir("index")).num_probes == summary.num_probes
