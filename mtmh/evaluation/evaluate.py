"""Evaluates a model by the paper's protocol, beside yardsticks and other models, and writes the report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.progress import Progress

from mtmh.artifacts import MANIFEST, Artifact, open_artifact, write_artifact
from mtmh.config import Config, decisive
from mtmh.data.arrays import Indices
from mtmh.data.content_store import open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.evaluation.baselines import ContentSearch, Cooccurrence, popularity, train_histories
from mtmh.evaluation.metrics import (
    Bootstrap,
    Floats,
    coverage,
    marked_counts,
    popular_items,
    recall_at,
    topic_matches,
)
from mtmh.evaluation.protocol import (
    Answers,
    Cohort,
    Search,
    make_cohort,
    merged_answers,
    prerank_users,
    user_lists,
)
from mtmh.evaluation.published import published_answers
from mtmh.evaluation.report import write_report
from mtmh.evaluation.results import (
    METRICS,
    REPORT,
    USERS,
    Difference,
    Evaluation,
    Kind,
    Protocol,
    Published,
    Row,
    load_evaluation,
)
from mtmh.evaluation.subject import ItemRows, Subject
from mtmh.index.artifact import PRERANKER
from mtmh.index.versions import current_version
from mtmh.preranking.scorer import Scorer
from mtmh.retrieval.curve import CURVE
from mtmh.retrieval.open_preranker import LearnedPreranker
from mtmh.retrieval.ranking import HeadScorePreranker, Preranker
from mtmh.retrieval.retriever import Retriever

logger = logging.getLogger(__name__)


def evaluate(
    config: Config,
    out: Path,
    compare: Sequence[Path] = (),
    *,
    index: Path | None = None,
    published: Path | None = None,
) -> Artifact:
    """Writes an evaluation artifact: ``metrics.json``, ``report.html`` and per-user values.

    Args:
        config: names dataset, index and content embeddings; ``evaluation`` and ``retrieval`` set the protocol.
        out: folder of the artifact.
        compare: evaluation artifacts of other models, shown in the same tables and curve.
        index: a version of the index, or another index; None: the published version.
        published: a version to measure beside on the same users, of whatever data; None: none. If it cannot be
            measured, the evaluation says why.

    Raises:
        ValueError: an input is missing, belongs to another dataset, or was evaluated by another protocol.
    """
    dataset = open_dataset(config.dataset_dir)
    opened = open_artifact(index or current_version(config.model_dir("index")), "index")
    compacted = "dataset" not in opened.manifest.inputs
    of_dataset = opened.summary.get("of_dataset") if compacted else opened.manifest.inputs["dataset"]
    if of_dataset != dataset.artifact.manifest.digest:
        raise ValueError(
            f"{opened.path}: index of another dataset than {dataset.artifact.path}; run mtmh embed and mtmh build-index"
            " again, or evaluate another version (mtmh index list, mtmh evaluate --index-version)"
        )
    retriever = Retriever.load(opened.path, config.retrieval)
    subject = Subject(retriever, ItemRows.match(dataset, retriever.catalogue) if compacted else None)
    settings = config.evaluation
    cohort = make_cohort(
        dataset.evaluation_users(settings.num_users, config.seed),
        num_triggers=settings.num_triggers,
        exclude_seen=settings.exclude_seen,
    )
    measure = Measure(dataset, cohort, settings.recall_at, config.seed)
    inputs = {"dataset": dataset.artifact, "index": opened}
    if published is not None:
        inputs["published"] = open_artifact(published, "index")
    learned = None
    if "learned" in subject.ranked_by:
        inputs["preranker"] = open_artifact(opened.path / PRERANKER, "preranker")
    elif (trained := _trained_preranker(config, dataset)) is not None:
        inputs["preranker"] = trained
        learned = LearnedPreranker(Scorer.load(trained.path))
    found = Evaluation(
        model=config.name,
        description=config.description,
        dataset=dataset.summary.source,
        dataset_digest=dataset.artifact.manifest.digest,
        num_items=dataset.num_items,
        num_users=cohort.num_users,
        num_users_without_truth=cohort.num_without_truth,
        num_pairs=int((cohort.triggers >= 0).sum()),
        k_ann=config.retrieval.k_ann,
        num_probes=config.retrieval.num_probes,
        alpha=config.retrieval.alpha,
        seed=config.seed,
        preranker=type(retriever.preranker).__name__,
        sorter=type(retriever.sorter).__name__,
        protocol=Protocol(
            num_triggers=settings.num_triggers,
            k=config.retrieval.k,
            recall_at=sorted(settings.recall_at),
            exclude_seen=settings.exclude_seen,
        ),
        rows=[],
    )
    others = [_comparable(path, found) for path in compare]
    with Progress(transient=True) as progress:
        task = progress.add_task("evaluating", total=5)
        progress.update(task, description="the model's heads and merges")
        model_rows, values = _model_rows(config, subject, cohort, measure)
        progress.update(task, advance=1, description="other ways of preranking")
        preranking_rows = _preranking_rows(config, subject, learned, cohort, measure)
        progress.update(task, advance=1, description="the same with exact search")
        exact_rows = [_exact_row(config, subject, cohort, measure)] if settings.exact_search else []
        progress.update(task, advance=1, description="yardsticks")
        yardsticks = _yardsticks(config, dataset, cohort, measure)
        progress.update(task, advance=1, description="comparing and writing the report")
        found.rows += [*model_rows, *preranking_rows, *exact_rows]
        if published is not None:
            found.published, rows = _published(config, published, dataset, cohort, measure)
            found.rows += rows
        found.rows += yardsticks
        for path, other in zip(compare, others, strict=True):
            difference = _difference(values, UserValues.read(path / USERS), max(settings.recall_at), config.seed)
            if difference is not None:
                found.differences[other.model] = difference
        with write_artifact(
            out,
            "evaluation",
            config=config.model_dump(mode="json"),
            decisive=decisive(config, "evaluation"),
            inputs=inputs,
        ) as writer:
            values.write(writer.folder / USERS)
            (writer.folder / METRICS).write_text(found.model_dump_json(indent=2))
            if (curve := found.curve()) is not None:
                (writer.folder / CURVE).write_text(curve.model_dump_json(indent=2))
            write_report(found, others, writer.folder / REPORT)
            writer.summary |= {"model": found.model, "merged": found.merged.model_dump(mode="json")}
    return open_artifact(out, "evaluation")


def _trained_preranker(config: Config, dataset: Dataset) -> Artifact | None:
    """The learned preranker to compare with; one that was trained on a dataset before this one is left out."""
    folder = config.model_dir("preranker")
    if not (folder / MANIFEST).is_file():
        return None
    artifact = open_artifact(folder, "preranker")
    if artifact.manifest.inputs.get("dataset") == dataset.artifact.manifest.digest:
        return artifact
    logger.warning("%s: of another dataset, not compared; mtmh train-preranker makes it anew", folder)
    return None


@dataclass(frozen=True)
class UserValues:
    """Per-user sums behind a row's figures.

    Attributes:
        user_index: [U] int64.
        recall: cut-off -> [U].
        l1: matching and counted pairs, [U] each.
        l2: the same for the fine topic.
    """

    user_index: npt.NDArray[np.int64]
    recall: dict[int, Floats]
    l1: tuple[Floats, Floats]
    l2: tuple[Floats, Floats]

    def write(self, path: Path) -> None:
        """Writes one row a user."""
        names = [f"recall_{k}" for k in self.recall] + ["l1_matches", "l1_pairs", "l2_matches", "l2_pairs"]
        arrays = [*self.recall.values(), *self.l1, *self.l2]
        pq.write_table(pa.table({"user_index": self.user_index, **dict(zip(names, arrays, strict=True))}), path)

    @classmethod
    def read(cls, path: Path) -> UserValues:
        """Reads what ``write`` wrote."""
        columns = pq.read_table(path)
        table = {name: columns.column(name).to_numpy() for name in columns.column_names}
        recall = {int(name.removeprefix("recall_")): table[name] for name in table if name.startswith("recall_")}
        l1, l2 = ((table[f"{topic}_matches"], table[f"{topic}_pairs"]) for topic in ("l1", "l2"))
        return cls(table["user_index"], recall, l1, l2)

    def select(self, rows: npt.NDArray[np.intp]) -> UserValues:
        """Some of the users."""
        return UserValues(
            self.user_index[rows],
            {k: recall[rows] for k, recall in self.recall.items()},
            (self.l1[0][rows], self.l1[1][rows]),
            (self.l2[0][rows], self.l2[1][rows]),
        )


class Measure:
    """Turns answers into a row of the table; what it needs of the dataset is read once."""

    def __init__(self, dataset: Dataset, cohort: Cohort, ks: Sequence[int], seed: int) -> None:
        self.train_count = dataset.item_table.train_count
        self.length = max(ks)
        self._cohort = cohort
        self._ks = sorted(ks)
        self.num_items = dataset.num_items
        self._popular = popular_items(self.train_count)
        self._fresh = self.train_count == 0
        self._topics = [_topic_codes(dataset, name) for name in ("topic_l1", "topic_l2")]
        self._bootstrap = Bootstrap(cohort.num_users, seed=seed)

    def row(
        self, name: str, kind: Kind, answers: Answers, lists: Indices | None = None, alpha: float | None = None
    ) -> tuple[Row, UserValues]:
        """All figures of one way to answer.

        Args:
            name: of the row.
            kind: of the row.
            answers: K a <user, trigger>.
            lists: [U, N] the users' lists; None: ``answers`` sorted by score.
            alpha: of the row.
        """
        cohort = self._cohort
        if lists is None:
            lists = user_lists(answers, cohort.num_users, self.length)
        recall = recall_at(lists, cohort.truth.items, cohort.truth.offsets, self._ks)
        values = UserValues(
            cohort.user_index,
            {k: recall[:, place] for place, k in enumerate(self._ks)},
            *(self._matches(answers, topics) for topics in self._topics),
        )
        return Row(
            name=name,
            kind=kind,
            alpha=alpha,
            recall={k: self._bootstrap.mean(of_users) for k, of_users in values.recall.items()},
            match_l1=self._bootstrap.ratio(*values.l1),
            match_l2=self._bootstrap.ratio(*values.l2),
            coverage=coverage(lists, self.num_items),
            popular=self._bootstrap.ratio(*marked_counts(lists, self._popular)),
            fresh=self._bootstrap.ratio(*marked_counts(lists, self._fresh)),
            list_length=float((lists >= 0).sum(axis=1).mean()),
        ), values

    def _matches(self, answers: Answers, topics: Indices) -> tuple[Floats, Floats]:
        matches, pairs = topic_matches(answers.triggers, answers.items, topics)
        return self._of_users(answers, matches), self._of_users(answers, pairs)

    def _of_users(self, answers: Answers, counts: npt.NDArray[np.int64]) -> Floats:
        """Sums [P] over each user's triggers."""
        return np.bincount(answers.users, weights=counts, minlength=self._cohort.num_users).astype(np.float64)


