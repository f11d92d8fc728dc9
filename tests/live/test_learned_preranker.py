"""An index that answers by the learned preranker: fresh items, compaction, rollback after the preranker is replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, write_inputs

from mtmh.artifacts import link_folder, open_artifact, sealed
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.evaluation.evaluate import evaluate
from mtmh.evaluation.results import load_evaluation
from mtmh.evaluation.subject import ItemRows, Subject
from mtmh.index.artifact import PRERANKER, IndexSummary
from mtmh.index.build import build_index, build_version
from mtmh.index.versions import rollback
from mtmh.live.compaction import compact
from mtmh.live.live_index import LiveIndex
from mtmh.preranking.export import write_preranker
from mtmh.preranking.inputs import open_inputs
from mtmh.preranking.model_builder import load_preranker
from mtmh.preranking.trainer import train_preranker
from mtmh.retrieval.answers import RetrievedItem
from mtmh.retrieval.open_preranker import LearnedPreranker
from mtmh.retrieval.query import Query
from mtmh.retrieval.ranking import HeadScorePreranker, Requests
from mtmh.retrieval.retriever import Retriever
from mtmh.tower.embed import embed_catalogue
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train

TRIGGERS = [30, 70, 1990]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A trained model and a trained preranker; id_dropout trains the row of unseen items."""
    root = tmp_path_factory.mktemp("learned")
    write_inputs(root, test={user: [user, user + 40] for user in range(30)})
    training = {"batch_size": 48, "num_shards": 6, "shuffle_pairs": 96, "max_steps": 6, "warmup_steps": 2}
    small = {"embedding_dim": 8, "dense_hidden": [8], "dense_dim": 4, "hidden": [16], "dim": 8, "id_dropout": 0.3}
    config = tiny_config(
        root,
        training={"max_steps": 4},
        index={"num_clusters": 12},
        retrieval={"num_probes": 12, "preranker": "learned", "sorter": "learned"},
        preranker={**small, "num_uniform_negatives": 30, "check_users": 10, "check_negatives": 5, "training": training},
    )
    train(config)
    embed_catalogue(config, config.model_dir("embeddings"))
    with pytest.raises(ValueError, match="preranker: no preranker artifact here"):
        build_version(config)
    train_preranker(config)
    write_preranker(config, config.model_dir("preranker"))
    build_version(config)
    config.model_dir("index").rename(root / "built")
    return config


@pytest.fixture
def live(config: Config) -> LiveIndex:
    """The version as it was built, and nothing else."""
    shutil.rmtree(config.model_dir("index"), ignore_errors=True)
    link_folder(config.paths.root / "built", config.model_dir("index"))
    return LiveIndex(config.model_dir("index"))


def raw_row(config: Config, item: int) -> dict[str, Any]:
    """An item of the catalogue as a fresh one would be given; its vectors are those of an unseen item then."""
    rng = np.random.default_rng(item)
    return {
        "item_id": 10_001 + item, "brand": int(rng.integers(1, 7)) * 100, "tags": [f"tag {rng.integers(1, 9)}"],
        "price": float(rng.normal()), "age": None,
    }  # fmt: skip


def learned(retriever: Retriever) -> LearnedPreranker:
    assert isinstance(retriever.preranker, LearnedPreranker)
    assert retriever.sorter is retriever.preranker
    return retriever.preranker


def answers(retriever: Retriever) -> list[list[RetrievedItem]]:
    return [*retriever.retrieve(Query(TRIGGERS, k=60)), retriever.retrieve_user(Query(history=TRIGGERS, k=60))]


def assert_same(found: list[list[RetrievedItem]], expected: list[list[RetrievedItem]]) -> None:
    for given, other in zip(found, expected, strict=True):
        by_item = {answer.item: answer.score for answer in other}
        assert {answer.item for answer in given} == by_item.keys()
        np.testing.assert_allclose([a.score for a in given], [by_item[a.item] for a in given], rtol=1e-4)


