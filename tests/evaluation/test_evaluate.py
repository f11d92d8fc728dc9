"""The evaluation as a whole: rows, comparison with other models, tables and the report."""

import io
import json
import re
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from small_world import NUM_ITEMS, make_model, make_world, random_unit

from mtmh import __version__
from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.evaluation.evaluate import evaluate
from mtmh.evaluation.report import report_page
from mtmh.evaluation.results import Row, ValidationPoint, load_evaluation
from mtmh.evaluation.tables import results_table
from mtmh.index.versions import current_version
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever

HEADS = ["engagement", "relevance"]
HAS_IMPLICIT = find_spec("implicit") is not None


@pytest.fixture
def two(tmp_path: Path) -> Config:
    make_world(tmp_path)
    return make_model(tmp_path, "two", HEADS)


def test_rows_of_a_model_with_two_heads(two: Config) -> None:
    evaluation = load_evaluation(evaluate(two, two.model_dir("evaluation")).path)
    assert [(row.kind, row.alpha) for row in evaluation.rows] == [
        ("merged", 50), ("head", 100), ("head", 0), ("own-score", None), ("alpha", 25), ("preranking", None),
        *[("exact", None)] * 3, *[("yardstick", None)] * 2, ("candidates", None),
        *[("yardstick", None)] * (3 if HAS_IMPLICIT else 2),
    ]  # fmt: skip
    assert evaluation.of_kind("own-score")[0].name == "two, relevance head by its own score"
    assert [row.name for row in evaluation.of_kind("exact")] == [
        "two, exact search", "two, engagement head, exact search", "two, relevance head, exact search"
    ]  # fmt: skip
    assert [row.name for row in evaluation.of_kind("yardstick")] == [
        "item-item cosine", "item-item cosine, best trigger", "EASE", *(["implicit ALS"] if HAS_IMPLICIT else []),
        "popularity",
    ]  # fmt: skip
    assert (evaluation.notes == []) == HAS_IMPLICIT
    assert [row.alpha for row in evaluation.sweep()] == [0, 25, 50, 100]
    assert evaluation.num_users + evaluation.num_users_without_truth <= 20


def test_a_model_with_one_head_has_no_sweep(two: Config, tmp_path: Path) -> None:
    config = make_model(tmp_path, "one", ["engagement"])
    evaluation = load_evaluation(evaluate(config, tmp_path / "one-evaluation").path)
    assert [row.kind for row in evaluation.rows if row.kind not in ("yardstick", "candidates")] == ["merged", "exact"]
    assert evaluation.sweep() == []
    # The same engagement embeddings: the same answers as that head of the other model alone.
    other = load_evaluation(evaluate(two, tmp_path / "two-evaluation").path)
    assert evaluation.merged.recall == other.rows[1].recall


