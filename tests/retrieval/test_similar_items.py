"""The answers of every item as Parquet: those of ``retrieve``, whole after a crash, the same on any number of ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stored_index import index_config, write_world

from mtmh.artifacts import Artifact, open_artifact
from mtmh.index.build import build_index
from mtmh.retrieval import similar_items
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever
from mtmh.retrieval.similar_items import write_similar_items

SHARD_ITEMS = 700  # 3,000 items: the last shard is smaller


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(tmp_path_factory.mktemp("similar"))
    write_world(root / "world")
    build_index(index_config(root / "world"), root / "index")
    return root


def write(root: Path, out: str, retriever: Retriever | None = None, **options: Any) -> Artifact:
    settings = {"k": 6, "alpha": 50.0, "shard_items": SHARD_ITEMS} | options
    index = open_artifact(root / "index", "index")
    opened = retriever or Retriever.load(root / "index")
    return write_similar_items(index_config(root / "world"), opened, index, root / out, **settings)


def one_rank(rank: int, root: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    write(root, "two")
    dist.destroy_process_group()


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    files = sorted(artifact.path.glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def written(root: Path) -> Artifact:
    return write(root, "all")


def test_every_item_has_the_list_that_retrieve_answers(root: Path, written: Artifact) -> None:
    retriever, found = Retriever.load(root / "index"), rows(written)
    assert len(found) == 3000 == written.summary["num_items"]
    assert [file.name for file in sorted(written.path.glob("*.parquet"))] == [f"part-{n:06d}.parquet" for n in range(5)]
    ids = [row["item_id"] for row in found]
    for row, answers in zip(found, retriever.retrieve(Query(ids, k=6, alpha=50.0)), strict=True):
        kept = [(answer["item_id"], answer["head"]) for answer in row["similar"]]
        assert kept == [(answer.item, answer.head) for answer in answers]
        assert [answer["score"] for answer in row["similar"]] == pytest.approx([answer.score for answer in answers])
    described = dict(zip(ids, retriever.describe(ids), strict=True))
    for row in found[::500]:
        assert row["topic_l2"] == described[row["item_id"]].topic_l2
        assert [answer["topic_l1"] for answer in row["similar"]] == [
            described[answer["item_id"]].topic_l1 for answer in row["similar"]
        ]


def test_two_ranks_write_the_same(root: Path, written: Artifact) -> None:
    mp.start_processes(one_rank, args=(root,), start_method="forkserver", nprocs=2)
    assert open_artifact(root / "two", "similar-items").manifest.files == written.manifest.files
    assert not list(root.glob("*.parts"))


def test_a_run_goes_on_where_it_was_killed(root: Path, written: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = similar_items._answers, list[int]()

    def dies_at_the_third(retriever: Retriever, triggers: Any, plan: Any) -> Any:
        calls.append(len(triggers))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(retriever, triggers, plan)

    monkeypatch.setattr(similar_items, "_answers", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write(root, "killed")
    assert not (root / "killed").exists()
    calls[:] = [0, 0, 0]
    resumed = write(root, "killed")
    assert calls[3:] == [700, 700, 200]
    assert resumed.manifest.files == written.manifest.files
    # What another alpha has left is of no use.
    calls[:] = [0]
    with pytest.raises(KeyboardInterrupt):
        write(root, "other", alpha=100.0)
    calls[:] = [0, 0, 0]
    write(root, "other")
    assert len(calls) == 3 + 5


def test_items_that_are_named_and_items_that_were_removed(root: Path) -> None:
    retriever = Retriever.load(root / "index")
    ids = retriever.catalogue.ids(np.arange(3000))
    some = rows(write(root, "some", items=[ids[5], ids[2]], alpha=100.0))
    assert [row["item_id"] for row in some] == [ids[5], ids[2]]
    assert {answer["head"] for row in some for answer in row["similar"]} == {"engagement"}
    left = rows(write(root, "left", retriever.with_removed(ids[:10])))
    assert {row["item_id"] for row in left} == set(ids[10:])
    assert not {answer["item_id"] for row in left for answer in row["similar"]} & set(ids[:10])
    with pytest.raises(ValueError, match="unknown item"):
        write(root, "none", items=[999_999])
    with pytest.raises(ValueError, match="items: none"):
        write(root, "none", items=[])
