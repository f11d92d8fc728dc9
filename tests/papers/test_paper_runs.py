"""Runs of a page: shown whenever a model is over; the names of models to leave out."""

from __future__ import annotations

import pytest

from mtmh.papers.models import MODELS, MTMH, check_names
from mtmh.papers.runs import Run, Runs, Say, do_runs, plan_runs


def test_runs_are_shown_whenever_a_model_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def do(self: Run, say: Say) -> None:
        if self.config.name in ("neucf-seed1", "mtsh-seed0", "mtsh-seed1"):
            raise ValueError("no number")

    shown = []

    def show(runs: Runs) -> None:
        shown.append(({name: len(found) for name, found in runs.by_model.items()}, runs.missing, list(runs.failed)))

    monkeypatch.setattr(Run, "do", do)
    runs = plan_runs("synthetic", [MODELS[name] for name in (MTMH, "NeuCF", "MTSH")], [0, 1], [])
    do_runs(runs, 1, lambda _: None, show)
    failed = ["neucf-seed1", "mtsh-seed0", "mtsh-seed1"]
    assert shown == [
        ({MTMH: 2}, ["NeuCF", "MTSH"], []),
        ({MTMH: 2, "NeuCF": 1}, ["MTSH"], failed[:1]),
        ({MTMH: 2, "NeuCF": 1}, [], failed),
    ]


def test_nothing_is_shown_where_the_first_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def do(self: Run, say: Say) -> None:
        raise ValueError("no data")

    monkeypatch.setattr(Run, "do", do)
    with pytest.raises(ValueError, match="mtmh-seed0: no data"):
        do_runs(plan_runs("synthetic", [MODELS[MTMH]], [0], []), 1, lambda _: None, lambda _: pytest.fail("shown"))


def test_a_model_to_leave_out_must_be_one() -> None:
    check_names([*MODELS, "figure 7, MTMH", "alpha for each user"])
    with pytest.raises(ValueError, match=r"'mixture of logits': no such model; expected one of MTMH; MTMH, d"):
        check_names(["MTSH", "mixture of logits"])
