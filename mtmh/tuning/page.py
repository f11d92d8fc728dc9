"""A page about a search: its trials as a table and a chart, and which settings mattered."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from mtmh.artifacts import write_atomically

_STYLE = """
:root { color-scheme: light dark; } body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 14px; } td, th { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; } .best { font-weight: 700; } .scroll { overflow-x: auto; } figure { margin: 1rem 0; }
figure svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
"""  # noqa: E501
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
    gain = f" The best is {_score(best) / own - 1.0:.1%} above the recipe's own settings." if best and own > 0.0 else ""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Tuning {escape(name)}</title><style>{_STYLE}</style><h1>Tuning {escape(name)}</h1>",
        f"<p>{len(trials)} trials. Score: geometric mean of recall at 5, 20, 100 and 500 on the end of the training "
        f"period, heads merged half and half, exact search; the test period was not read.{gain} "
        "What the score cannot see is the relevance of answers: compare it with <code>mtmh evaluate</code>.</p>",
        f"<figure>{_chart(trials)}</figure>",
        _importances(study),
        "<h2>Trials, best first</h2><div class=scroll>",
        _table(ranked),
        "</div></html>",
    ]
    write_atomically(path, "\n".join(parts))


def _score(trial: FrozenTrial) -> float:
    return max((score for _, score in trial.user_attrs.get("curve", [])), default=0.0)


def _table(ranked: list[FrozenTrial]) -> str:
    keys = sorted({key for trial in ranked for key in trial.user_attrs["settings"]})
    short = [key.split(".", 1)[1].replace("_", " ") for key in keys]
    heads = ["trial", "score", "epochs", "seconds", "ended", *short]
    rows = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
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
        mark = " class=best" if place == 0 else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "<table>" + "\n".join(rows) + "</table>"


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # a section: by what it is
        return str(value.get("kind", value.get("count_of")))
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def _chart(trials: list[FrozenTrial]) -> str:
    """The curves of all trials over epochs; the recipe's own and the best stand out."""
    figure = Figure(figsize=(9.0, 4.0))
    axes = figure.subplots()
    best = max(trials, key=_score, default=None)
    for trial in trials:
        curve = trial.user_attrs.get("curve", [])
        style: dict[str, Any] = {"color": "0.75", "linewidth": 1.0}
        if trial is best:
            style = {"color": "tab:blue", "linewidth": 2.4, "label": f"best: trial {trial.number}", "zorder": 3}
        elif trial.number == 0:
            style = {"color": "tab:orange", "linewidth": 2.4, "label": "recipe's own settings", "zorder": 2}
        axes.plot(*(zip(*curve, strict=True) if curve else ([], [])), marker=".", **style)
    axes.set_xlabel("epochs")
    axes.set_ylabel("score on the end of T1")
    axes.spines[["top", "right"]].set_visible(False)
    if trials:
        axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    return drawn.getvalue().partition("<svg")[1] + drawn.getvalue().partition("<svg")[2]


def _importances(study: optuna.Study) -> str:
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if len(finished) < _FEWEST:
        return f"<p>Which settings matter is shown from {_FEWEST} finished trials on; there are {len(finished)}.</p>"
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    total = sum(shares.values()) or 1.0
    rows = [f"<tr><td>{escape(key)}</td><td>{share / total:.0%}</td></tr>" for key, share in shares.items()]
    return "<h2>What mattered</h2><table>" + "".join(rows) + "</table>"
