"""Messages of the HTTP API, version 1: documented by OpenAPI, and checked at every request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator

from mtmh.config import ServiceConfig
from mtmh.retrieval.curve import MeasuredCurve
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.query import Query
from mtmh.retrieval.text_search import MOST_WORDS
from mtmh.serving.http_errors import FieldProblem

JsonId = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | Annotated[StrictStr, Field(min_length=1, max_length=256)]
Count = Annotated[StrictInt, Field(ge=1)]
Percent = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Topics = Annotated[list[Annotated[StrictStr, Field(max_length=256)]], Field(min_length=1, max_length=100)]
HeadShare = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=256)]
Value = (
    Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
    | Annotated[StrictStr, Field(max_length=4096)]
    | None
)
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | Annotated[float, Field(strict=True, allow_inf_nan=False)]
Scalar = Number | Annotated[StrictStr, Field(max_length=256)]
Factor = Annotated[float, Field(gt=0.0, le=1000.0, allow_inf_nan=False)]
FeatureRow = dict[Name, Value | Annotated[list[Value], Field(max_length=1000)]]


class Message(BaseModel):
    """Base of all messages: a misspelt field is an error, not silently ignored."""

    model_config = ConfigDict(extra="forbid")


class Range(Message):
    """Numbers from ``min`` to ``max``, both included; one of them may be left out."""

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Range:
        if self.min is None and self.max is None:
            raise ValueError("expected min, max or both")
        return self


Condition = Scalar | Annotated[list[Scalar], Field(min_length=1, max_length=1000)] | Range


class FindParameters(Message):
    """Of GET /v1/items."""

    query: Annotated[
        str,
        Field(max_length=200, description=f"At most {MOST_WORDS} words of the text, or an id; empty: popular items."),
    ] = ""
    limit: Annotated[int, Field(ge=1, le=100)] = 10


class SimilarParameters(Message):
    """Of GET /v1/items/{item_id}/similar."""

    k: Annotated[int | None, Field(ge=1, description="Answers; default: that of GET /v1/index.")] = None
    alpha: Annotated[
        float | None, Field(ge=0, le=100, allow_inf_nan=False, description="Percent from the engagement head.")
    ] = None


class RequestFilters(Message):
    """Conditions on the items of an answer."""

    exclude: Annotated[list[JsonId], Field(description="Items that must not be in an answer.")] = []
    allow: Annotated[list[JsonId] | None, Field(description="If given, only these items may be in an answer.")] = None
    exclude_seen: Annotated[bool, Field(description="Items of the history are no answers.")] = True
    min_first_seen: Annotated[
        StrictInt | None, Field(ge=-(2**63), lt=2**63, description="Only items first seen at this time or later.")
    ] = None
    topic_l1: Annotated[Topics | None, Field(description="Only items of these coarse topics.")] = None
    topic_l2: Annotated[Topics | None, Field(description="Only items of these fine topics.")] = None
    where: Annotated[
        dict[Name, Condition],
        Field(
            max_length=20,
            description="By column (GET /v1/index lists them), what an item must have: a value, one of a list, or a"
            " range of numbers.",
        ),
    ] = {}


class RetrieveRequest(Message):
    """Asks for items: either one list for each trigger, or one list for a user's history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"triggers": [17], "k": 10, "alpha": 50},
                {"history": [17, 4, 23], "k": 20, "filters": {"exclude": [99]}},
                {"triggers": [17], "shares": {"engagement": 0.7, "relevance": 0.3}},
                {"history": [17, 4], "k": 20, "max_per": {"topic_l2": 5, "trigger": 12}, "diversity": 0.2},
                {"triggers": [17], "filters": {"where": {"train_count": {"min": 1}}}, "away_from": [4]},
            ]
        }
    )

    triggers: Annotated[
        list[JsonId] | None, Field(min_length=1, description="Item ids; each gets a list of its own.")
    ] = None
    history: Annotated[
        list[JsonId] | None, Field(min_length=1, description="Items of one user, the latest last; they get one list.")
    ] = None
    k: Annotated[Count | None, Field(description="Answers a list; default: that of GET /v1/index.")] = None
    k_ann: Annotated[Count | None, Field(description="Candidates a head; at least k.")] = None
    num_probes: Annotated[Count | None, Field(description="Clusters searched a head.")] = None
    alpha: Annotated[Percent | None, Field(description="Percent of the answers from the engagement head.")] = None
    shares: Annotated[
        dict[Name, HeadShare] | None,
        Field(
            min_length=1,
            max_length=100,
            description="In the place of alpha: the share of each head, 1 in all; a head that is not named has none.",
        ),
    ] = None
    features: Annotated[
        dict[Name, FeatureRow] | None,
        Field(
            min_length=1,
            description="By id, features of triggers or items of the history that the index may not know; a row has the"
            " fields of a new item. What the index knows it answers from its own vectors.",
        ),
    ] = None
    vectors: Annotated[
        dict[Name, dict[Name, Annotated[list[Number], Field(max_length=4096)]]] | None,
        Field(
            min_length=1,
            description="By id and head, unit vectors of triggers or items of the history that the index may not know,"
            " where services of one model hold shares of the items.",
        ),
    ] = None
    filters: RequestFilters = RequestFilters()
    max_per: Annotated[
        dict[Name, Count],
        Field(
            max_length=10,
            description="By column, answers of a list with the same value, at most; trigger: answers to one item of the"
            " history.",
        ),
    ] = {}
    diversity: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            allow_inf_nan=False,
            description="How much an item's likeness to answers before it counts against it: maximal marginal"
            " relevance.",
        ),
    ] = 0.0
    boosts: Annotated[
        dict[Name, Annotated[dict[Name, Factor], Field(max_length=100)]],
        Field(
            max_length=10, description="By column and value, factors on the scores of candidates; item_id is a column."
        ),
    ] = {}
    away_from: Annotated[
        list[JsonId],
        Field(max_length=50, description="Items that answers should be unlike, and that are no answers themselves."),
    ] = []
    unknown: Annotated[
        Literal["error", "popular"] | None,
        Field(
            description="For an unknown trigger, or a history of nothing known: 404, or popular items. Default: that of"
            " the recipe."
        ),
    ] = None
    side_by_side: Annotated[bool, Field(description="With one trigger: also what each head alone answers.")] = False
    describe: Annotated[bool, Field(description="Also text and topics of all items of the answer.")] = False
    timeout_ms: Annotated[Count | None, Field(description="Time budget; at most the service's own.")] = None

    @model_validator(mode="after")
    def _one_question(self) -> RetrieveRequest:
        if (self.triggers is None) == (self.history is None):
            raise ValueError("expected either triggers or history")
        if self.side_by_side and (self.triggers is None or len(self.triggers) != 1):
            raise ValueError("side_by_side expects exactly one trigger")
        if self.shares is not None and self.alpha is not None:
            raise ValueError("expected either alpha or shares")
        if self.shares is not None and abs(sum(self.shares.values()) - 1.0) > 1e-6:
            raise ValueError(f"expected shares that sum to 1, not to {sum(self.shares.values()):g}")
        named = {str(item) for item in self.triggers or self.history or ()}
        for field in ("features", "vectors"):
            others = sorted(set(getattr(self, field) or ()) - named)
            if others:
                raise ValueError(f"{field}: {others[0]} is neither a trigger nor in the history")
        return self

    def query(self) -> Query:
        """The request as the retriever takes it."""
        features: dict[int | str, Any] = dict((self.features or {}).items())
        filters = dict(self.filters) | {"where": self.filters.model_dump(include={"where"})["where"]}
        return Query(
            self.triggers,
            history=self.history,
            k=self.k,
            k_ann=self.k_ann,
            num_probes=self.num_probes,
            alpha=self.alpha,
            shares=self.shares,
            filters=Filters(**filters),
            max_per=self.max_per,
            diversity=self.diversity,
            boosts={name: dict[str | int | float, float](by_value.items()) for name, by_value in self.boosts.items()},
            away_from=self.away_from,
            unknown=self.unknown,
            features=features,
            vectors=dict[int | str, Any]((self.vectors or {}).items()),
        )


