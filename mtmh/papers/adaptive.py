"""An alpha for each user: a policy fitted on the end of T1, measured on T2 beside every fixed alpha.

    python -m mtmh.papers.adaptive synthetic+paper --set name=adaptive

The model that has not seen the end of T1 answers the users whose end was held back, at every alpha; a ridge regression
learns what recall and topic match of an alpha depend on (`mtmh.adaptive.features`). The policy takes for each user the
alpha of the most expected recall plus a price for match, the price being that by which it has as much match as alpha =
50 there. Then the model of all of T1 answers the users of T2. Candidates are searched exactly and ranked by similarity
alone, because the learned preranker has seen the end of T1. What is there and unchanged stays.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from mtmh.adaptive.features import RequestFeatures
from mtmh.artifacts import open_artifact, write_atomically
from mtmh.config import Config, decisive, load_config
from mtmh.data.arrays import open_array
from mtmh.data.content_store import open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.item_vectors import StackedVectors
from mtmh.data.validation import ValidationDataset
from mtmh.distributed.ranks import join_ranks
from mtmh.evaluation.cohort import make_cohort
from mtmh.evaluation.measure import Measure
from mtmh.evaluation.metrics import Bootstrap, Estimate
from mtmh.evaluation.pipeline import Pipeline, Search
from mtmh.evaluation.protocol import rank_users
from mtmh.index.vector_index import ExactIndex
from mtmh.papers.alpha_policy import ALPHAS, FIXED, Outcomes, Policy, fixed_at_match, most_recall
from mtmh.preranking.held_back import model_without_end
from mtmh.retrieval.head_search import HeadSearch
from mtmh.retrieval.parallel_search import AllHeads
from mtmh.retrieval.ranking import HeadScorePreranker
from mtmh.start.run import run_stages
from mtmh.tower.artifact import vectors_file
from mtmh.tower.embedder import Embedder

Floats = npt.NDArray[np.float64]

ADAPTIVE = Path("adaptive.json")


class AdaptiveAlpha(BaseModel):
    """What a choice of alpha for each user gained on T2.

    Attributes:
        recall_at: cut-off of all recalls.
        fixed: alpha -> recall and L2 match of all users at it.
        recall: of the policy.
        match: of the policy.
        alphas: share of the users that it gives each of `ALPHAS`.
        above_frontier: its recall less that of fixed alphas at equal match (between two of them users are divided).
        above_best: its recall less that of the fixed alpha that is best on T2, whatever its match.
        best: that alpha.
        oracle: recall of the best alpha of each user in hindsight, at the policy's match: what could be gained at most.
        oracle_above_frontier: of it, in the same way.
        weights: of the standardised features, for recall, by power of alpha.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recall_at: int
    fixed: dict[float, tuple[Estimate, Estimate]]
    recall: Estimate
    match: Estimate
    alphas: list[float]
    above_frontier: Estimate
    above_best: Estimate
    best: float
    oracle: Estimate
    oracle_above_frontier: Estimate
    weights: dict[str, list[float]]


