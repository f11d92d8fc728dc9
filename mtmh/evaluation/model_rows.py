"""Rows of a model: its merge, each head, other alphas, other ways of preranking, and all with exact search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mtmh.config import RetrievalConfig
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.measure import Measure
from mtmh.evaluation.protocol import rank_users
from mtmh.evaluation.ranked import RankedCandidates
from mtmh.evaluation.results import RowKind
from mtmh.evaluation.subject import Subject
from mtmh.retrieval.ranking import HeadScorePreranker, Ranker, UserListSource, keeps_order

# Who keeps the best of each head, who sorts, and whether heads are ranked apart.
_WAYS = {
    "shared preranking": ("", "", "shared"),
    "similarity alone": ("head-score", "head-score", "per-head"),
    "learned preranker": ("learned", "learned", "per-head"),
    "learned sorter": ("head-score", "learned", "per-head"),
    "learned preranker, shared": ("learned", "learned", "shared"),
}


@dataclass(frozen=True)
class ModelRows:
    """A model and the users that it is measured on.

    Attributes:
        name: of the model, with which its rows begin.
        subject: the model's index and rankers.
        settings: of retrieval.
        cohort: the users.
        measure: takes the rows.
    """

    name: str
    subject: Subject
    settings: RetrievalConfig
    cohort: Cohort
    measure: Measure

    def add_own(self, alphas: Sequence[float]) -> None:
        """The merge first; with several heads also each alone, by the common and by its own score, and other alphas.

        Where the sorter has candidates of its own for a user, the list of the first row has them and the others are
        as for requests that name alpha: divided among the heads.
        """
        ranking = self._own
        has_own = isinstance(self.subject.sorter, UserListSource) and self.settings.user_share > 0.0
        if len(self.subject.heads) == 1:
            self._add(self.name, "merged", ranking)
            if has_own:
                self._add(f"{self.name}, the head's alone", "preranking", ranking, heads_alone=True)
            return
        alpha = self.settings.alpha
        self._add(f"{self.name}, merged, alpha = {alpha:g}", "merged", ranking, alpha=alpha)
        # With two heads each one alone is an end of the sweep.
        ends = [100.0, 0.0] if len(self.subject.heads) == 2 else [None] * len(self.subject.heads)
        self._add_heads("head", ranking, ends)
        for place, head in enumerate(self.subject.heads):
            lists = ranking.lists(head=place, by_own_score=True)
            if (lists != ranking.lists(head=place)).any():
                name = f"{self.name}, {head} head by its own score"
                self.measure.add(name, "own-score", ranking.answers(head=place), lists)
        shown = {*alphas, alpha} if has_own else set(alphas) - {alpha}
        for other in sorted(shown - {*ends}):
            self._add(f"{self.name}, heads alone, alpha = {other:g}", "alpha", ranking, alpha=other, heads_alone=True)

    def add_preranked(self, learned: Ranker | None, *, rank_all: bool) -> None:
        """The merge under the other ways of preranking: those that are not the model's own.

        Args:
            learned: the learned ranker, where the subject has none.
            rank_all: also those by which a learned ranker scores every candidate of every trigger.
        """
        own = self.subject.ranked_by
        models = {"learned": learned} if learned is not None else {}
        models |= dict(zip(own, (self.subject.preranker, self.subject.sorter), strict=True))
        rankers = {kind: (model, model) for kind, model in models.items()}
        rankers["head-score"] = (HeadScorePreranker(), self.subject.by_similarity)
        shown = {_outcome(*own, "per-head")}
        for name, (keeps, sorts, preranking) in _WAYS.items():
            keeps, sorts, shared = keeps or own[0], sorts or own[1], preranking == "shared"
            missing = not {keeps, sorts} <= rankers.keys() or (shared and len(self.subject.heads) == 1)
            costly = "learned" in (sorts if shared else keeps) and not rank_all
            if missing or costly or _outcome(keeps, sorts, preranking) in shown:
                continue
            shown.add(_outcome(keeps, sorts, preranking))
            preranker, sorter = rankers[keeps][0], rankers[sorts][1]
            if not shared and (keeps == own[0] or (keeps_order(preranker) and keeps_order(self.subject.preranker))):
                ranking = self._own.sorted_by(sorter)  # the same candidates are kept
            else:
                ranking = self._ranked(self.subject, preranker, sorter, shared=shared)
            self._add(f"{self.name}, {name}", "preranking", ranking)
        self.__dict__.pop("_own", None)  # nothing after this asks for it, and it holds the candidates of all users

    def add_exact(self) -> None:
        """The merge and each head over exact search: what they have more than over the index is the index's loss."""
        ranking = self._ranked(self.subject.exact())
        self._add(f"{self.name}, exact search", "exact", ranking)
        if len(self.subject.heads) > 1:
            self._add_heads("exact", ranking, [None] * len(self.subject.heads), ", exact search")

    @cached_property
    def _own(self) -> RankedCandidates:
        """Ranked by the model's own rankers."""
        return self._ranked(self.subject)

    def _add_heads(
        self, kind: RowKind, ranking: RankedCandidates, alphas: Sequence[float | None], more: str = ""
    ) -> None:
        for place, (head, alpha) in enumerate(zip(self.subject.heads, alphas, strict=True)):
            answers, lists = ranking.answers(head=place), ranking.lists(head=place)
            brought = ranking.brought_by(lists, head=place) if kind == "head" else None
            self.measure.add(f"{self.name}, {head} head{more}", kind, answers, lists, alpha, brought)

    def _add(
        self,
        name: str,
        kind: RowKind,
        ranking: RankedCandidates,
        alpha: float | None = None,
        *,
        heads_alone: bool = False,
    ) -> None:
        lists = ranking.lists(alpha, heads_alone=heads_alone)
        brought = ranking.brought_by(lists, alpha) if kind in ("merged", "exact") else None
        self.measure.add(name, kind, ranking.answers(alpha), lists, alpha, brought)

    def _ranked(
        self,
        subject: Subject,
        preranker: Ranker | None = None,
        sorter: Ranker | None = None,
        *,
        shared: bool = False,
    ) -> RankedCandidates:
        pipeline = subject.pipeline(self.settings, len(self.measure.train_count))
        pipeline = replace(
            pipeline,
            preranker=preranker or pipeline.preranker,
            sorter=sorter or pipeline.sorter,
            shared=shared,
        )
        return rank_users(self.cohort, pipeline, self.measure.length)


def _outcome(keeps: str, sorts: str, preranking: str) -> tuple[str, ...]:
    """The kinds that decide the answers: a shared ranking is the sorter's alone."""
    return (sorts, preranking) if preranking == "shared" else (keeps, sorts, preranking)