class AnsweredItem(BaseModel):
    """One item of an answer."""

    item: int | str
    score: Annotated[float, Field(description="Comparable over all items of a request.")]
    similarity: Annotated[
        float | None, Field(description="To the trigger, under the head that brought it; null: no head did.")
    ]
    head: Annotated[str, Field(description="The head that brought it, user (the learned preranker), or popular.")]
    trigger: Annotated[
        int | str | None, Field(description="The trigger it answers; null: nothing of the history is known.")
    ]


class Answer(BaseModel):
    """The list of one trigger, grouped by head; or of a history, sorted by score."""

    trigger: Annotated[int | str | None, Field(description="null for a history.")]
    items: list[AnsweredItem]
    ignored: Annotated[
        list[int | str] | None, Field(description="With a history: its items that the index does not know.")
    ] = None
    heads: Annotated[dict[str, list[AnsweredItem]] | None, Field(description="With side_by_side: each head alone.")] = (
        None
    )
    together: Annotated[
        list[AnsweredItem] | None,
        Field(
            description="With side_by_side: what users engage with who engage with the trigger, by plain co-occurrence"
            " (cosine); null: the index has no table of it."
        ),
    ] = None


class ItemText(BaseModel):
    """Columns of an item for people to read; empty where there are none."""

    item: int | str
    text: str
    topic_l1: str
    topic_l2: str
    image: Annotated[str, Field(description="Address of its picture.")] = ""


