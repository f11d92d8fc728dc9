"""Every storage kind, from embeddings on disk through the artifact to answers."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from stored_index import DIM, HEADS, NUM_ITEMS, clustered, index_config, write_world

from mtmh.artifacts import Artifact, open_artifact
from mtmh.index import kinds
from mtmh.index.artifact import (
    IDS,
    ITEM_FEATURES,
    ITEM_KEYS,
    ITEMS,
    KEY_ITEMS,
    IndexSummary,
    exact_file,
    index_file,
    lists_file,
    places_file,
)
from mtmh.index.build import build_index
from mtmh.index.storage import IvfSettings, VectorFile
from mtmh.index.store import open_head, open_lists
from mtmh.index.vector_index import IvfIndex

KINDS = {  # storage -> bytes of a code, least recall at all clusters, tolerance of scores
    "flat": (4 * DIM, 1.0, 1e-6),
    "fp16": (2 * DIM, 0.98, 1e-3),
    "sq8": (DIM, 0.98, 1e-3),
    "pq": (4, 0.9, 1e-3),
    "fastscan": (4, 0.95, 1e-3),  # 8 numbers of 4 bits
}


def kind_of(index: Any) -> str:
    if isinstance(index, faiss.IndexIVFScalarQuantizer):
        return {faiss.ScalarQuantizer.QT_fp16: "fp16", faiss.ScalarQuantizer.QT_8bit: "sq8"}[index.sq.qtype]
    kinds = {faiss.IndexIVFFlat: "flat", faiss.IndexIVFPQ: "pq", faiss.IndexIVFPQFastScan: "fastscan"}
    return kinds[type(index)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("storage")
    write_world(root)
    for storage in KINDS:
        build_index(index_config(root, storage), root / storage)
    return root


def opened(root: Path, storage: str) -> tuple[Artifact, IndexSummary]:
    artifact = open_artifact(root / storage, "index")
    return artifact, IndexSummary.model_validate(artifact.summary)


def exact_answers(vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    similarity = queries.astype(np.float64) @ vectors.astype(np.float64).T
    if allowed is not None:
        similarity[:, ~allowed] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([len(set(x) & set(y)) / len(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]))


@pytest.mark.parametrize("storage", KINDS)
def test_answers_scores_and_vectors(root: Path, storage: str) -> None:
    code_bytes, recall, tolerance = KINDS[storage]
    artifact, summary = opened(root, storage)
    artifact.verify()
    for place, head in enumerate(HEADS):
        vectors = clustered(place)
        index, stored = open_head(artifact.path, head, summary)
        assert isinstance(index, IvfIndex)
        assert (kind_of(index.faiss_index), index.code_bytes, index.num_items) == (storage, code_bytes, NUM_ITEMS)
        scores, items = index.search(vectors[:100], 10, num_probes=index.num_clusters)
        assert overlap(items, exact_answers(vectors, vectors[:100], 10)) >= recall
        # Scores are of the vectors, not of the codes, and those of the vectors are what sorting sees.
        products = np.einsum("qd,qkd->qk", vectors[:100].astype(np.float64), vectors[items])
        np.testing.assert_allclose(scores, products, atol=tolerance)
        assert stored.shape == (NUM_ITEMS, DIM)
        assert len(stored) == NUM_ITEMS
        every = stored[np.arange(NUM_ITEMS)]
        assert every.dtype == np.float32
        np.testing.assert_allclose(every, vectors, atol=0 if storage == "flat" else 5e-4)
        np.testing.assert_array_equal(stored[items], every[items])
        np.testing.assert_array_equal(stored[10:20], every[10:20])
    assert list(summary.ann_recall) == HEADS
    assert all(found.recall > 0.5 for found in summary.ann_recall.values())


@pytest.mark.parametrize("storage", KINDS)
def test_filters_apply_inside_the_search(root: Path, storage: str) -> None:
    artifact, summary = opened(root, storage)
    vectors = clustered(0)
    index, _ = open_head(artifact.path, HEADS[0], summary)
    allowed = np.random.default_rng(5).random(NUM_ITEMS) < 0.02
    scores, items = index.search(vectors[:50], 12, index.num_clusters, allowed)
    assert allowed[items].all()
    assert overlap(items, exact_answers(vectors, vectors[:50], 12, allowed)) >= min(KINDS[storage][1], 0.95)
    # Where fewer are allowed than asked for, the rest is marked as missing: never an item that is not there.
    few = np.zeros(NUM_ITEMS, bool)
    few[[7, 900]] = True
    scores, items = index.search(vectors[:50], 5, index.num_clusters, few)
    assert {tuple(sorted(row)) for row in items[:, :2].tolist()} == {(7, 900)}
    assert (items[:, 2:] == -1).all()
    assert np.isneginf(scores[:, 2:]).all()
    # A mask that ends before the last items leaves those out.
    _, items = index.search(vectors[-50:], 5, index.num_clusters, np.ones(100, bool))
    assert items.max() < 100
    with pytest.raises(ValueError, match="expected bool"):
        index.search(vectors[:1], 5, 1, np.ones(NUM_ITEMS, np.int64))


def test_lists_equal_those_of_plain_faiss(root: Path) -> None:
    """The merged file holds what ``add`` in one process would have filed, in the same order."""
    for storage in KINDS:
        artifact, summary = opened(root, storage)
        merged = open_lists(artifact.path, HEADS[0], summary)
        plain: Any = faiss.read_index(str(artifact.path / index_file(HEADS[0])), faiss.IO_FLAG_SKIP_IVF_DATA)
        lists = faiss.ArrayInvertedLists(plain.nlist, plain.code_size)
        plain.replace_invlists(lists, False)
        plain.ntotal = 0
        plain.add(clustered(0))
        for number in range(plain.nlist):
            size = plain.invlists.list_size(number)
            assert merged.invlists.list_size(number) == size
            if not size:
                continue
            for get, count in (("get_ids", size), ("get_codes", size * plain.code_size)):
                ours, theirs = (
                    faiss.rev_swig_ptr(getattr(index.invlists, get)(number), count).copy() for index in (merged, plain)
                )
                np.testing.assert_array_equal(ours, theirs)


def test_pages_can_be_given_back_between_searches(root: Path) -> None:
    artifact, summary = opened(root, "flat")
    index, _ = open_head(artifact.path, HEADS[0], summary)
    assert isinstance(index, IvfIndex)
    before = index.search(clustered(0)[:5], 5, 4)
    index.drop_pages()
    for found, other in zip(before, index.search(clustered(0)[:5], 5, 4), strict=True):
        np.testing.assert_array_equal(found, other)


def test_vectors_are_stored_once(root: Path) -> None:
    for storage, (code_bytes, *_) in KINDS.items():
        artifact, summary = opened(root, storage)
        beside = 8 if storage in ("flat", "fp16") else 2 * DIM  # a place, or the vector in halves
        sizes = {name: record.bytes for name, record in artifact.manifest.files.items()}
        assert sizes[str(lists_file(HEADS[0]))] == NUM_ITEMS * (code_bytes + 8)
        rest = places_file(HEADS[0]) if summary.vectors == "lists" else exact_file(HEADS[0])
        assert 0 <= sizes[str(rest)] - NUM_ITEMS * beside < 256
        of_items = {str(name) for name in (ITEMS, ITEM_FEATURES, ITEM_KEYS, KEY_ITEMS, IDS)}
        kept = len(HEADS) if storage == "flat" else 0  # clusters: 8 would be half of a vector in halves
        assert len(sizes) == 3 * len(HEADS) + kept + len(of_items)
        assert of_items < sizes.keys()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_vector_file_is_what_faiss_writes(tmp_path: Path, precision: str) -> None:
    vectors = clustered(0)[:70]
    file = VectorFile(tmp_path / "ours", precision, 70, DIM)
    file.create()
    file.write(50, vectors[50:])
    file.write(0, vectors[:50])
    index: Any = faiss.IndexFlatIP(DIM)
    if precision == "fp16":
        index = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": NUM_ITEMS + 1}, rf"index.num_clusters is {NUM_ITEMS + 1}, more than the {NUM_ITEMS} vectors"),
        ({"num_clusters": 60, "train_sample": 50}, "index.num_clusters is 60, more than the 50 vectors"),
        ({"storage": "pq", "pq": {"m": 5}}, r"index.pq.m is 5, which does not divide the width 16 .* 1, 2, 4, 8, 16"),
        ({"storage": "pq", "pq": {"m": 4}, "train_sample": 200}, r"256 centroids a number .* there are 200"),
        (
            {"storage": "fastscan", "num_clusters": 4, "train_sample": 12},
            r"fastscan: 16 centroids a number need at least as many training vectors, and there are 12",
        ),
        ({"storage": "pq", "pq": {"m": 4, "bits": 12}}, rf"4096 centroids a number .* there are {NUM_ITEMS}"),
    ],
)
def test_settings_that_do_not_fit(root: Path, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_index(index_config(root, **settings), tmp_path / "index")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", ["flat", "pq", "fastscan"])
def test_damaged_and_mixed_up_files(root: Path, storage: str, tmp_path: Path) -> None:
    head = HEADS[0]
    _, summary = opened(root, storage)
    beside = places_file(head) if storage == "flat" else exact_file(head)

    def damaged(name: Path) -> Path:
        folder = tmp_path / name.name
        shutil.copytree(root / storage, folder)
        return folder

    folder = damaged(lists_file(head))
    os.truncate(folder / lists_file(head), 100)
    with pytest.raises(ValueError, match=r"engagement.lists: 100 bytes, which are not the codes of"):
        open_head(folder, head, summary)
    (folder / lists_file(head)).unlink()
    with pytest.raises(ValueError, match=r"engagement.lists: missing"):
        open_head(folder, head, summary)
    folder = damaged(beside)
    os.truncate(folder / beside, (folder / beside).stat().st_size // 2)
    with pytest.raises(ValueError, match=beside.name.replace(".", r"\.")):
        open_head(folder, head, summary)
    folder = damaged(index_file(head))
    (folder / index_file(head)).write_bytes(b"IwFl and nothing more")
    with pytest.raises(ValueError, match=r"engagement.faiss: not an index of"):
        open_head(folder, head, summary)
    faiss.write_index(faiss.IndexHNSWFlat(DIM, 8), str(folder / index_file(head)))
    with pytest.raises(ValueError, match=r"engagement.faiss: not an index of"):
        open_head(folder, head, summary)
    with pytest.raises(ValueError, match=rf"not the codes of {NUM_ITEMS + 1} vectors"):
        open_head(root / storage, head, summary.model_copy(update={"num_items": NUM_ITEMS + 1}))
    other = "pq" if storage == "flat" else "flat"
    with pytest.raises(ValueError, match=r"engagement.faiss: not an index of 3000 vectors of width 16"):
        open_head(root / storage, head, opened(root, other)[1])


def test_kinds_are_compared_on_the_clusters_that_a_search_of_the_index_visits(root: Path) -> None:
    for built in ("flat", "pq"):
        artifact, summary = opened(root, built)
        settings = IvfSettings.of(index_config(root, built).index, seed=3)
        index, vectors = open_head(artifact.path, HEADS[0], summary)
        assert isinstance(index, IvfIndex)
        queries, members, clusters = kinds._visited(index, vectors, summary.num_probes, 3)
        of_flat = kinds.filled(
            replace(settings, storage="flat", num_clusters=37), index, vectors[:], vectors[members], clusters, 8
        )
        if built == "flat":
            scores, items = index.search(queries, 20, summary.num_probes)
            own_scores, own = of_flat.search(queries, 20, summary.num_probes)
            np.testing.assert_array_equal(members[own], items)
            np.testing.assert_allclose(own_scores, scores, atol=1e-6)
        times = {kind.storage: kind for kind in kinds.compare_kinds(artifact.path, summary, settings)}
        assert list(times) == ["flat", "fp16", "fastscan"] + (["pq"] if built == "pq" else [])
        assert times["flat"].kept == 1.0
        assert min(kind.kept for kind in times.values()) > 0.7
        assert times["fp16"].kept > 0.98
        assert min(kind.milliseconds for kind in times.values()) > 0.0


def test_kinds_are_compared_on_fewer_vectors_than_a_quantizer_has_centroids(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, summary = opened(root, "pq")
    settings = replace(IvfSettings.of(index_config(root, "pq").index, seed=3), pq_bits=10)
    monkeypatch.setattr(kinds, "_QUERIES", 1)
    times = kinds.compare_kinds(artifact.path, summary.model_copy(update={"num_probes": 1}), settings)
    assert [kind.storage for kind in times] == ["flat", "fp16", "fastscan", "pq"]


def test_the_fastest_kind_that_finds_what_vectors_find_is_recommended(root: Path) -> None:
    _, summary = opened(root, "flat")
    flat, coarse = kinds.KindTime("flat", 0.3, 1.0), kinds.KindTime("fastscan", 0.05, 0.98)
    said = kinds.recommendation([flat, kinds.KindTime("fp16", 0.2, 1.0), coarse], summary)
    assert said.endswith("the index has flat, index.storage=fp16 is 1.5 times as fast")
    assert "fastscan 0.050 ms (finds 0.980)" in said
    assert kinds.recommendation([flat, coarse], summary).endswith("the index has flat")