def test_fresh_items_are_scored_by_their_features(config: Config, live: LiveIndex) -> None:
    live.add([raw_row(config, item) for item in range(5)])
    live.add([raw_row(config, 5)])
    retriever = live.retriever
    scorer = learned(retriever).ranker.scorer
    assert len(scorer.vectors) == 206

    model = load_preranker(latest_checkpoint(config.preranker_checkpoints))
    dataset = open_dataset(config.dataset_dir)
    unseen, dense, _ = open_inputs(dataset, config.model_dir("embeddings"))[0].gather(np.arange(6), np.ones(6, bool))
    assert retriever.tower is not None
    rows = retriever.tower.features.table([raw_row(config, item) for item in range(6)])
    values, lengths, dense_of_rows = retriever.tower.features.encode(rows)
    sparse = type(unseen)(unseen.keys(), torch.from_numpy(values), lengths=torch.from_numpy(lengths).reshape(-1))
    frozen = np.concatenate([retriever.vectors[head].added for head in retriever.heads], axis=1)
    assert dense_of_rows.shape == dense.shape
    with torch.no_grad():
        expected = model(sparse, torch.from_numpy(dense_of_rows), torch.from_numpy(frozen)).numpy()
    found = scorer.vectors[200:]
    assert (found[:, :8] * expected[:, :8]).sum(axis=1).min() > 0.999, "directions, but for the int8 of the tables"
    np.testing.assert_allclose(found[:, 8:], expected[:, 8:], atol=0.02)
    assert np.abs(found - found[0]).max() > 0.1, "they differ by their features"

    scores = {answer.item: answer.score for answer in retriever.retrieve(Query([30], k=205))[0]}
    items = np.array([[200, 203, 5]])
    trigger = retriever.catalogue.find([30], "trigger")
    wanted = learned(retriever).ranker.score(trigger[:, None], items)[0]
    ids = retriever.catalogue.ids(items[0])
    np.testing.assert_allclose(np.log([scores[item] for item in ids]), np.log(wanted), rtol=1e-5)  # as logits
    on_the_fly = retriever.retrieve(Query([99], features={99: raw_row(config, 0) | {"item_id": 99}}))[0]
    assert on_the_fly


def test_a_version_keeps_its_preranker_when_another_is_trained(config: Config, live: LiveIndex) -> None:
    live.add([raw_row(config, 0)])
    before, first = answers(live.retriever), live.folder
    tasks = [task.model_copy(update={"weight": 3.0}) for task in config.preranker.tasks]
    other = config.model_copy(update={"preranker": config.preranker.model_copy(update={"tasks": tasks})})
    write_preranker(other, config.model_dir("preranker"))
    second = build_version(other)
    assert live.refresh()
    assert live.retriever.retrieve(Query([30]))[0][0].score == pytest.approx(3.0 * before[0][0].score, rel=1e-4)
    rollback(config.model_dir("index"))
    assert live.refresh()
    assert live.folder == first
    assert_same(answers(live.retriever), before)
    write_preranker(config, config.model_dir("preranker"))
    assert open_artifact(second / PRERANKER, "preranker").summary["tasks"][0]["weight"] == 3.0


def test_compaction_takes_the_preranker_along(config: Config, live: LiveIndex) -> None:
    live.add([raw_row(config, 1), raw_row(config, 2)])
    live.remove([10_003, 20])
    before, first = answers(live.retriever), live.folder
    version = compact(config)
    compacted = LiveIndex(config.model_dir("index"))
    assert compacted.folder == version != first
    assert len(learned(compacted.retriever).ranker.scorer.vectors) == 202
    assert compacted.retriever.num_items == 200
    assert_same(answers(compacted.retriever), before)
    compacted.add([raw_row(config, 3)])
    assert len(learned(compacted.retriever).ranker.scorer.vectors) == 203
    assert_same(answers(LiveIndex(config.model_dir("index")).retriever), answers(compacted.retriever))
    rollback(config.model_dir("index"))
    assert live.refresh()
    assert live.folder == first


def test_a_preranker_of_other_inputs_is_refused(config: Config, live: LiveIndex) -> None:
    manifest = config.model_dir("preranker") / "manifest.json"
    text = manifest.read_text()
    try:
        for name in ("dataset", "embeddings"):
            tree = json.loads(text)
            tree["inputs"][name] = "another"
            manifest.write_text(json.dumps(sealed(tree)))
            with pytest.raises(ValueError, match=f"preranker: of another {name} artifact than .*train the preranker"):
                build_version(config)
    finally:
        manifest.write_text(text)


@pytest.mark.parametrize("built", ["history", "learned"])
@pytest.mark.usefixtures("live")
def test_compaction_leaves_the_ranking_to_the_next_build(config: Config, built: str) -> None:
    def ranking_by(preranker: str, temperature: float) -> Config:
        retrieval = config.retrieval.model_copy(update={"preranker": preranker, "sorter": None, "alpha": temperature})
        loss = config.loss.model_copy(update={"temperature": temperature})
        return config.model_copy(update={"retrieval": retrieval, "loss": loss})

    before = build_version(ranking_by(built, 0.5))
    LiveIndex(config.model_dir("index")).add([raw_row(config, 60)])
    expected = answers(LiveIndex(config.model_dir("index")).retriever)
    version = compact(ranking_by({"history": "learned", "learned": "history"}[built], 0.25))
    assert version != before
    assert (version / PRERANKER).exists() == (built == "learned")
    manifest = open_artifact(version, "index").manifest
    ranked_by = IndexSummary.model_validate(manifest.summary).ranked_by
    assert (ranked_by.preranker, ranked_by.sorter, ranked_by.temperature) == (built, built, 0.5)
    assert manifest.decisive["retrieval.preranker"] == built
    assert manifest.config["retrieval"]["alpha"] == 0.25, "of requests, not of the index"
    assert_same(answers(Retriever.load(version, ranking_by(built, 0.5).retrieval)), expected)


