"""Fresh items among the nearest neighbours of each head: how many there are, and whether they are on topic.

    python -m benchmarks.fresh_neighbours demo --k 30

Of every item with training events the K nearest items under each head, exactly. Fresh: no training event. And how much
alike two fresh items are to a head, which tells whether it knows one from another: their mean cosine.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

from benchmarks.relations import nearest_vectors
from mtmh.artifacts import open_artifact
from mtmh.config import load_config
from mtmh.data.dataset import open_dataset
from mtmh.tower.artifact import EmbeddingsSummary, vectors_file


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    config = load_config(arguments.recipe, arguments.overrides)
    dataset = open_dataset(config.dataset_dir)
    fresh = dataset.item_table.train_count == 0
    topics = np.array(dataset.items(["topic_l2"]).column("topic_l2").fill_null("").to_pylist())
    embeddings = open_artifact(config.model_dir("embeddings"), "embeddings")
    print(f"{fresh.sum():,} of {len(fresh):,} items are fresh, {100 * fresh.mean():.1f} %")
    shown = ["fresh among the nearest", "fresh ones on topic", "others on topic", "cosine of fresh items", "of others"]
    print("| | " + " | ".join(shown) + " |\n|---" + "|---:" * len(shown) + "|")
    for head in EmbeddingsSummary.model_validate(embeddings.summary).heads:
        vectors = np.load(embeddings.path / vectors_file(head)).astype(np.float32)
        near = nearest_vectors(vectors, arguments.k)
        shares = " | ".join(f"{100 * share:.1f} %" for share in fresh_shares(near, fresh, topics))
        alike = " | ".join(f"{mean_cosine(vectors[some]):.3f}" for some in (fresh, ~fresh))
        print(f"| {head} head | {shares} | {alike} |")


def fresh_shares(
    near: npt.NDArray[np.int64], fresh: npt.NDArray[np.bool_], topics: npt.NDArray[np.str_]
) -> tuple[float, float, float]:
    """Shares over the neighbours of all items that are not fresh.

    Args:
        near: [I, K] nearest items.
        fresh: [I].
        topics: [I] names, empty: none, which is no topic in common.

    Returns:
        Fresh ones among the neighbours; of these those with the item's topic; of the others those with it.
    """
    own = ~fresh
    is_fresh = fresh[near[own]]
    same = (topics[near[own]] == topics[own][:, None]) & (topics[own] != "")[:, None]
    return float(is_fresh.mean()), float(same[is_fresh].mean()), float(same[~is_fresh].mean())


def mean_cosine(vectors: npt.NDArray[np.float32]) -> float:
    """Mean over all pairs of different rows of [N, D] vectors of any length, N above 1."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    total, count = np.square(unit.sum(axis=0, dtype=np.float64)).sum(), len(unit)
    return float((total - count) / (count * (count - 1)))


if __name__ == "__main__":
    main()