def _model_rows(config: Config, subject: Subject, cohort: Cohort, measure: Measure) -> tuple[list[Row], UserValues]:
    """Rows of the merge, of each head and of the alpha sweep, and the users' values of the merge."""
    settings = config.retrieval
    kept, scores, requests = subject.prerank(cohort, settings, measure.num_items)
    merge = partial(merged_answers, kept, scores, requests, k=settings.k)
    if len(subject.heads) == 1:
        row, values = measure.row(config.name, "merged", merge(alpha=100.0))
        return [row], values
    name = f"{config.name}, merged, alpha = {settings.alpha:g}"
    row, values = measure.row(name, "merged", merge(alpha=settings.alpha), alpha=settings.alpha)
    rows = [row]
    # With two heads each one alone is an end of the sweep.
    ends = {100.0: subject.heads[0], 0.0: subject.heads[1]} if len(subject.heads) == 2 else {}
    for place, head in enumerate(subject.heads):
        alone = merged_answers([kept[place]], [scores[place]], requests, alpha=100.0, k=settings.k)
        alpha = next((end for end, of_head in ends.items() if of_head == head), None)
        rows.append(measure.row(f"{config.name}, {head} head", "head", alone, alpha=alpha)[0])
    rows += [
        measure.row(f"{config.name}, alpha = {alpha:g}", "alpha", merge(alpha=alpha), alpha=alpha)[0]
        for alpha in sorted(set(config.evaluation.alphas) - set(ends) - {settings.alpha})
    ]
    return rows, values


