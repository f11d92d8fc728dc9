"""Evaluates a model by the paper's protocol, beside yardsticks and other models, and writes the report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import Progress

from mtmh.artifacts import MANIFEST, Artifact, open_artifact, write_artifact
from mtmh.config import Config, MilvusConfig, decisive
from mtmh.data.content_store import open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.evaluation.cohort import make_cohort
from mtmh.evaluation.compare import against_yardsticks, difference, load_comparable
from mtmh.evaluation.examples import find_examples
from mtmh.evaluation.measure import Measure
from mtmh.evaluation.model_rows import ModelRows
from mtmh.evaluation.origin import origin_of
from mtmh.evaluation.published import rank_published
from mtmh.evaluation.report import write_report
from mtmh.evaluation.results import METRICS, REPORT, USERS, Evaluation, Protocol, Published, users_file
from mtmh.evaluation.subject import CandidateSearch, ItemRows, Subject
from mtmh.evaluation.user_values import UserValues
from mtmh.evaluation.yardstick_rows import YardstickRows
from mtmh.index.artifact import PRERANKER
from mtmh.index.versions import current_version
from mtmh.preranking.neighbours import engagements
from mtmh.preranking.user_ranker import UserRanker
from mtmh.retrieval.curve import CURVE_FILE
from mtmh.retrieval.open_preranker import LearnedPreranker
from mtmh.retrieval.retriever import Retriever

logger = logging.getLogger(__name__)


def evaluate(
    config: Config,
    out: Path,
    compare: Sequence[Path] = (),
    *,
    index: Path | None = None,
    published: Path | None = None,
    search: CandidateSearch | None = None,
) -> Artifact:
    """Writes an evaluation artifact: ``metrics.json``, ``report.html`` and per-user values.

    Args:
        config: names dataset, index and content embeddings; ``evaluation`` and ``retrieval`` set the protocol.
        out: folder of the artifact.
        compare: evaluation artifacts of other models, shown in the same tables and curve.
        index: a version of the index, or another index; None: the published version.
        published: a version to measure beside on the same users, of whatever data; None: none. If it cannot be
            measured, the evaluation says why.
        search: finds candidates in the index's place, for a model whose similarity no index has.

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
    retriever = Retriever.load(opened.path, config.retrieval, config.index.milvus)
    assert search is None or not compacted
    subject = Subject(retriever, ItemRows.match(dataset, retriever.catalogue) if compacted else None, search=search)
    settings = config.evaluation
    cohort = make_cohort(
        dataset.evaluation_users(settings.num_users, config.seed),
        num_triggers=settings.num_triggers,
        exclude_seen=settings.exclude_seen,
        num_given=settings.given_events,
    )
    recall_at = sorted({min(k, dataset.num_items) for k in settings.recall_at})
    measure = Measure(dataset, cohort, recall_at, config.seed)
    inputs = {"dataset": dataset.artifact, "index": opened}
    if published is not None:
        inputs["published"] = open_artifact(published, "index")
    learned = None
    if "learned" in subject.ranked_by:
        inputs["preranker"] = open_artifact(opened.path / PRERANKER, "preranker")
    elif not compacted and (trained := _trained_preranker(config.model_dir("preranker"), opened)) is not None:
        inputs["preranker"] = trained
        learned = LearnedPreranker(UserRanker.load(trained.path, retriever.vectors))
    content = None
    if "teacher" in settings.yardsticks and (config.content_dir / MANIFEST).is_file():
        content = np.asarray(open_content(config.content_dir, dataset).embeddings, dtype=np.float32)
    origin = origin_of(opened, dataset, config.model_dir("embeddings"), config.model_dir("checkpoints"))
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
        num_probes=retriever.num_probes,
        alpha=config.retrieval.alpha,
        seed=config.seed,
        preranker=subject.ranked_by[0],
        sorter=subject.ranked_by[1],
        steps=origin.steps,
        origin=origin,
        examples=find_examples(retriever) if search is None else [],
        protocol=Protocol(
            num_triggers=settings.num_triggers,
            k=config.retrieval.k,
            recall_at=recall_at,
            exclude_seen=settings.exclude_seen,
            given_events=settings.given_events,
        ),
        rows=[],
    )
    if max(settings.recall_at) > dataset.num_items:
        found.notes.append(f"cut-offs above {dataset.num_items} became recall@{dataset.num_items}: the whole catalogue")
    others = {path: load_comparable(path, found) for path in compare}
    model = ModelRows(config.name, subject, config.retrieval, cohort, measure)
    with Progress(transient=True) as progress:
        task = progress.add_task("evaluating", total=5)
        progress.update(task, description="the model's heads and merges")
        model.add_own(config.evaluation.alphas)
        progress.update(task, advance=1, description="other ways of preranking")
        model.add_preranked(learned, rank_all=settings.rank_all)
        progress.update(task, advance=1, description="the same with exact search")
        if settings.exact_search:
            model.add_exact()
        if published is not None:
            found.published = _add_published(model, published, dataset, config.index.milvus)
        progress.update(task, advance=1, description="yardsticks")
        if settings.yardsticks:
            engaged = engagements(dataset.history_reader(), dataset.num_items)
            ways = config.retrieval.k, config.retrieval.k_ann, subject.sorter, config.seed
            found.notes += YardstickRows(engaged, content, cohort, measure, *ways).add(settings.yardsticks)
        progress.update(task, advance=1, description="comparing and writing the report")
        found.rows = measure.rows
        found.against = against_yardsticks(measure)
        made = config.model_dump(mode="json")
        for path, other in others.items():
            recipes = made, open_artifact(path, "evaluation").manifest.config
            steps = found.steps, other.steps
            beside = difference(measure.values[0], UserValues.read(path / USERS), config.seed, steps, recipes)
            if beside is not None:
                found.differences[other.model] = beside
        deciding = decisive(config, "evaluation")
        with write_artifact(out, "evaluation", config=made, decisive=deciding, inputs=inputs) as writer:
            for place, values in enumerate(measure.values):
                values.write(writer.folder / users_file(place))
            (writer.folder / METRICS).write_text(found.model_dump_json(indent=2))
            if (curve := found.curve()) is not None:
                (writer.folder / CURVE_FILE).write_text(curve.model_dump_json(indent=2))
            write_report(found, list(others.values()), writer.folder / REPORT)
            writer.summary |= {"model": found.model, "merged": found.merged.model_dump(mode="json")}
    return open_artifact(out, "evaluation")


def _trained_preranker(folder: Path, index: Artifact) -> Artifact | None:
    """The learned preranker to compare with; one of another dataset or of other embeddings is left out."""
    if not (folder / MANIFEST).is_file():
        return None
    artifact = open_artifact(folder, "preranker")
    own, needed = artifact.manifest.inputs, index.manifest.inputs
    if all(own.get(name, needed[name]) == needed[name] for name in ("dataset", "embeddings")):
        return artifact
    logger.warning("%s: of other data than the index, not compared; mtmh train-preranker makes it anew", folder)
    return None


def _add_published(model: ModelRows, index: Path, dataset: Dataset, milvus: MilvusConfig | None) -> Published:
    try:
        ranking = rank_published(index, dataset, model.cohort, model.settings, model.measure.length, milvus)
    except ValueError as error:
        logger.warning("the published index is not measured: %s", error)
        return Published(version=index.name, unmeasured=str(error))
    model.measure.add(f"published index {index.name}", "published", ranking.answers(), ranking.lists())
    return Published(version=index.name)
