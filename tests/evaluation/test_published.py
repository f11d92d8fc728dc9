"""The published version measured beside a new one, on new data, and the gate of the chain that compares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_world import NUM_ITEMS, NUM_USERS, make_model, make_world
from synthetic_dataset import random_histories, write_dataset

from mtmh.artifacts import Artifact, open_artifact
from mtmh.chain.gates import evaluation_gate, to_measure
from mtmh.config import Config
from mtmh.evaluation.evaluate import evaluate
from mtmh.evaluation.results import load_evaluation
from mtmh.evaluation.subject import ItemRows, Subject
from mtmh.retrieval.retriever import Retriever

HEADS = ["engagement", "relevance"]
NUM_NEW = 5


def last_week(root: Path, item_ids: list[int]) -> Config:
    """A recipe whose index was built from a catalogue of these ids."""
    write_dataset(root / "dataset", histories(), test=truth(), item_ids=item_ids)
    return make_model(root, "before", HEADS)


def this_week(root: Path) -> Config:
    """A recipe of the same users and items in another order, with new items among them and other settings."""
    place = places()
    ids = np.empty(NUM_ITEMS + NUM_NEW, np.int64)
    ids[place] = plain_ids()
    ids[np.setdiff1d(np.arange(len(ids)), place)] = 7 + 10 * np.arange(NUM_NEW)
    write_dataset(
        root / "dataset",
        [place[history].tolist() for history in histories()],
        test={user: place[items].tolist() for user, items in truth().items()},
        item_ids=ids.tolist(),
        num_items=len(ids),
    )
    retrieval = {"k": 4, "k_ann": 9, "num_probes": 1, "alpha": 25}
    return make_model(root, "now", HEADS, seed=11, retrieval=retrieval, chain={"max_recall_drop": 0})


def places() -> np.ndarray:
    """Item index of this week by that of last week."""
    return np.random.default_rng(5).permutation(NUM_ITEMS + NUM_NEW)[:NUM_ITEMS]


def histories() -> list[list[int]]:
    return random_histories(NUM_USERS)


def truth() -> dict[int, list[int]]:
    rng = np.random.default_rng(1)
    return {user: rng.permutation(NUM_ITEMS)[:6].tolist() for user in range(NUM_USERS) if histories()[user]}


def plain_ids() -> list[int]:
    return [10 * item for item in range(NUM_ITEMS)]


def index_of(config: Config) -> Path:
    return config.model_dir("index")


def test_an_index_of_other_rows_is_measured_by_ids_and_as_it_would_serve_today(tmp_path: Path) -> None:
    before, now = last_week(tmp_path / "before", plain_ids()), this_week(tmp_path / "now")
    alone, of_its_time = (
        load_evaluation(evaluate(before.model_copy(update={"retrieval": asking.retrieval}), tmp_path / "alone").path)
        for asking in (now, before)
    )
    beside = evaluate(now, tmp_path / "beside", published=index_of(before))
    found = load_evaluation(beside.path)
    assert found.published is not None
    assert not found.published.unmeasured
    row = found.row("published")
    assert row.recall == alone.merged.recall != of_its_time.merged.recall
    assert row.list_length == alone.merged.list_length
    assert found.merged.recall != row.recall
    assert beside.manifest.inputs["published"] == open_artifact(index_of(before), "index").manifest.digest
    assert "published index" in (beside.path / "report.html").read_text()


def test_what_an_index_does_not_know_it_does_not_answer(tmp_path: Path) -> None:
    half = [item_id if item_id % 20 else item_id + 5 for item_id in plain_ids()]
    before, now = last_week(tmp_path / "before", half), this_week(tmp_path / "now")
    row = load_evaluation(evaluate(now, tmp_path / "beside", published=index_of(before)).path).row("published")
    assert 0 < row.coverage <= NUM_ITEMS / 2 / (NUM_ITEMS + NUM_NEW)
    assert row.recall[15].value > 0


def test_an_item_that_the_dataset_does_not_have_hides_nothing_of_the_loss_of_the_index(tmp_path: Path) -> None:
    foreign = 30
    before = last_week(tmp_path / "before", [5 if item == foreign else 10 * item for item in range(NUM_ITEMS)])
    dataset = write_dataset(tmp_path / "now", histories(), test=truth(), item_ids=plain_ids())
    retriever = Retriever.load(index_of(before))
    subject = Subject(retriever, ItemRows.match(dataset, retriever.catalogue))
    triggers = np.delete(np.arange(NUM_ITEMS), foreign)
    for head in HEADS:
        found = subject.search(head, triggers, NUM_ITEMS, num_probes=1)
        served = retriever.search(head, triggers, NUM_ITEMS, num_probes=1)
        assert (served.items == foreign).any()
        assert (served.items < 0).any(), "of the clusters that are not searched"
        np.testing.assert_array_equal(found.items, np.where(served.items == foreign, -1, served.items))
        np.testing.assert_array_equal(found.scores, np.where(found.items < 0, -np.inf, served.scores))


def test_an_index_of_other_items_alone_misses_the_gate_unless_that_is_allowed(tmp_path: Path) -> None:
    others = [item_id + 5 for item_id in plain_ids()]
    before, now = last_week(tmp_path / "before", others), this_week(tmp_path / "now")
    artifact = evaluate(now, tmp_path / "beside", published=index_of(before))
    assert [row.kind for row in load_evaluation(artifact.path).rows].count("published") == 0
    published = open_artifact(index_of(before), "index")
    verdict = evaluation_gate(now, artifact, published)
    assert not verdict.passed
    assert "knows 0 of the dataset's 65 items" in verdict.figures[0]
    chain = now.chain.model_copy(update={"allow_unmeasured": True})
    assert evaluation_gate(now.model_copy(update={"chain": chain}), artifact, published).passed


def test_the_first_version_and_the_published_one_pass(tmp_path: Path) -> None:
    now = this_week(tmp_path)
    index, artifact = open_artifact(index_of(now), "index"), evaluate(now, tmp_path / "evaluation")
    assert to_measure(index, None) == to_measure(index, index) == {}
    for published, figure in ((None, "nothing is published yet"), (index, "index is the published version")):
        verdict = evaluation_gate(now, artifact, published)
        assert (verdict.passed, verdict.figures) == (True, [figure])


def test_the_worse_one_of_two_misses_the_gate(tmp_path: Path) -> None:
    make_world(tmp_path)
    models = [make_model(tmp_path, name, HEADS, seed, chain={"max_recall_drop": 0, "max_match_drop": 1})
              for name, seed in (("a", 1), ("b", 11))]  # fmt: skip
    indexes = [open_artifact(index_of(model), "index") for model in models]
    assert to_measure(indexes[0], indexes[1]) == {"published": indexes[1]}

    def verdict(new: int, old: int) -> tuple[bool, float]:
        artifact: Artifact = evaluate(models[new], tmp_path / "evaluation", published=indexes[old].path)
        found = load_evaluation(artifact.path)
        gained = found.merged.recall[15].value - found.row("published").recall[15].value
        return evaluation_gate(models[new], artifact, indexes[old]).passed, gained

    (first, gained), (second, lost) = verdict(0, 1), verdict(1, 0)
    assert gained == pytest.approx(-lost)
    assert abs(gained) > 0.001, "else this test shows nothing"
    assert (first, second) == (gained > 0, lost > 0)
