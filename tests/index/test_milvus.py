"""The index on an embedded Milvus (Milvus Lite): build, search, filters, changes, and what is refused."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from stored_index import DIM, HEADS, NUM_ITEMS, clustered, index_config, write_world

from mtmh.artifacts import Artifact
from mtmh.config import Config, MilvusConfig
from mtmh.index import recall, write
from mtmh.index.artifact import IndexSummary, milvus_file
from mtmh.index.build import build_index
from mtmh.index.milvus import MilvusCollection, MilvusIndex, drop_collections, filter_expression
from mtmh.index.store import open_head
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever

pytest.importorskip("pymilvus", reason="the extra mtmh[milvus] is not installed")
pytest.importorskip("milvus_lite", reason="the extra mtmh[milvus] is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("milvus")


@pytest.fixture
def index(folder: Path) -> Iterator[MilvusIndex]:
    place = MilvusCollection.named(MilvusConfig(uri=f"{folder}/items.db"), "some-head", DIM, 20)
    made = MilvusIndex.create(place)
    made.add(clustered(0)[:500], np.arange(500))
    made.seal()
    yield made
    place.drop()


def expected(items: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    similarity = queries.astype(np.float64) @ clustered(0)[items].astype(np.float64).T
    return items[np.argsort(-similarity, axis=1, kind="stable")[:, :k]]


def test_search_equals_numpy(index: MilvusIndex) -> None:
    queries = clustered(0)[:20]
    scores, items = index.search(queries, 10, num_probes=20)
    np.testing.assert_array_equal(items, expected(np.arange(500), queries, 10))
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, clustered(0)[items]), atol=1e-5)
    assert (scores.dtype, items.dtype, index.num_items, index.dim, index.num_clusters) == (
        np.float32,
        np.int64,
        500,
        DIM,
        20,
    )
    # Milvus answers exactly until its index is built, which it does in its own time.
    deadline = time.monotonic() + 60
    while (index.search(queries, 500, num_probes=2)[1] >= 0).all():
        assert time.monotonic() < deadline, "two clusters of twenty hold all items"
        time.sleep(0.1)
    # More than there are: the rest is marked, and nothing is there twice.
    scores, items = index.search(queries[:2], 700, num_probes=20)
    assert [sorted(row[:500]) for row in items.tolist()] == [list(range(500))] * 2
    assert (items[:, 500:] == -1).all()
    assert np.isneginf(scores[:, 500:]).all()


def test_filters(index: MilvusIndex) -> None:
    queries = clustered(0)[:10]
    for share in (0.03, 0.97, 0.0, 1.0):
        allowed = np.random.default_rng(1).random(500) < share
        _, items = index.search(queries, 10, 20, allowed)
        if share == 0.0:
            assert (items == -1).all()
        else:
            np.testing.assert_array_equal(items, expected(np.flatnonzero(allowed), queries, 10))
    _, items = index.search(queries, 10, 20, np.ones(100, bool))
    np.testing.assert_array_equal(items, expected(np.arange(100), queries, 10))
    assert filter_expression(np.array([True, False, False])) == "item in [0]"
    assert filter_expression(np.array([True, False, True])) == "item < 3 and item not in [1]"


def test_added_replaced_and_removed_items(index: MilvusIndex) -> None:
    index.add(clustered(0)[1000:1003], np.array([2**40, 600, 3]))
    assert index.num_items == 502
    _, items = index.search(clustered(0)[1000:1003], 1, 20)
    assert items[:, 0].tolist() == [2**40, 600, 3]
    index.remove(np.array([2**40, 3, 77_777]))
    assert index.num_items == 500
    _, items = index.search(clustered(0)[1000:1003], 502, 20)
    assert not np.isin(items, [2**40, 3]).any()
    assert (items[:, 500:] == -1).all()
    with pytest.raises(ValueError, match=r"vectors of shape \(1, 16\), expected \[2, 16\]"):
        index.add(clustered(0)[:1], np.arange(2))
    with pytest.raises(ValueError, match="item -1: item indices are not negative"):
        index.add(clustered(0)[:1], np.array([-1]))


def test_bad_arguments(index: MilvusIndex) -> None:
    queries = clustered(0)[:1]
    with pytest.raises(ValueError, match="k is 0"):
        index.search(queries, 0, 1)
    with pytest.raises(ValueError, match="num_probes is 0"):
        index.search(queries, 1, 0)
    with pytest.raises(ValueError, match=r"expected \[Q, 16\]"):
        index.search(queries[:, :3], 1, 1)


def milvus_config(root: Path, uri: Path) -> Config:
    return index_config(root, backend="milvus", milvus={"uri": str(uri)})


def built(root: Path) -> tuple[Artifact, IndexSummary]:
    write_world(root)
    artifact = build_index(milvus_config(root, root / "items.db"), root / "index")
    return artifact, IndexSummary.model_validate(artifact.summary)


def test_from_embeddings_to_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recall, "_QUERIES", 50)
    artifact, summary = built(tmp_path)
    milvus = milvus_config(tmp_path, tmp_path / "items.db").index.milvus
    assert summary.backend == "milvus"
    assert all(found.recall > 0.5 for found in summary.ann_recall.values())
    for place, head in enumerate(HEADS):
        index, vectors = open_head(artifact.path, head, summary, milvus)
        assert index.num_items == NUM_ITEMS
        np.testing.assert_array_equal(vectors[np.arange(NUM_ITEMS)], clustered(place))
    answers = Retriever.load(artifact.path, milvus=milvus).retrieve(Query([50], k=6, num_probes=37, alpha=100))[0]
    similarity = clustered(0) @ clustered(0)[5]
    similarity[5] = -1
    assert [answer.item for answer in answers] == [10 * item for item in np.argsort(-similarity)[:6].tolist()]

    other, _ = open_head(artifact.path, HEADS[1], summary, milvus)
    assert isinstance(other, MilvusIndex)
    other.remove(np.arange(5))
    with pytest.raises(ValueError, match=rf"{NUM_ITEMS - 5} vectors of width 16, the manifest says {NUM_ITEMS}"):
        open_head(artifact.path, HEADS[1], summary, milvus)
    # The collections go with the folder; what is gone already, or unreadable, is passed over.
    MilvusCollection.read(artifact.path / milvus_file(HEADS[1])).drop()
    broken = milvus_file("broken")
    (artifact.path / broken).write_text("{}")
    drop_collections(artifact.path, milvus)
    assert "broken.milvus.json: its collection was not deleted: " in caplog.text
    for head in HEADS:
        with pytest.raises(ValueError, match=rf"no collection mtmh_{head}_\w+; build the index again"):
            open_head(artifact.path, head, summary, milvus)
    with pytest.raises(ValueError, match="not a description of a collection"):
        MilvusCollection.read(artifact.path / broken)


def test_an_index_chooses_neither_server_nor_collection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[str] = []

    class Stranger(BaseHTTPRequestHandler):
        def handle(self) -> None:
            tried.append("")

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever).start()
        own = MilvusConfig(uri=str(tmp_path / "items.db"))
        folder = tmp_path / "000001"
        folder.mkdir()
        path = folder / milvus_file("some-head")
        place = MilvusCollection.named(own, "some-head", 4, 2)
        elsewhere = place.model_copy(update={"uri": f"http://127.0.0.1:{server.server_port}"})
        elsewhere.write(path)
        for config in (own, None):
            with pytest.raises(ValueError, match=r"is on Milvus at http://127.0.0.1:\d+, but index.milvus.uri of"):
                MilvusCollection.trusted(path, config)
        drop_collections(folder, own)
        assert "nothing was sent there" in caplog.text
        server.shutdown()
    assert not tried, "the server that the folder names heard nothing"

    index = MilvusIndex.create(place)
    for name in (place.collection.replace("some_head", "other"), "mtmh_some_head_", f"x{place.collection}"):
        place.model_copy(update={"collection": name}).write(path)
        with pytest.raises(ValueError, match=r"but those of this head begin with mtmh_some_head_ "):
            MilvusCollection.trusted(path, own)
    # A copy of a version: its end leaves the collection to the other one.
    place.write(path)
    assert MilvusCollection.trusted(path, own) == place
    copy = tmp_path / "000002"
    shutil.copytree(folder, copy)
    drop_collections(copy, own)
    assert MilvusIndex(place).num_items == index.num_items
    shutil.rmtree(copy)
    drop_collections(folder, own)
    with pytest.raises(ValueError, match="no collection mtmh_some_head_"):
        MilvusIndex(place)


def test_a_failed_build_leaves_no_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(write, "RecallMeter", fail)
    with pytest.raises(OSError, match="disk full"):
        built(tmp_path)
    from pymilvus import MilvusClient

    assert MilvusClient(str(tmp_path / "items.db")).list_collections() == []


def test_settings_and_servers_that_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"say where it is by index.milvus.uri"):
        index_config(tmp_path, backend="milvus")
    with pytest.raises(ValueError, match=r"index.storage is pq: a setting of faiss"):
        index_config(tmp_path, "pq", backend="milvus", milvus={"uri": "x.db"})
    place = MilvusCollection(uri="http://127.0.0.1:1", collection="a", dim=4, num_clusters=2)
    with pytest.raises(ValueError, match=r"index.milvus.uri is http://127.0.0.1:1: "):
        MilvusIndex(place)
    with pytest.raises(ValueError, match="no index file here"):
        MilvusCollection.read(tmp_path / "none.json")
    monkeypatch.setitem(sys.modules, "pymilvus", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"pip install 'mtmh\[milvus\]'"):
        MilvusIndex(place)
