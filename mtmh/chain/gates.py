"""The gates of a chain: the teacher, the recall of the index, and the figures against the published version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mtmh.artifacts import Artifact, open_artifact
from mtmh.chain.record import Verdict
from mtmh.chain.state import Figures, State
from mtmh.config import Config, StageName
from mtmh.evaluation.results import load_evaluation
from mtmh.index.layout import IndexSummary
from mtmh.index.versions import CURRENT, current_version


def teacher_gate(config: Config, check: Artifact, state: State) -> Verdict:  # noqa: ARG001
    """Whether the teacher tells topics apart as well as ``content.check`` asks."""
    failures: list[str] = check.summary["failures"]
    asked = config.content.check.model_dump(exclude_none=True)
    reached = [f"{name} {least:g}" for name, least in asked.items() if name.startswith("min_")]
    return Verdict(gate="teacher", passed=not failures, figures=failures or [f"reaches {', '.join(reached)}"])


def index_gate(config: Config, index: Artifact, state: State) -> Verdict:  # noqa: ARG001
    """Whether every head's index finds ``index.min_recall`` of the exact neighbours."""
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


def evaluation_gate(config: Config, evaluation: Artifact, state: State) -> Verdict:
    """Whether recall and topic match are as good as those of the published version, less the allowed drops."""
    name = "against the published version"
    published = published_index(config)
    if published is None:
        return Verdict(gate=name, passed=True, figures=["nothing is published yet"])
    if evaluation.manifest.inputs["index"] == published.manifest.digest:
        return Verdict(gate=name, passed=True, figures=[f"{published.path.name} is the published version"])
    loaded = load_evaluation(evaluation.path)
    now = Figures.of(loaded, version="")
    before = state.figures.get(published.manifest.digest)
    if before is None:
        return Verdict(gate=name, passed=True, figures=[f"{published.path.name} was published without an evaluation"])
    if before.protocol != now.protocol:
        return Verdict(
            gate=name, passed=True, figures=[f"{before.version} was evaluated by another protocol: not comparable"]
        )
    drops = config.chain.max_recall_drop, config.chain.max_match_drop
    rows = [
        (f"recall@{max(now.protocol.recall_at)}", before.recall, now.recall, drops[0]),
        ("L1 match", before.match_l1, now.match_l1, drops[1]),
        ("L2 match", before.match_l2, now.match_l2, drops[1]),
    ]
    passed, figures = True, []
    for what, old, new, drop in rows:
        if old is None or new is None:
            continue
        # Figures are shares of counts: a difference of rounding is none.
        missed = old - new > drop + 1e-12
        passed &= not missed
        verdict = "too low" if missed else "good"
        figures.append(
            f"{what}: {100 * new:.2f} %, was {100 * old:.2f} % ({before.version});"
            f" may drop by {100 * drop:g} points: {verdict}"
        )
    return Verdict(gate=name, passed=passed, figures=figures)


GATES: dict[StageName, Callable[[Config, Artifact, State], Verdict]] = {
    "content_check": teacher_gate,
    "build_index": index_gate,
    "evaluate": evaluation_gate,
}


def published_index(config: Config) -> Artifact | None:
    """The published version of the recipe's index, if there is one."""
    folder: Path = config.model_dir("index")
    if not (folder / CURRENT).is_file():
        return None
    return open_artifact(current_version(folder), "index")
