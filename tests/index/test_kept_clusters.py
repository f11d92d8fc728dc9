"""The clusters that a build keeps of each item: the nearest ones, and the same answers with them as without."""

from __future__ import annotations

import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from stored_index import HEADS, NUM_ITEMS, clustered, index_config, write_world

from mtmh.artifacts import open_artifact
from mtmh.data.item_vectors import StackedVectors
from mtmh.index import vector_index
from mtmh.index.artifact import IndexSummary, near_file
from mtmh.index.build import build_index
from mtmh.index.kept_clusters import cluster_type, most_kept
from mtmh.index.storage import Storage
from mtmh.index.store import open_head
from mtmh.index.vector_index import IvfIndex
from mtmh.retrieval import head_search
from mtmh.retrieval.head_search import HeadSearch

PROBES: dict[Storage, int] = {"flat": 8, "fp16": 4}  # a quarter of a vector of 16 numbers
TRIGGERS = np.random.default_rng(0).permutation(NUM_ITEMS)[:200]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    write_world(root)
    for storage, probes in PROBES.items():
        config = index_config(root, storage)
        build_index(
            config.model_copy(update={"retrieval": config.retrieval.model_copy(update={"num_probes": probes})}),
            root / storage,
        )
    return root


def summary_of(folder: Path) -> IndexSummary:
    return IndexSummary.model_validate(open_artifact(folder, "index").summary)


def searches(folder: Path, aside: Path) -> tuple[HeadSearch, HeadSearch]:
    """Of the first head, with the kept clusters and without."""
    shutil.copytree(folder, aside)
    (aside / near_file(HEADS[0])).unlink()
    found = [open_head(where, HEADS[0], summary_of(folder)) for where in (folder, aside)]
    kept, plain = (HeadSearch(index, StackedVectors(vectors)) for index, vectors in found)
    return kept, plain


@pytest.mark.parametrize("storage", PROBES)
def test_kept_are_the_nearest_by_a_product_in_float64(root: Path, storage: Storage) -> None:
    for place, head in enumerate(HEADS):
        kept = np.load(root / storage / near_file(head), allow_pickle=False)
        assert (kept.dtype, kept.shape) == (np.uint16, (NUM_ITEMS, PROBES[storage]))
        index, _ = open_head(root / storage, head, summary_of(root / storage))
        assert isinstance(index, IvfIndex)
        products = clustered(place).astype(np.float64) @ index.centroids.astype(np.float64).T
        nearest = -np.sort(-products, axis=1)[:, : PROBES[storage]]
        np.testing.assert_allclose(np.take_along_axis(products, kept.astype(int), axis=1), nearest, atol=1e-6)
        assert all(len(set(row)) == len(row) for row in kept.tolist())
        np.testing.assert_array_equal(kept[:, 0], index.clusters_of_items)


@pytest.mark.parametrize("storage", PROBES)
def test_answers_are_the_same_without(
    root: Path, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_search, "SCANNED_ADDED", 100)
    monkeypatch.setattr(head_search, "SCANNED_ITEMS", 100)
    kept, plain = searches(root / storage, tmp_path / "plain")
    added = clustered(1)[:300]
    rng = np.random.default_rng(1)
    triggers = np.concatenate([TRIGGERS, NUM_ITEMS + np.arange(0, 300, 7)])
    few, many = rng.random(NUM_ITEMS + 300) < 0.99, rng.random(NUM_ITEMS + 300) < 0.3
    for probes in (1, PROBES[storage], PROBES[storage] + 1):
        cases = [(kept, plain, TRIGGERS, None), (kept, plain, TRIGGERS, few[:NUM_ITEMS])]
        for listed in (True, False):
            both = [search.with_added(added, listed=listed) for search in (kept, plain)]
            cases += [(*both, triggers, allowed) for allowed in (None, few, many)]
        for with_kept, without, asked, allowed in cases:
            found, wanted = (
                search.search(asked, 20, num_probes=probes, needed=20, allowed=allowed)
                for search in (with_kept, without)
            )
            # Halves differ from the vectors that were filed: a cluster may change places with one as near as that.
            same = (found[0] == wanted[0]).mean()
            assert same == 1.0 if storage == "flat" else same > 0.99
            np.testing.assert_allclose(found[1][found[0] == wanted[0]], wanted[1][found[0] == wanted[0]], atol=1e-6)


def test_no_product_is_made_for_items_whose_clusters_are_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, plain = searches(root / "flat", tmp_path / "plain")
    asked: list[int] = []
    nearest = IvfIndex.nearest

    def counted(index: IvfIndex, queries: np.ndarray, num_probes: int) -> vector_index.Near:
        asked.append(len(queries))
        return nearest(index, queries, num_probes)

    monkeypatch.setattr(IvfIndex, "nearest", counted)
    for search, triggers, probes, expected in (
        (kept, [5, 9], 8, []),
        (kept, [5, 9], 3, []),
        (kept, [5, 9], 9, [2]),
        (plain, [5, 9], 8, [2]),
        (kept.with_added(clustered(1)[:2], listed=True), [5, NUM_ITEMS, 9, NUM_ITEMS + 1], 8, [2]),
    ):
        asked.clear()
        search.search(np.array(triggers), 2, num_probes=probes, needed=1)
        assert asked == expected


