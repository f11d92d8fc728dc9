"""The gates of a chain: the teacher, the recall of the index, and the figures against the published version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mtmh.artifacts import Artifact, open_artifact
from mtmh.chain.record import Verdict
from mtmh.config import Config, StageName
from mtmh.evaluation.results import load_evaluation
from mtmh.index.artifact import IndexSummary
from mtmh.index.versions import CURRENT, current_version


def teacher_gate(config: Config, check: Artifact, published: Artifact | None) -> Verdict:  # noqa: ARG001
    """Passes if the teacher tells topics apart as well as ``content.check`` asks."""
    failures: list[str] = check.summary["failures"]
    limits = config.content.check.model_dump(exclude_none=True)
    reached = [f"{name} {least:g}" for name, least in limits.items() if name.startswith("min_")]
    return Verdict(gate="teacher", passed=not failures, figures=failures or [f"reaches {', '.join(reached)}"])


def index_gate(config: Config, index: Artifact, published: Artifact | None) -> Verdict:  # noqa: ARG001
    """Passes if every head's index finds ``index.min_recall`` of the exact neighbours."""
    measured = IndexSummary.model_validate(index.summary).ann_recall
    least = config.index.min_recall
    return Verdict(
        gate="recall of the index",
        passed=all(found.recall >= least for found in measured.values()),
        figures=[
            f"{head}: {found.recall:.4f} of the exact {found.k} nearest, {found.num_probes} probes; at least {least:g}"
            for head, found in measured.items()
        ],
    )


def evaluation_gate(config: Config, evaluation: Artifact, published: Artifact | None) -> Verdict:
    """Passes if recall and topic match are as good as those of the published version on the same data and users.

    The drops that ``chain`` allows are taken off. What cannot be compared misses the gate, unless
    ``chain.allow_unmeasured``.
    """
    name = "against the published version"
    if published is None:
        return Verdict(gate=name, passed=True, figures=["nothing is published yet"])
    if evaluation.manifest.inputs["index"] == published.manifest.digest:
        return Verdict(gate=name, passed=True, figures=[f"{published.path.name} is the published version"])
    found = load_evaluation(evaluation.path)
    assert found.published is not None
    if found.published.unmeasured:
        allowed = config.chain.allow_unmeasured
        figures = [
            f"{published.path.name} could not be measured on the new data: {found.published.unmeasured};"
            f" chain.allow_unmeasured is {str(allowed).lower()}"
        ]
        return Verdict(gate=name, passed=allowed, figures=figures)
    now, before, largest = found.merged, found.row("published"), max(found.protocol.recall_at)
    drops = config.chain.max_recall_drop, config.chain.max_match_drop
    rows = [
        (f"recall@{largest}", before.recall[largest], now.recall[largest], drops[0]),
        ("L1 match", before.match_l1, now.match_l1, drops[1]),
        ("L2 match", before.match_l2, now.match_l2, drops[1]),
    ]
    passed, figures = True, []
    for what, old, new, drop in rows:
        if old is None or new is None:
            continue
        # Figures are shares of counts: a difference of rounding is none.
        missed = old.value - new.value > drop + 1e-12
        passed &= not missed
        verdict = "too low" if missed else "good"
        figures.append(
            f"{what}: {100 * new.value:.2f} %, {published.path.name} has {100 * old.value:.2f} % on the same users;"
            f" may be lower by {100 * drop:g} points: {verdict}"
        )
    return Verdict(gate=name, passed=passed, figures=figures)


GATES: dict[StageName, Callable[[Config, Artifact, Artifact | None], Verdict]] = {
    "content_check": teacher_gate,
    "build_index": index_gate,
    "evaluate": evaluation_gate,
}


def to_measure(index: Artifact | None, published: Artifact | None) -> dict[str, Artifact]:
    """Further inputs of the evaluation of an index: the published version, unless there is none or it is this one."""
    if index is None or published is None or index.manifest.digest == published.manifest.digest:
        return {}
    return {"published": published}


def published_index(config: Config) -> Artifact | None:
    """The published version of the recipe's index, if there is one."""
    folder: Path = config.model_dir("index")
    if not (folder / CURRENT).is_file():
        return None
    return open_artifact(current_version(folder), "index")
