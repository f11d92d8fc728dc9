"""Gain of each kind of evidence in the order of a user's candidates, on held-out events at the end of T1.

One half of the validation users fits a combination of some kinds of evidence, the other half is measured: recall of the
held-out items that the user had not seen, among all candidates. T2 is not read. Needs the recipe's trained preranker.

    python -m benchmarks.evidence movielens --set data.input=data/movielens-latest-small --out evidence.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from mtmh.config import load_config
from mtmh.data.dataset import open_dataset
from mtmh.data.validation import ValidationDataset
from mtmh.preranking.inputs import open_inputs
from mtmh.preranking.scorer import Scorer
from mtmh.preranking.stacking import Judged, fit_combination, judged_candidates

CUT_OFFS = (5, 20, 100, 500)
MOST_CANDIDATES = 3000  # of a user
FITTED_WITH = 400  # of them that are not held out, as in training


def subset(judged: Judged, users: slice, names: list[str], candidates: int | None = None) -> Judged:
    """Some users, some kinds of evidence, and the first candidates: those held out, then others at random."""
    columns = [judged.names.index(name) for name in names]
    evidence = judged.evidence[users, :candidates][:, :, columns]
    held_out, present = judged.held_out[users, :candidates], judged.present[users, :candidates]
    return Judged(evidence, held_out, present, judged.num_held_out[users], names)


def recalls(judged: Judged, scores: np.ndarray) -> list[float]:
    """Mean recall at each cut-off, over users with something to find; ties in random order."""
    places = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(scores.shape[1]), scores.shape), axis=1)
    ranked = np.take_along_axis(np.where(judged.present, scores, -np.inf), places, axis=1)
    order = np.take_along_axis(places, np.argsort(-ranked, axis=1, kind="stable"), axis=1)
    hits = np.take_along_axis(judged.held_out, order, axis=1).cumsum(axis=1)
    some = judged.num_held_out > 0
    return [float((hits[some, min(k, hits.shape[1]) - 1] / judged.num_held_out[some]).mean()) for k in CUT_OFFS]


def groups(names: list[str]) -> dict[str, list[str]]:
    """Kinds of evidence in the order in which they are added, by their name in the table."""
    similar = [name for name in names if name.endswith(("largest", "mean", "recent")) and "," not in name]
    return {
        "model's logit": ["logit"],
        "similarities under the heads": similar,
        "popularity": ["events", "late events"],
        "common users": ["common users", "common users, recent"],
        "linear weights": ["linear weights", "linear weights, recent"],
    }


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.recipe, arguments.overrides)
    dataset = open_dataset(config.dataset_dir)
    inputs, _ = open_inputs(dataset, config.model_dir("embeddings") if config.preranker.head_embeddings else None)
    view = ValidationDataset(dataset, config.validation, config.seed)
    scorer = Scorer.load(config.model_dir("preranker"))
    judged = judged_candidates(config.preranker, view, scorer, inputs.vectors, config.seed, shown=MOST_CANDIDATES)
    fitted_with = FITTED_WITH + int(judged.held_out.sum(axis=1).max())
    fitted, measured = slice(0, None, 2), slice(1, None, 2)
    rows: dict[str, list[float]] = {}
    for name in judged.names[:-1]:  # the last is of the user, the same for all candidates
        alone = subset(judged, measured, [name])
        rows[f"{name} alone"] = recalls(alone, alone.evidence[:, :, 0])
    taken: list[str] = []
    for title, names in groups(judged.names).items():
        if not names:
            continue
        taken = [*taken, *names]
        widths = (
            (0,) if names != ["linear weights", "linear weights, recent"] else (0, config.preranker.combination_hidden)
        )
        for hidden in widths:
            model = fit_combination(
                subset(judged, fitted, [*taken, "history length"], fitted_with), hidden, config.seed
            )
            part = subset(judged, measured, [*taken, "history length"])
            with torch.no_grad():
                scores = model(torch.from_numpy(part.evidence)).numpy()
            rows[f"+ {title}{', and the network' if hidden else ''}"] = recalls(part, scores)
    width = max(map(len, rows))
    print(" " * width, *(f"{f'@{k}':>6}" for k in CUT_OFFS))
    for title, values in rows.items():
        print(f"{title:<{width}}", *(f"{100 * value:6.1f}" for value in values))
    if arguments.out is not None:
        arguments.out.write_text(
            json.dumps({"recipe": arguments.recipe, "set": arguments.overrides, "recall": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