class RetrieveResponse(BaseModel):
    """Answers, all of one index version."""

    version: Annotated[str, Field(description="Of the index that answered.")]
    alpha: Annotated[float | None, Field(description="null: the request gave shares.")]
    answers: list[Answer]
    notes: Annotated[
        list[str],
        Field(description="What is to be said beside the answers: conditions that no item meets, unknown ids."),
    ] = []
    descriptions: Annotated[list[ItemText] | None, Field(description="With describe: each item once.")] = None


class ItemsResponse(BaseModel):
    """Items found by their text."""

    version: str
    items: list[ItemText]


class ItemResponse(ItemText):
    """One item, and the index version that knows it."""

    version: str


class NewItems(Message):
    """Fresh items: each its id, the features of the model, and optional display columns."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"item_id": 900001, "text": "blue enamel mug", "brand": None, "price": 12.5}]}]
        }
    )

    items: Annotated[
        list[dict[Annotated[str, Field(max_length=256)], Any]],
        Field(
            min_length=1,
            description="Rows with item_id, every feature (null: not known), text, topic_l1, topic_l2, and"
            " content_embedding, or text (and image) for the service's teacher.",
        ),
    ]


class Written(BaseModel):
    """The outcome of a write."""

    version: str
    items: Annotated[list[int | str], Field(description="Ids that are there, or gone, from now on.")]


class Feedback(Message):
    """Tells which items of an answer a user was shown, and which of these the user engaged with."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"request_id": "4f2a", "shown": [4, 23, 8], "engaged": [23]}]}
    )

    request_id: Annotated[
        StrictStr, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="X-Request-ID of the answer.")
    ]
    shown: Annotated[list[JsonId], Field(min_length=1, max_length=10_000)]
    engaged: Annotated[list[JsonId], Field(description="Of the items shown; empty: none, which counts too.")] = []

    @model_validator(mode="after")
    def _engaged_was_shown(self) -> Feedback:
        others = sorted(set(map(str, self.engaged)) - set(map(str, self.shown)))
        if others:
            raise ValueError(f"engaged: {others[0]} is not among the items shown")
        return self

    @property
    def reward(self) -> float:
        """Share of the items shown that the user engaged with."""
        return len(set(map(str, self.engaged))) / len(set(map(str, self.shown)))


class FeedbackTaken(BaseModel):
    """The outcome of feedback."""

    request_id: str
    counted: Annotated[bool, Field(description="false: this request had feedback before.")]


class Estimated(BaseModel):
    """An estimate of a mean reward."""

    value: float
    standard_error: float


class AlphaValue(BaseModel):
    """What feedback says of one alpha."""

    alpha: float
    chosen: Annotated[int, Field(description="How often since the start of the service.")]
    reward: Annotated[
        dict[Literal["ips", "snips", "dr"], Estimated],
        Field(description="Estimates of the mean reward if it were the alpha of every request; empty: no feedback."),
    ]


class FeedbackResponse(BaseModel):
    """All that was learned from feedback."""

    num_feedback: int
    reward: Annotated[float | None, Field(description="Mean share of engaged items, as answered; null: no feedback.")]
    alphas: list[AlphaValue]


