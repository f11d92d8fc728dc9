"""Two services that hold one half of the items each, behind a front: the answers are those of one with all items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from service_process import ServiceProcess

from benchmarks.serving.shards import Front
from mtmh.config import IndexConfig, ServiceConfig, load_config
from mtmh.distributed.ranks import join_ranks
from mtmh.errors import RequestError
from mtmh.index import write
from mtmh.index.artifact import RankedBy
from mtmh.index.versions import new_version, publish
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever
from mtmh.serving.api import largest_body
from mtmh.tower.artifact import vectors_file

NUM_ITEMS, DIM, CLUSTERS = 300, 8, 5
HEADS = ["engagement", "relevance"]


def unit_vectors(place: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(place).normal(size=(NUM_ITEMS, DIM))
    unit: npt.NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


VECTORS = {head: unit_vectors(place) for place, head in enumerate(HEADS)}


def publish_share(root: Path, items: npt.NDArray[np.int64]) -> Path:
    """A recipe with a published index of some items; their ids are 100 times their number."""
    root.mkdir()
    recipe = root / "share.yaml"
    settings = {"k": 10, "k_ann": 100, "preranker": "head-score", "sorter": "head-score"}
    facts = {"name": "share", "paths": {"root": str(root / "runs")}, "data": {"source": "synthetic"}}
    recipe.write_text(yaml.safe_dump(facts | {"retrieval": settings}))
    config = load_config(recipe)
    for head, vectors in VECTORS.items():
        np.save(root / vectors_file(head), vectors[items])

    def finish(folder: Path) -> dict[str, object]:
        labels = {name: pa.nulls(len(items), pa.string()) for name in ("topic_l1", "topic_l2")}
        shown = {"item_id": items * 100, "text": [f"item {item}" for item in items], "train_count": items, **labels}
        pq.write_table(pa.table(shown), folder / "items.parquet")
        return {}

    version = new_version(config.model_dir("index"))
    with join_ranks("cpu") as ranks:
        write.write_index(
            write.Source(root, HEADS, DIM, len(items), "int64"),
            IndexConfig(num_clusters=CLUSTERS),
            version,
            ranks,
            write.IndexRecord(config.model_dump(mode="json"), {}, {}),
            finish,
            ranked_by=RankedBy(preranker="head-score", sorter="head-score", temperature=0.1),
            num_probes=CLUSTERS,  # all: what is left of a difference would be the front's
            seed=0,
        )
    publish(version)
    return recipe


def test_a_front_of_two_halves_answers_as_the_whole(tmp_path: Path) -> None:
    everything = np.arange(NUM_ITEMS)
    whole = Retriever.load(load_config(publish_share(tmp_path / "whole", everything)).model_dir("index"))
    even, odd = (publish_share(tmp_path / f"half-{half}", everything[half::2]) for half in (0, 1))
    with ServiceProcess(even) as first, ServiceProcess(odd) as second:
        front = Front([first.url, second.url])
        for trigger, alpha in ((0, 50.0), (7, 20.0), (7, 100.0), (120, 70.0)):
            vectors = {head: found[trigger].tolist() for head, found in VECTORS.items()}
            answers = front.retrieve(trigger * 100, vectors, k=10, alpha=alpha)
            expected = whole.retrieve(Query([trigger * 100], k=10, alpha=alpha))[0]
            assert [(item["item"], item["head"]) for item in answers] == [(item.item, item.head) for item in expected]
            for field in ("score", "similarity"):
                found = [item[field] for item in answers]
                assert found == pytest.approx([getattr(item, field) for item in expected], abs=1e-5)
            halves = {item["item"] // 100 % 2 for item in answers}
            assert halves == {0, 1}, "one half alone would do"
        asked = {"triggers": [700], "vectors": {"700": {head: [0.5] * DIM for head in HEADS}}}
        refused = first.retrieve(**asked)
        assert refused.status == 422
        assert "expected 8 numbers of unit length" in refused.json["detail"]
        assert second.retrieve(**asked).status == 200, "what an index knows it answers from its own vectors"
        assert first.retrieve(triggers=[700]).status == 404, "nothing of it is kept"
        largest = largest_body(ServiceConfig(), len(HEADS) * DIM)
        body = json.dumps({"triggers": [0]}).encode().ljust(largest)
        assert first.call("POST", "/v1/retrieve", raw=body).status == 200
        assert first.call("POST", "/v1/retrieve", raw=body + b" ").status == 413


def test_as_many_vectors_as_are_allowed_fit_into_a_body() -> None:
    limits, rng = ServiceConfig(), np.random.default_rng(0)
    ids = [10**18 + item for item in range(limits.max_triggers)]
    vectors = {item: {head: (1e-5 * rng.normal(size=128)).tolist() for head in HEADS} for item in ids}
    excluded = [f"{item:036d}" for item in range(limits.max_filter_items)]
    whole = {"triggers": ids, "vectors": vectors, "filters": {"exclude": excluded, "allow": excluded}}
    for numbers, fits in ((len(HEADS) * 128, True), (0, False)):
        assert (len(json.dumps(whole)) <= largest_body(limits, numbers)) is fits


def test_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    retriever = Retriever.load(load_config(publish_share(tmp_path / "whole", np.arange(NUM_ITEMS))).model_dir("index"))
    fitting = {"engagement": VECTORS["engagement"][3].tolist()}
    for wrong in ([1.0] * DIM, [1.0], [float("nan")] * DIM, [1e30] * DIM, None):
        vectors = fitting | ({} if wrong is None else {"relevance": wrong})
        with pytest.raises(RequestError, match=r"vectors.5.relevance: expected 8 numbers of unit length"):
            retriever.retrieve(Query([5], vectors={5: vectors}))
    another = {head: found[3].tolist() for head, found in VECTORS.items()} | {"relevence": [1.0]}
    with pytest.raises(RequestError, match=r"vectors.5.relevence: expected the heads engagement, relevance"):
        retriever.retrieve(Query([5], vectors={5: another}))