def main() -> None:
    """Parses the command line and brings the measurement up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    print(measure_adaptive(load_config(arguments.recipe, arguments.overrides)).read_text())


def measure_adaptive(config: Config) -> Path:
    """Trains as far as it is missing, fits and measures; a file of `read_adaptive`.

    Raises:
        ValueError: the recipe trains for a fixed length, so that no model without the end of T1 is left, or has not
            two heads.
    """
    if not config.training.chooses_length or len(config.model.heads) != 2:
        raise ValueError(
            "an alpha for each user needs training.epochs = auto (for a held-back end of T1) and two heads"
        )
    run_stages(config, print, until="embed")
    dataset = open_dataset(config.dataset_dir)
    made_from = {
        "embeddings": open_artifact(config.model_dir("embeddings"), "embeddings").manifest.digest,
        "settings": decisive(config, "evaluation"),
    }
    path = config.paths.root / config.name / ADAPTIVE
    if path.is_file() and json.loads(path.read_text())["made_from"] == json.loads(json.dumps(made_from)):
        return path
    early = model_without_end(config.model_dir("checkpoints"), config.model_dir("embeddings"))
    if early is None:
        raise ValueError(f"{config.model_dir('checkpoints')}: the model without the end of T1 is gone; train again")
    view = ValidationDataset(dataset, config.validation, config.seed)
    vectors = {
        head.name: open_array(config.model_dir("embeddings") / vectors_file(head.name)) for head in config.model.heads
    }
    fitted = outcomes(config, view, _embed(config, dataset, view, early.path))
    measured = outcomes(config, dataset, vectors)
    found = compare(fitted, measured, max(config.evaluation.recall_at), config.seed)
    write_atomically(path, json.dumps({"made_from": made_from, "found": found.model_dump(mode="json")}, indent=2))
    return path


def read_adaptive(path: Path) -> AdaptiveAlpha:
    """What `measure_adaptive` wrote."""
    return AdaptiveAlpha.model_validate(json.loads(path.read_text())["found"])


def outcomes(config: Config, dataset: Dataset, vectors: Mapping[str, npt.NDArray[np.float32]]) -> Outcomes:
    """Answers the users of a dataset, or of its held-back end, at every alpha.

    Args:
        config: of the protocol.
        dataset: whose users, histories and later items count.
        vectors: head -> [I, D] of a model that has not seen these items.
    """
    settings = config.evaluation
    users = dataset.evaluation_users(settings.num_users, config.seed)
    cohort = make_cohort(users, num_triggers=settings.num_triggers, exclude_seen=settings.exclude_seen)
    length = min(max(settings.recall_at), dataset.num_items)
    measure = Measure(dataset, cohort, [length], config.seed)
    engagement = next(iter(vectors))

    searches = AllHeads(
        {head: HeadSearch(ExactIndex.build(of_head), StackedVectors(of_head)) for head, of_head in vectors.items()}
    )

    def search(head: str) -> Search:
        return lambda triggers, k, needed: searches.search(head, triggers, k, 1, needed=needed, allowed=None)

    pipeline = Pipeline(
        {head: search(head) for head in vectors},
        HeadScorePreranker(),
        HeadScorePreranker((engagement, vectors[engagement])),
        num_items=dataset.num_items,
        k_ann=config.retrieval.k_ann,
        k=config.retrieval.k,
        alpha=FIXED,
    )
    ranking = rank_users(cohort, pipeline, length)
    for alpha in ALPHAS:
        measure.add(f"{alpha:g}", "alpha", ranking.answers(alpha), ranking.lists(alpha), alpha)
    features = RequestFeatures(vectors, dataset.item_table.train_count)
    return Outcomes(
        features.of_users(list(cohort.triggers)),
        np.stack([values.recall[length] for values in measure.values], axis=1),
        np.stack([values.l2[0] for values in measure.values], axis=1),
        np.stack([values.l2[1] for values in measure.values], axis=1),
    )


def compare(fitted: Outcomes, measured: Outcomes, recall_at: int, seed: int) -> AdaptiveAlpha:
    """Fits the policy on the outcomes of one period and measures it on those of another."""
    policy = Policy.fit(fitted)
    arms = policy.choose(measured.features)
    rows, ones = np.arange(len(arms)), np.ones(len(arms))
    bootstrap = Bootstrap(len(arms), seed=seed)
    frontier = fixed_at_match(measured, measured.match_of(arms))
    best = int(measured.recall.mean(axis=0).argmax())
    hindsight = most_recall(measured.recall, measured, measured.match_of(arms))

    def above(own: Floats, other: Floats) -> Estimate:
        found = bootstrap.difference((own, ones), (other, ones))
        assert found is not None
        return found

    def match(of_arms: npt.NDArray[np.int64]) -> Estimate:
        found = bootstrap.ratio(measured.matches[rows, of_arms], measured.pairs[rows, of_arms])
        return found or Estimate(value=0.0, standard_error=0.0, low=0.0, high=0.0)

    recall, oracle = measured.recall[rows, arms], measured.recall[rows, hindsight]
    return AdaptiveAlpha(
        recall_at=recall_at,
        fixed={
            alpha: (bootstrap.mean(measured.recall[:, arm]), match(np.full(len(arms), arm)))
            for arm, alpha in enumerate(ALPHAS)
        },
        recall=bootstrap.mean(recall),
        match=match(arms),
        alphas=(np.bincount(arms, minlength=len(ALPHAS)) / len(arms)).tolist(),
        above_frontier=above(recall, frontier),
        above_best=above(recall, measured.recall[:, best]),
        best=ALPHAS[best],
        oracle=bootstrap.mean(oracle),
        oracle_above_frontier=above(oracle, fixed_at_match(measured, measured.match_of(hindsight))),
        weights=policy.shown(),
    )


def _embed(
    config: Config, dataset: Dataset, view: ValidationDataset, checkpoint: Path
) -> dict[str, npt.NDArray[np.float32]]:
    content = open_content(config.content_dir, dataset) if config.model.content_dim and config.needs_content else None
    items = np.arange(dataset.num_items)
    with join_ranks("cpu") as ranks, torch.no_grad():
        embedder = Embedder.load(checkpoint, config.sharding, ranks, content, items_per_step=4096)
        parts = [embedder.embed(view.item_table, some) for some in np.array_split(items, max(1, len(items) // 4096))]
    return {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}


if __name__ == "__main__":
    main()