def test_a_build_keeps_as_many_as_a_search_visits(root: Path, tmp_path: Path) -> None:
    for storage, probes, min_recall, expected in (
        ("flat", 3, 0.0, 3),
        ("flat", 9, 0.0, None),  # more than a quarter of the vector
        ("fp16", 8, 0.0, None),
        ("pq", 4, 0.0, None),
        ("flat", "auto", 0.6, "as visited"),
        ("flat", "auto", 1.0, None),
    ):
        config = index_config(root, storage, min_recall=min_recall)
        retrieval = config.retrieval.model_copy(update={"num_probes": probes})
        folder = tmp_path / f"{storage}-{probes}-{min_recall}"
        artifact = build_index(config.model_copy(update={"retrieval": retrieval}), folder)
        artifact.verify()
        visited = summary_of(folder).num_probes
        files = {str(near_file(head)) for head in HEADS}
        assert {name for name in artifact.manifest.files if "near" in name} == (files if expected else set())
        assert not list(folder.glob("*.cut"))
        if expected is None:
            assert probes != "auto" or visited > 8
            continue
        assert visited == expected or (expected == "as visited" and visited < 8)
        for head in HEADS:
            whole = np.load(root / "flat" / near_file(head), allow_pickle=False)
            np.testing.assert_array_equal(np.load(folder / near_file(head), allow_pickle=False), whole[:, :visited])


def test_how_many_and_of_what_type() -> None:
    assert most_kept("flat", 128, 4000) == most_kept("fp16", 128, 4000) == 16
    assert most_kept("flat", 16, 4000) == 8
    assert most_kept("fp16", 16, 2**16 + 1) == 2
    assert most_kept("flat", 128, 5) == 5
    assert most_kept("fastscan", 128, 4000) == 0
    assert [cluster_type(2**16), cluster_type(2**16 + 1)] == [np.uint16, np.int32]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((NUM_ITEMS, 8), np.int64), rf"expected uint16 \[{NUM_ITEMS}, any\], found int64"),
        (np.zeros((NUM_ITEMS - 1, 8), np.uint16), rf"expected uint16 \[{NUM_ITEMS}, any\], found uint16 \[2999, 8\]"),
        (np.zeros(NUM_ITEMS, np.uint16), "expected uint16"),
        (np.zeros((NUM_ITEMS, 0), np.uint16), "0 clusters an item, and there are 37"),
        (np.zeros((NUM_ITEMS, 38), np.uint16), "38 clusters an item, and there are 37"),
        (np.eye(NUM_ITEMS, 8, dtype=np.uint16) * 37, "a cluster that is none of the 37"),
    ],
)
def test_a_damaged_file_is_refused(root: Path, wrong: np.ndarray, message: str, tmp_path: Path) -> None:
    shutil.copytree(root / "flat", tmp_path / "index")
    np.save(tmp_path / "index" / near_file(HEADS[0]), wrong)
    with pytest.raises(ValueError, match=rf"engagement\.near\.npy: {message}"):
        open_head(tmp_path / "index", HEADS[0], summary_of(root / "flat"))


def test_negative_clusters_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtmh.index.kept_clusters._NARROW_CLUSTERS", 36)  # so that 37 need signed numbers
    shutil.copytree(root / "flat", tmp_path / "index")
    path, summary = tmp_path / "index" / near_file(HEADS[0]), summary_of(root / "flat")
    clusters = np.zeros((NUM_ITEMS, 4), np.int32)
    np.save(path, clusters)
    open_head(tmp_path / "index", HEADS[0], summary)
    clusters[-1, -1] = -1
    np.save(path, clusters)
    with pytest.raises(ValueError, match="a cluster that is none of the 37"):
        open_head(tmp_path / "index", HEADS[0], summary)


def test_faiss_asks_no_scores_of_clusters_for_whole_vectors(root: Path) -> None:
    for storage in PROBES:
        index, vectors = open_head(root / storage, HEADS[0], summary_of(root / storage))
        assert isinstance(index, IvfIndex)
        assert isinstance(index.faiss_index, (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer))
        queries = vectors[TRIGGERS]
        near = index.nearest(queries, 4)
        for scores in (np.zeros_like(near.scores), near.scores + 7):
            found = index.search(queries, 10, 4, near=near._replace(scores=scores))
            for part, expected in zip(found, index.search(queries, 10, 4, near=near), strict=True):
                np.testing.assert_array_equal(part, expected)
