"""A request: triggers or a history, and settings that may be left open; with the plan that a retriever makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from mtmh.config import RetrievalConfig
from mtmh.data.arrays import ItemId
from mtmh.errors import RequestError
from mtmh.retrieval.adjustment import Boosts, check_boosts
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.merge import head_quotas, head_shares, named_shares
from mtmh.retrieval.variety import TRIGGER, Variety
from mtmh.tower.item_features import RawFeatures


@dataclass(frozen=True)
class Query:
    """A request; None leaves a setting to the retriever's defaults.

    Attributes:
        triggers: item ids; each is answered with a list of its own.
        history: item ids that one user engaged with, the latest last, instead of triggers; they are answered with one
            list. A repeated one counts once, at its last place. The order matters to a learned preranker alone.
        k: answers a list; all that are allowed if these are fewer.
        k_ann: candidates a trigger and head; may exceed the catalogue. No more are searched for than are kept where the
            preranker keeps the order of the search, as ``head-score`` does, and no boost changes it.
        num_probes: clusters searched a head.
        k_trigger: candidates that a trigger of a history and a head keep after preranking; more where the list would
            not fill.
        alpha: percent of the answers from the engagement head; the other heads share the rest equally. With a history,
            None leaves ``retrieval.user_share`` of the list to the learned preranker, whichever head found an item.
        shares: share of each head instead, summing to 1; heads that are not named have none.
        filters: what may be an answer; a trigger is never in its own.
        max_per: column -> answers of a list with one value of it, at most, as in ``{"brand": 3}``; ``trigger``: answers
            to one item of the history.
        diversity: 0 .. 1, how much an answer's likeness to those before it counts against it; see `variety`.
        boosts: column -> value -> factor on the scores of candidates, as in ``{"brand": {"acme": 1.5}}`` or
            ``{"item_id": {17: 0.5}}``; the factors of all values of an item are multiplied.
        away_from: items that answers should be unlike, such as those that the user turned down: a candidate's score is
            multiplied by 1 less its largest cosine to one of them; unknown ones are passed over.
        unknown: answer to a trigger that the index does not know, or to a history of such alone.
        features: features of triggers that the index may not know, by id; they are embedded on the fly. What the index
            knows it answers from its own vectors.
        vectors: in the place of features, by id and head: unit vectors [D] of the same model, as another index that
            holds another share of the items has them.

    Raises:
        RequestError: a setting out of range, or settings that exclude each other; the message names them.

    Example:
        >>> Query([17], k=10, alpha=70).ids
        [17]
    """

    triggers: Sequence[ItemId] | None = None
    _: KW_ONLY
    history: Sequence[ItemId] | None = None
    k: int | None = None
    k_ann: int | None = None
    num_probes: int | None = None
    k_trigger: int | None = None
    alpha: float | None = None
    shares: Mapping[str, float] | None = None
    filters: Filters = field(default_factory=Filters)
    max_per: Mapping[str, int] = field(default_factory=dict)
    diversity: float = 0.0
    boosts: Boosts = field(default_factory=dict)
    away_from: Sequence[ItemId] = ()
    unknown: Literal["error", "popular"] | None = None
    features: Mapping[ItemId, RawFeatures] = field(default_factory=dict)
    vectors: Mapping[ItemId, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.triggers is None) == (self.history is None):
            raise RequestError("expected either triggers or a history")
        if self.history is not None and not len(self.history):
            raise RequestError("history is empty, expected at least one item")
        for name in ("k", "k_ann", "num_probes", "k_trigger"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}, expected at least 1")
        if self.alpha is not None and not 0.0 <= self.alpha <= 100.0:
            raise RequestError(f"alpha is {self.alpha}, expected a percentage from 0 to 100")
        if self.alpha is not None and self.shares is not None:
            raise RequestError("alpha and shares both divide the answers among the heads: give one of them")
        if not 0.0 <= self.diversity <= 1.0:
            raise RequestError(f"{self.diversity}, expected a number from 0 to 1", "diversity")
        for name, most in self.max_per.items():
            if most < 1:
                raise RequestError(f"{most}, expected at least 1", f"max_per.{name}")
        if TRIGGER in self.max_per and self.history is None:
            raise RequestError("only the list of a history has several triggers", f"max_per.{TRIGGER}")
        check_boosts(self.boosts)

    @property
    def variety(self) -> Variety:
        """Caps and diversity."""
        return Variety(self.max_per, self.diversity)

    @property
    def ids(self) -> Sequence[ItemId]:
        """The triggers, or the items of the history."""
        found = self.triggers if self.history is None else self.history
        assert found is not None
        return found

    def plan(self, defaults: RetrievalConfig, heads: Sequence[str], *, user_source: bool = False) -> QueryPlan:
        """The request with the defaults for what it leaves open.

        Args:
            defaults: of the retriever.
            heads: its heads, the engagement head first.
            user_source: whether it has candidates of a user beside those of the heads; a request that says how the
                heads share its list gets none of them.

        Raises:
            RequestError: more answers than candidates, or shares that do not fit the heads.
        """
        k = self.k if self.k is not None else defaults.k
        # A larger K than the default asks for at least as many candidates.
        k_ann = self.k_ann if self.k_ann is not None else max(defaults.k_ann, k)
        if k > k_ann:
            raise RequestError(f"k is {k}, more than the {k_ann} candidates of a head (k_ann)")
        alpha = self.alpha if self.alpha is not None else defaults.alpha
        shares = head_shares(alpha, len(heads)) if self.shares is None else named_shares(self.shares, heads)
        user = user_source and self.history is not None and self.alpha is None and self.shares is None
        of_user = round(k * defaults.user_share / 100.0) if user else 0
        return QueryPlan(
            k=k,
            kept=k,
            k_ann=k_ann,
            num_probes=self.num_probes if self.num_probes is not None else fixed_probes(defaults),
            alpha=alpha,
            quotas=dict(zip(heads, head_quotas(shares, k - of_user), strict=True)),
            of_user=of_user,
        )


@dataclass(frozen=True)
class QueryPlan:
    """Orders of one request to search, preranking and merge.

    Attributes:
        k: answers a list.
        kept: candidates that a trigger keeps of each head.
        k_ann: candidates a trigger and head.
        num_probes: clusters searched a head.
        alpha: percent of the engagement head, where the request has no shares.
        quotas: head -> answers of it.
        of_user: answers of the user's own candidates; with the quotas ``k`` in all.
    """

    k: int
    kept: int
    k_ann: int
    num_probes: int
    alpha: float
    quotas: Mapping[str, int]
    of_user: int = 0


def fixed_probes(defaults: RetrievalConfig) -> int:
    """The number of probes among the defaults of a retriever, where ``auto`` has become what its index chose."""
    assert defaults.num_probes != "auto"
    return defaults.num_probes