def test_content_is_a_yardstick_when_it_is_there(two: Config) -> None:
    dataset = open_dataset(two.dataset_dir)
    with write_artifact(two.content_dir, "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / "embeddings.npy", random_unit(NUM_ITEMS, 9))
    evaluation = load_evaluation(evaluate(two, two.model_dir("evaluation")).path)
    assert "content (teacher)" in [row.name for row in evaluation.rows]


def test_rows_that_a_large_catalogue_has_no_room_for_can_be_left_out(two: Config, tmp_path: Path) -> None:
    def evaluated(out: str, **settings: Any) -> list[Row]:
        changed = two.model_copy(update={"evaluation": two.evaluation.model_copy(update=settings)})
        artifact = evaluate(changed, tmp_path / out)
        assert (artifact.path / "report.html").is_file()
        return load_evaluation(artifact.path).rows

    whole = evaluated("whole")
    assert {"exact", "yardstick"} < {row.kind for row in whole}
    assert evaluated("bare", exact_search=False, yardsticks=[]) == [
        row for row in whole if row.kind not in ("exact", "yardstick", "candidates")
    ]
    some = evaluated("some", yardsticks=["popularity"])
    assert [row.name for row in some if row.kind == "yardstick"] == ["popularity"]
    assert [row.kind for row in some].count("exact") == 3


def test_a_preranker_of_an_earlier_dataset_is_left_out(
    two: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = make_world(tmp_path / "earlier", seed=7).artifact
    with write_artifact(two.model_dir("preranker"), "preranker", config={}, inputs={"dataset": earlier}):
        pass
    artifact = evaluate(two, two.model_dir("evaluation"))
    assert "preranker" not in artifact.manifest.inputs
    assert "learned" not in (artifact.path / "metrics.json").read_text()
    assert "of other data than the index, not compared" in caplog.text


def test_users_file_holds_what_the_figures_are_made_of(two: Config) -> None:
    artifact = evaluate(two, two.model_dir("evaluation"))
    users = pq.read_table(artifact.path / "users.parquet").to_pydict()
    merged = load_evaluation(artifact.path).merged
    assert np.mean(users["recall_15"]) == pytest.approx(merged.recall[15].value)
    assert merged.match_l2 is not None
    assert sum(users["l2_matches"]) / sum(users["l2_pairs"]) == pytest.approx(merged.match_l2.value)


def test_evaluation_is_repeatable(two: Config, tmp_path: Path) -> None:
    first, second = (evaluate(two, tmp_path / name) for name in ("first", "second"))
    assert first.manifest.files == second.manifest.files


def test_comparison_with_another_model(two: Config, tmp_path: Path) -> None:
    first = make_model(tmp_path, "one", ["engagement"], seed=5)
    other = evaluate(first, tmp_path / "other")
    artifact = evaluate(two, two.model_dir("evaluation"), compare=[other.path])
    evaluation = load_evaluation(artifact.path)
    difference = evaluation.differences["one"]
    theirs = load_evaluation(other.path)
    assert difference.num_users == evaluation.num_users
    for k in (2, 5, 15):
        expected = evaluation.merged.recall[k].value - theirs.merged.recall[k].value
        assert difference.recall[k].value == pytest.approx(expected)
    assert difference.settings == {}, "names and paths do not count"
    same = load_evaluation(evaluate(two, tmp_path / "again", compare=[artifact.path]).path).differences["two"]
    assert (same.recall[15].value, same.recall[15].low, same.recall[15].high) == (0, 0, 0)
    page = (artifact.path / "report.html").read_text()
    assert "two − one" in page


def test_comparison_needs_the_same_dataset_and_protocol(two: Config, tmp_path: Path) -> None:
    settings = {"num_users": 100, "num_triggers": 6, "recall_at": [2, 5], "alphas": []}
    shorter = make_model(tmp_path, "shorter", HEADS, evaluation=settings)
    other = evaluate(shorter, tmp_path / "shorter-evaluation")
    with pytest.raises(ValueError, match="shorter-evaluation: evaluated by another protocol"):
        evaluate(two, tmp_path / "out", compare=[other.path])
    make_world(tmp_path / "elsewhere", seed=4)
    foreign = make_model(tmp_path / "elsewhere", "foreign", HEADS)
    other = evaluate(foreign, tmp_path / "foreign-evaluation")
    with pytest.raises(ValueError, match="foreign-evaluation: evaluated on another dataset"):
        evaluate(two, tmp_path / "out", compare=[other.path])
    make_world(tmp_path, seed=4)
    with pytest.raises(ValueError, match="index of another dataset"):
        evaluate(two, tmp_path / "out")


class _Page(HTMLParser):
    """Collects tags that stay open and addresses that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "path", "use"):
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


@pytest.mark.parametrize("topics", [True, False])
def test_report_is_one_sound_file(tmp_path: Path, topics: bool) -> None:
    make_world(tmp_path, topics=topics)
    config = make_model(tmp_path, "two", HEADS).model_copy(update={"description": "Recall & <b>relevance</b>"})
    page = (evaluate(config, tmp_path / "evaluation").path / "report.html").read_text()
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    assert all(address.startswith("#") for address in parser.fetched), "everything is in the file"
    assert "url(http" not in page
    assert "Recall &amp; &lt;b&gt;relevance&lt;/b&gt;" in page
    assert not re.search(r"\$\w+", page), "no placeholder is left"
    assert ("<svg" in page) == topics
    assert ("has no topics" in page) != topics


def test_report_shows_examples_and_where_it_comes_from(two: Config, tmp_path: Path) -> None:
    evaluation = load_evaluation(evaluate(two, tmp_path / "evaluation").path)
    assert len(evaluation.examples) == 10
    retriever = Retriever.load(current_version(two.model_dir("index")), two.retrieval)
    for example in evaluation.examples:
        asked = retriever.retrieve_side_by_side(Query([int(example.trigger.item)], k=two.retrieval.k))
        assert {head: [item.item for item in items] for head, items in example.heads.items()} == {
            head: [str(answer.item) for answer in answers] for head, answers in asked.heads.items()
        }
        assert [(item.item, item.head) for item in example.merged] == [
            (str(answer.item), answer.head) for answer in asked.merged
        ]
        topics = [asked.descriptions[answer.item].topic_l1 for answer in asked.merged]
        own = example.trigger.topics[0] if example.trigger.topics else ""
        assert [item.own_topic for item in example.merged] == [
            topic == own if own and topic else None for topic in topics
        ]
    page = (tmp_path / "evaluation/report.html").read_text()
    assert (page.count("<details open>"), page.count("<details>")) == (3, 7)
    assert f"{evaluation.origin.index}, built {evaluation.origin.index_built}" in page
    assert f"<td>mtmh</td><td>{__version__}</td>" in page
    assert "Best alpha for recall@15: " in page.partition("<h2>")[0]
    assert "similarity to the trigger" in page
    assert not re.search(
        r"\b[A-Z][a-z]+[A-Z][a-z]+\b", re.sub(r"<style>.*?</style>|<svg.*?</svg>|MovieLens", "", page, flags=re.S)
    )


def test_report_draws_what_training_went_by(two: Config, tmp_path: Path) -> None:
    evaluation = load_evaluation(evaluate(two, tmp_path / "evaluation").path)
    assert "How long it was trained" not in report_page(evaluation)
    points = [
        ValidationPoint(step=step, epoch=step / 10, measured={"score": score}) for step, score in ((5, 0.1), (10, 0.3))
    ]
    evaluation.origin.validation, evaluation.origin.best_step = points, 10
    page = report_page(evaluation)
    assert "How long it was trained" in page
    assert "two: 1.00 epochs" in page


def test_tables_for_terminal_and_docs(two: Config, tmp_path: Path) -> None:
    first = make_model(tmp_path, "one", ["engagement"], seed=5)
    evaluations = [
        load_evaluation(evaluate(config, tmp_path / f"{config.name}-evaluation").path) for config in (two, first)
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table(evaluations))
    shown = console.export_text()
    merged = evaluations[0].merged
    assert "alpha = 25" not in shown, "in the report alone"
    expected = ["two on test", "alpha = 50", "EASE", "popularity", f"{100 * merged.recall[5].value:.2f}"]
    for text in expected:
        assert text in shown
    assert "…" not in shown, "it fits 80 columns"


def test_settings_and_steps_that_differ_are_told(two: Config, tmp_path: Path) -> None:
    retrieval = two.retrieval.model_copy(update={"alpha": 0.0})
    changed = two.model_copy(update={"name": "other", "retrieval": retrieval})
    other = evaluate(changed, tmp_path / "other", index=current_version(two.model_dir("index")))
    artifact = evaluate(two, tmp_path / "two-evaluation", compare=[other.path])
    found = load_evaluation(artifact.path).differences["other"]
    assert found.settings == {"retrieval.alpha": (50.0, 0.0)}
    assert found.steps == (None, None), "there is no checkpoint"
    assert "retrieval.alpha" in (artifact.path / "report.html").read_text()


def test_every_list_has_the_length_asked_for_where_the_catalogue_allows(two: Config, tmp_path: Path) -> None:
    evaluation = load_evaluation(evaluate(two, tmp_path / "whole").path)
    # k_ann is 12 and a list 15: what fewer than two triggers bring is all that there is.
    assert min(row.list_length for row in evaluation.of_kind("merged", "head", "exact")) > 13
    assert {row.list_length for row in evaluation.of_kind("yardstick") if "trigger" not in row.name} == {15}
    settings = two.evaluation.model_copy(update={"recall_at": [5, 500]})
    capped = evaluate(two.model_copy(update={"evaluation": settings}), tmp_path / "capped")
    evaluation = load_evaluation(capped.path)
    assert evaluation.protocol.recall_at == [5, NUM_ITEMS]
    assert evaluation.notes[:1] == [f"cut-offs above {NUM_ITEMS} became recall@{NUM_ITEMS}: the whole catalogue"]


def test_the_best_yardstick_of_each_cut_off_is_compared_by_user(two: Config, tmp_path: Path) -> None:
    evaluation = load_evaluation(evaluate(two, tmp_path / "evaluation").path)
    assert [found.recall_at for found in evaluation.against] == [2, 5, 15]
    for found in evaluation.against:
        best = max(evaluation.of_kind("yardstick"), key=lambda row: row.recall[found.recall_at].value)
        assert best.name == found.yardstick
        expected = evaluation.merged.recall[found.recall_at].value - best.recall[found.recall_at].value
        assert found.difference.value == pytest.approx(expected)
        assert found.difference.low <= expected <= found.difference.high


def test_broken_metrics_are_named(two: Config, tmp_path: Path) -> None:
    with write_artifact(tmp_path / "broken", "evaluation", config={}) as writer:
        (writer.folder / "metrics.json").write_text(json.dumps({"model": "x"}))
    with pytest.raises(ValueError, match=r"metrics.json: \w+: Field required"):
        load_evaluation(tmp_path / "broken")