def _exact_row(config: Config, subject: Subject, cohort: Cohort, measure: Measure) -> Row:
    """The merge over exact search: what it has more than the merge over the index is the index's loss."""
    settings = config.retrieval
    kept, scores, requests = subject.exact().prerank(cohort, settings, measure.num_items)
    answers = merged_answers(kept, scores, requests, alpha=settings.alpha, k=settings.k)
    return measure.row(f"{config.name}, exact search", "exact", answers)[0]


def _preranking_rows(
    config: Config, subject: Subject, learned: Preranker | None, cohort: Cohort, measure: Measure
) -> list[Row]:
    """The merge under the other ways of preranking: those that are not the model's own."""
    settings, own = config.retrieval, subject.ranked_by
    ways = {
        "shared preranking": (*own, "shared"),
        "similarity alone": ("head-score", "head-score", "per-head"),
        "learned preranker": ("learned", "learned", "per-head"),
        "learned sorter": ("head-score", "learned", "per-head"),
        "learned preranker, shared": ("learned", "learned", "shared"),
    }
    models = {"learned": learned} if learned is not None else {}
    models |= dict(zip(own, (subject.preranker, subject.sorter), strict=True))
    rankers = {kind: (model, model) for kind, model in models.items()}
    rankers["head-score"] = (HeadScorePreranker(), subject.by_similarity)
    rows: list[Row] = []
    shown = {_outcome(*own, "per-head")}
    for name, way in ways.items():
        keeps, sorts, preranking = way
        shared = preranking == "shared"
        missing = not {keeps, sorts} <= rankers.keys() or (shared and len(subject.heads) == 1)
        if missing or _outcome(*way) in shown:
            continue
        shown.add(_outcome(*way))
        preranker, sorter = rankers[keeps][0], rankers[sorts][1]
        kept, scores, requests = subject.prerank(
            cohort, settings, measure.num_items, preranker=preranker, sorter=sorter, shared=shared
        )
        answers = merged_answers(kept, scores, requests, alpha=settings.alpha, k=settings.k)
        rows.append(measure.row(f"{config.name}, {name}", "preranking", answers)[0])
    return rows