def test_a_compacted_version_is_evaluated_by_the_rows_of_the_dataset(config: Config, live: LiveIndex) -> None:
    dataset = open_dataset(config.dataset_dir)
    built = live.retriever
    live.add([raw_row(config, 1), raw_row(config, 2)])
    live.remove([40])
    compact(config)
    compacted = Retriever.load(config.model_dir("index"))
    subject = Subject(compacted, ItemRows.match(dataset, compacted.catalogue)).exact()
    triggers = np.array([3, 4, 5, 199])
    for head in subject.heads:
        found = subject.search(head, triggers, 201, num_probes=12)
        expected = built.exact().search(head, triggers, 199, num_probes=12)
        for row, trigger in enumerate(triggers):
            known = found.items[row] >= 0
            present = expected.items[row] != 4  # the removed item is a trigger and no answer
            assert known.sum() == present.sum() == (199 if trigger == 4 else 198), "without what the dataset lacks"
            np.testing.assert_array_equal(np.sort(found.items[row][known]), np.sort(expected.items[row][present]))
            np.testing.assert_allclose(found.scores[row][known], expected.scores[row][present], atol=1e-5)
        requests = Requests(triggers, np.array([0, 0, 1, 1]), np.array([[7, 199, -1], [5, -1, -1]]))
        for ranker, before in ((subject.preranker, built.preranker), (subject.by_similarity, None)):
            before = before or HeadScorePreranker(("engagement", built.vectors["engagement"]))
            scores, expected_scores = ranker.score(requests, found), before.score(requests, found)
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-6)
    evaluation = load_evaluation(evaluate(config, config.model_dir("evaluation")).path)
    assert evaluation.merged.list_length > 20
    write_inputs(config.paths.root / "other", test={0: [5]})
    paths = config.paths.model_copy(update={"dataset": config.paths.root / "other" / "dataset"})
    other = config.model_copy(update={"paths": paths})
    with pytest.raises(ValueError, match=r"another dataset.*mtmh evaluate --index-version"):
        evaluate(other, config.paths.root / "other" / "evaluation")


def test_a_published_index_is_measured_with_what_it_knows_of_users(config: Config, live: LiveIndex) -> None:
    assert config.retrieval.user_share == 100.0
    # Few candidates of the heads, so that those of the users' own are seen.
    narrow = config.model_copy(
        update={
            "retrieval": config.retrieval.model_copy(update={"k": 1, "k_ann": 1}),
            "evaluation": config.evaluation.model_copy(update={"recall_at": [2, 10]}),
        }
    )
    published = config.model_dir("index") / "versions" / live.retriever.version
    found = load_evaluation(evaluate(narrow, config.paths.root / "beside", published=published).path)
    row = found.row("published")
    assert (row.recall, row.ndcg, row.coverage) == (found.merged.recall, found.merged.ndcg, found.merged.coverage)
    assert row.list_length == found.merged.list_length == 10


def test_evaluation_shows_each_way_of_preranking_once(config: Config, tmp_path: Path) -> None:
    ways = {
        ("head-score", "learned"): "learned sorter",
        ("learned", "learned"): "learned preranker",
        ("head-score", "head-score"): "similarity alone",
    }
    others = {("own", "shared"): "shared preranking", ("learned", "shared"): "learned preranker, shared"}
    found = {}
    for (keeps, sorts), name in ways.items():
        retrieval = {"preranker": keeps, "sorter": sorts, "k": 8, "k_ann": 60, "user_share": 0.0}
        changed = config.model_copy(
            update={
                "retrieval": config.retrieval.model_copy(update=retrieval),
                "evaluation": config.evaluation.model_copy(update={"rank_all": True}),
            }
        )
        index = build_index(changed, tmp_path / name)
        rows = load_evaluation(evaluate(changed, tmp_path / f"{name}-evaluation", index=index.path).path).rows
        shown = {row.name.removeprefix("tiny, "): row for row in rows if row.kind == "preranking"}
        assert shown.keys() == {*ways.values(), others["own", "shared"]} - {name} | (
            {others["learned", "shared"]} if sorts != "learned" else set()
        )
        found[name] = {**shown, name: next(row for row in rows if row.kind == "merged")}
    for name in ways.values():
        first, *rest = [rows[name].recall for rows in found.values()]
        assert all(recall == first for recall in rest), name
    assert len({str(found["learned sorter"][name].recall) for name in ways.values()}) == 3, "they differ"