class IndexResponse(BaseModel):
    """The index that the service answers from, and its limits."""

    model: str
    version: str
    num_items: int
    heads: list[str]
    k: int
    k_ann: int
    num_probes: int
    alpha: float
    max_k: int
    max_history: int
    columns: Annotated[list[str], Field(description="Columns for filters.where, max_per and boosts.")]
    features: Annotated[list[str], Field(description="Fields that a new item must have beside item_id; may be null.")]
    writes: Annotated[bool, Field(description="Whether a key for the routes that write is configured.")]
    adaptive_alpha: Annotated[bool, Field(description="Whether alpha is chosen from feedback (GET /v1/feedback).")]
    curve: MeasuredCurve | None


_ID_BYTES, _FEATURES_BYTES = 64, 2048
_NUMBER_BYTES = 26  # of the longest number of 64 bits, a comma and a space

_SHAPED_COSTS = 10  # times as much as other lists

# Field of RetrieveRequest -> the setting that bounds its value or its length.
_LIMITS = {
    ("triggers",): "max_triggers",
    ("history",): "max_history",
    ("features",): "max_new_items",
    ("vectors",): "max_new_items",
    ("k",): "max_k",
    ("k_ann",): "max_k_ann",
    ("num_probes",): "max_num_probes",
    ("filters", "exclude"): "max_filter_items",
    ("filters", "allow"): "max_filter_items",
}


def beyond_limits(request: RetrieveRequest, limits: ServiceConfig, default_k_ann: int) -> list[FieldProblem]:
    """The fields of a request that ask for more than this service gives."""
    found = []
    for path, setting in _LIMITS.items():
        value: Any = request
        for name in path:
            value = getattr(value, name)
        most = getattr(limits, setting)
        several = isinstance(value, (list, dict))
        size = len(value) if several else value
        if size is not None and size > most:
            what = f"at most {most} items" if several else f"at most {most}"
            found.append(FieldProblem(field=".".join(("body", *path)), expected=f"{what}, not {size}"))
    num_triggers = len(request.triggers or request.history or ())
    k_ann = request.k_ann or max(default_k_ann, request.k or 0)
    shaped = request.triggers is not None and bool(request.max_per or request.diversity)
    # Lists under caps or with diversity are chosen one by one.
    most = limits.max_candidates // (_SHAPED_COSTS if shaped else 1)
    if not found and num_triggers * k_ann > most:
        expected = f"at most {most // num_triggers} for {num_triggers} triggers, not {k_ann}"
        found.append(FieldProblem(field="body.k_ann", expected=expected))
    return found


def largest_body(limits: ServiceConfig, numbers_an_item: int) -> int:
    """Bytes of the largest request that the other limits allow, with ids and features of common length.

    Args:
        limits: of the service.
        numbers_an_item: that may come with an item: the vectors of its heads and its content embedding.
    """
    ids = limits.max_triggers + limits.max_history + 2 * limits.max_filter_items
    return _ID_BYTES * ids + limits.max_new_items * (_FEATURES_BYTES + _NUMBER_BYTES * numbers_an_item)


def names_at(message: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The fields that a message may have at a place of it, as at ``("filters",)``; none where it is no message."""
    for name in place:
        field = message.model_fields.get(str(name))
        kind = field.annotation if field is not None else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        message = kind
    return list(message.model_fields)


def document_limits(schemas: dict[str, Any], limits: ServiceConfig, features: Sequence[str]) -> None:
    """Writes the limits of this service, and an example with the features of its model, into its OpenAPI document."""
    owners = {1: "RetrieveRequest", 2: "RequestFilters"}
    for path, setting in _LIMITS.items():
        schema = schemas[owners[len(path)]]["properties"][path[-1]]
        most = getattr(limits, setting)
        for choice in schema.get("anyOf", [schema]):
            if choice.get("type") == "array":
                choice["maxItems"] = most
            elif choice.get("type") == "object":
                choice["maxProperties"] = most
            elif choice.get("type") == "integer":
                choice["maximum"] = most
    if features:
        example = {"triggers": [900001], "k": 10, "features": {"900001": dict.fromkeys(features)}}
        schemas["RetrieveRequest"]["examples"].append(example)
    schemas["NewItems"]["properties"]["items"]["maxItems"] = limits.max_new_items