def _outcome(keeps: str, sorts: str, preranking: str) -> tuple[str, ...]:
    """What a way of preranking comes to: equal for ways whose answers are. A shared ranking is the sorter's alone."""
    return (sorts, preranking) if preranking == "shared" else (keeps, sorts, preranking)


def _published(
    config: Config, index: Path, dataset: Dataset, cohort: Cohort, measure: Measure
) -> tuple[Published, list[Row]]:
    try:
        answers = published_answers(index, dataset, cohort, config.retrieval)
    except ValueError as error:
        logger.warning("the published index is not measured: %s", error)
        return Published(version=index.name, unmeasured=str(error)), []
    return Published(version=index.name), [measure.row(f"published index {index.name}", "published", answers)[0]]


def _yardsticks(config: Config, dataset: Dataset, cohort: Cohort, measure: Measure) -> list[Row]:
    settings, wanted = config.retrieval, config.evaluation.yardsticks
    k_ann = min(settings.k_ann, dataset.num_items)
    ways: dict[str, tuple[Search, Preranker]] = {}
    if "item-item" in wanted:
        cooccurrence = Cooccurrence(train_histories(dataset), dataset.num_items)
        ways["item-item cosine"] = (partial(cooccurrence.search, k=k_ann), cooccurrence)
    if "teacher" in wanted and (config.content_dir / MANIFEST).is_file():
        vectors = np.asarray(open_content(config.content_dir, dataset).embeddings, dtype=np.float32)
        ways["content (teacher)"] = (partial(ContentSearch(vectors).search, k=k_ann), HeadScorePreranker())
    rows = []
    for name, (search, sorter) in ways.items():
        kept, scores, requests = prerank_users(
            cohort,
            {name: search},
            HeadScorePreranker(),
            sorter,
            num_items=dataset.num_items,
            k_ann=k_ann,
            k=settings.k,
        )
        rows.append(
            measure.row(name, "yardstick", merged_answers(kept, scores, requests, alpha=100.0, k=settings.k))[0]
        )
    if "popularity" not in wanted:
        return rows
    answers, lists = popularity(cohort, measure.train_count, k=settings.k, length=measure.length)
    return [*rows, measure.row("popularity", "yardstick", answers, lists)[0]]


def _comparable(path: Path, mine: Evaluation) -> Evaluation:
    """Another model's evaluation.

    Raises:
        ValueError: of another dataset or by another protocol.
    """
    other = load_evaluation(path)
    if other.dataset_digest != mine.dataset_digest:
        raise ValueError(f"{path}: evaluated on another dataset ({other.dataset}, digest {other.dataset_digest[:12]})")
    if other.protocol != mine.protocol:
        raise ValueError(f"{path}: evaluated by another protocol ({other.protocol}), here it is {mine.protocol}")
    return other


def _difference(mine: UserValues, other: UserValues, k: int, seed: int) -> Difference | None:
    """Mine minus the other's, on shared users; None if there are none."""
    shared, my_rows, other_rows = np.intersect1d(mine.user_index, other.user_index, return_indices=True)
    if len(shared) == 0:
        return None
    mine, other = mine.select(my_rows), other.select(other_rows)
    bootstrap = Bootstrap(len(shared), seed=seed)
    ones = np.ones(len(shared))
    recall = bootstrap.difference((mine.recall[k], ones), (other.recall[k], ones))
    assert recall is not None
    return Difference(num_users=len(shared), recall=recall, match_l2=bootstrap.difference(mine.l2, other.l2))


def _topic_codes(dataset: Dataset, name: str) -> npt.NDArray[np.int64]:
    """[I] a number for each topic, -1: no topic."""
    column = dataset.items([name]).column(name).combine_chunks()
    codes = pc.fill_null(column.dictionary_encode().indices, -1)
    return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int64)
