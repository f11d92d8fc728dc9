"""A page about a search: its trials as a table and a chart, and which settings mattered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from mtmh.artifacts import write_atomically
from mtmh.pages.drawing import LINE, SERIES, drawing
from mtmh.pages.page import callout, cell, figure, note, page, pairs, row, section, table

_FEWEST = 8  # finished trials, before importances say anything


def write_page(study: optuna.Study, name: str, path: Path) -> None:
    """Writes the page of a search as one HTML file without links to the outside.

    Args:
        study: with attributes ``curve``, ``seconds`` and ``settings`` of each trial.
        name: of the recipe.
        path: of the file.
    """
    trials = [trial for trial in study.trials if "seconds" in trial.user_attrs]
    ranked = sorted(trials, key=_score, reverse=True)
    own = next((_score(trial) for trial in trials if trial.number == 0), 0.0)
    best = ranked[0] if ranked else None
    gain = _score(best) / own - 1.0 if best and own > 0.0 else 0.0
    html = page(
        f"Tuning {name}",
        callout(
            f"{len(trials)} trials; the best is {gain:.1%} above the recipe's own settings."
            if gain > 0.0
            else f"{len(trials)} trials; none is better than the recipe's own settings.",
            ["The score does not see the relevance of answers: compare with mtmh evaluate and mtmh report --compare."],
        ),
        section(
            "Scores by epoch",
            figure(
                _chart(trials, best),
                "Score: geometric mean of recall at 5, 20, 100 and 500 on the end of the training period, heads merged"
                " half and half, exact search; the test period was not read.",
            ),
        ),
        section("What mattered", _importances(study)),
        section("Trials, best first", _table(ranked)),
    )
    write_atomically(path, html)


def _score(trial: FrozenTrial) -> float:
    return max((score for _, score in trial.user_attrs.get("curve", [])), default=0.0)


def _table(ranked: list[FrozenTrial]) -> str:
    keys = sorted({key for trial in ranked for key in trial.user_attrs["settings"]})
    short = [key.split(".", 1)[1].replace("_", " ") for key in keys]
    heads = ["trial", "score", "epochs", "seconds", "ended", *short]
    rows = []
    for place, trial in enumerate(ranked):
        curve = trial.user_attrs.get("curve", [])
        cells = [
            "recipe's own" if trial.number == 0 else str(trial.number),
            f"{_score(trial):.4f}" if curve else "–",
            f"{curve[-1][0]:.2f}" if curve else "–",
            f"{trial.user_attrs['seconds']:.0f}",
            {TrialState.COMPLETE: "by itself", TrialState.PRUNED: "stopped early"}.get(trial.state, "failed"),
            *(_shown(trial.user_attrs["settings"].get(key)) for key in keys),
        ]
        rows.append(row(map(cell, cells), "strong" if place == 0 else ""))
    return table(heads, rows, "numbers")


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # a section: by what it is
        return str(value.get("kind", value.get("count_of")))
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def _chart(trials: list[FrozenTrial], best: FrozenTrial | None) -> str:
    """The curves of all trials over epochs; the recipe's own and the best stand out."""
    with drawing("score by epoch of every trial", height=4.0) as made:
        axes = made.panels[0]
        for trial in trials:
            curve = trial.user_attrs.get("curve", [])
            style: dict[str, Any] = {"color": LINE, "linewidth": 1.0}
            if trial is best:
                style = {"color": SERIES[0], "linewidth": 2.4, "label": f"best: trial {trial.number}", "zorder": 3}
            elif trial.number == 0:
                style = {"color": SERIES[1], "linewidth": 2.4, "label": "recipe's own settings", "zorder": 2}
            axes.plot(*(zip(*curve, strict=True) if curve else ([], [])), marker=".", **style)
        axes.set_xlabel("epochs")
        axes.set_ylabel("score on the end of T1")
    return made.svg


def _importances(study: optuna.Study) -> str:
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if len(finished) < _FEWEST:
        return note(f"Which settings matter is shown from {_FEWEST} finished trials on; there are {len(finished)}.")
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    total = sum(shares.values()) or 1.0
    return pairs({key: f"{share / total:.0%}" for key, share in shares.items()})
