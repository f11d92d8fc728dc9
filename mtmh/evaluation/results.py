"""The content of ``metrics.json``: rows, comparisons with yardsticks and other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mtmh.artifacts import open_artifact
from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.user_values import UserValues
from mtmh.retrieval.curve import Curve, CurvePoint

METRICS = Path("metrics.json")
USERS = Path("users.parquet")  # per-user values, for paired comparisons
REPORT = Path("report.html")

RowKind = Literal["merged", "head", "own-score", "alpha", "preranking", "exact", "published", "yardstick", "candidates"]


Band = Literal["bottom", "middle", "top"]  # of triggers by popularity


class Row(BaseModel):
    """One line of the table.

    Attributes:
        name: for people.
        kind: ``merged`` at the recipe's alpha; ``head`` alone; ``own-score``: a head alone, sorted by its own
            similarity; ``alpha``: another merge; ``preranking``: as merged, ranked in another way; ``exact``: as merged
            or a head, with exact search in place of the index; ``published``: the published version by the recipe's
            settings; ``yardstick``: no model of ours; ``candidates``: those of a yardstick, sorted as the model sorts.
        alpha: percent of the engagement head, where there is a choice.
        recall: by cut-off.
        ndcg: by cut-off.
        hit_rate: share of users with a hit, by cut-off.
        fresh_recall: share of the users' future items without a training event that were found, by cut-off; None:
            there are none.
        match_l1: share of <trigger, candidate> pairs of the same coarse topic; None without topics.
        match_l2: the same for the fine topic.
        coverage: share of the catalogue in any user's list.
        popular: share of recommendations in the most popular 1 % of the catalogue by training count.
        fresh: share of recommendations without a training event.
        list_length: mean length of a user's list.
        match: by cut-off, share of the list's items that have the fine topic of the trigger that brought them.
        interests: by cut-off, share of the fine topics of the test period that the list is about (user interest
            recall).
        novel_interests: by cut-off, share of those of them new to the user that a hit is about (novel interest
            discovery).
        diversity: by cut-off, share of pairs of the list's items that have different fine topics.
        match_by_trigger: L2 match of triggers of the ``bottom`` tenth by training count, of the ``top`` tenth, and of
            those between (``middle``).
        young: share of recommendations whose first training event is less than 48 hours before the test period, or
            that have none; None: no cut in time.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: RowKind
    alpha: float | None = None
    recall: dict[int, Estimate]
    ndcg: dict[int, Estimate]
    hit_rate: dict[int, Estimate]
    fresh_recall: dict[int, Estimate | None]
    match_l1: Estimate | None
    match_l2: Estimate | None
    coverage: float
    popular: Estimate | None
    fresh: Estimate | None
    list_length: float
    match: dict[int, Estimate | None] = {}
    interests: dict[int, Estimate | None] = {}
    novel_interests: dict[int, Estimate | None] = {}
    diversity: dict[int, Estimate | None] = {}
    match_by_trigger: dict[Band, Estimate | None] = {}
    young: Estimate | None = None


class Protocol(BaseModel):
    """The settings that must agree before two evaluations are compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_triggers: int
    k: int
    recall_at: list[int]
    exclude_seen: bool
    given_events: int = 0


class Against(BaseModel):
    """This model's merged answers minus those of the yardstick that is best at a cut-off, paired by user."""

    model_config = ConfigDict(extra="forbid")

    recall_at: int
    yardstick: str
    difference: Estimate

    @property
    def side(self) -> Literal["ahead", "level", "behind"]:
        """The model's place beside the yardstick; level: the 95 % interval has 0 in it."""
        if self.difference.low > 0:
            return "ahead"
        return "behind" if self.difference.high < 0 else "level"


class Difference(BaseModel):
    """This model's merged answers minus another's, on the users that both evaluated.

    Attributes:
        num_users: shared.
        recall: by cut-off.
        match_l2: of topics; None: there are none.
        steps: of training, this model's and the other's; None: not known.
        settings: that differ, by their dotted key: this model's value and the other's.
    """

    model_config = ConfigDict(extra="forbid")

    num_users: int
    recall: dict[int, Estimate]
    match_l2: Estimate | None
    steps: tuple[int | None, int | None]
    settings: dict[str, tuple[Any, Any]]


class Published(BaseModel):
    """The published version that was measured beside, in the row of kind ``published``.

    Attributes:
        version: its name.
        unmeasured: why there is no such row; empty: there is one.
    """

    model_config = ConfigDict(extra="forbid")

    version: str
    unmeasured: str = ""


class ValidationPoint(BaseModel):
    """The figures that training measured after some steps.

    Attributes:
        step: finished steps.
        epoch: the same in passes over the pairs.
        measured: figures by name, the ``score`` that decides among them.
    """

    model_config = ConfigDict(extra="forbid")

    step: int
    epoch: float
    measured: dict[str, float]


class Origin(BaseModel):
    """The making of the index that was evaluated; empty or None: not known.

    Attributes:
        mtmh_version: that evaluated.
        index: name of the version, or of the folder.
        index_built: date and time, UTC.
        data_read: when the dataset was prepared.
        train_events: of the training period.
        test_events: of the test period.
        train_until: first date after the training period; empty without a clock.
        steps: of training.
        best_step: of the run that found how long to train.
        validation: what that run measured on the end of the training period.
    """

    model_config = ConfigDict(extra="forbid")

    mtmh_version: str = ""
    index: str = ""
    index_built: str = ""
    data_read: str = ""
    train_events: int | None = None
    test_events: int | None = None
    train_until: str = ""
    steps: int | None = None
    best_step: int | None = None
    validation: list[ValidationPoint] = []


class ShownItem(BaseModel):
    """An item for people to look at.

    Attributes:
        item: its id, as text.
        text: empty where there is none.
        topics: coarse, then fine; those that there are.
        head: that brought it; empty for a trigger.
        own_topic: it has the trigger's coarse topic; None: one of the two has none.
    """

    model_config = ConfigDict(extra="forbid")

    item: str
    text: str
    topics: list[str]
    head: str = ""
    own_topic: bool | None = None


class Example(BaseModel):
    """The first answers to a trigger: of each head alone, and merged; one head has no merge."""

    model_config = ConfigDict(extra="forbid")

    trigger: ShownItem
    heads: dict[str, list[ShownItem]]
    merged: list[ShownItem]


class Evaluation(BaseModel):
    """The content of ``metrics.json``."""

    model_config = ConfigDict(extra="forbid")

    model: str
    description: str
    dataset: str
    dataset_digest: str
    num_items: int
    num_users: int
    num_users_without_truth: int
    num_pairs: int  # of <user, trigger>
    k_ann: int
    num_probes: int
    alpha: float
    seed: int
    preranker: str  # as the settings name it
    sorter: str
    protocol: Protocol
    rows: list[Row]
    published: Published | None = None  # None: it was not asked for
    against: list[Against] = []  # by cut-off, the best yardstick at each; empty: none was measured
    differences: dict[str, Difference] = {}  # by name of the other model
    steps: int | None  # of training; None: not known
    origin: Origin = Origin()
    examples: list[Example] = []
    notes: list[str] = []  # cut-offs that were capped, yardsticks that were left out

    def row(self, kind: RowKind) -> Row:
        """The first row of a kind."""
        return next(row for row in self.rows if row.kind == kind)

    def of_kind(self, *kinds: RowKind) -> list[Row]:
        """All rows of these kinds, in their order."""
        return [row for row in self.rows if row.kind in kinds]

    @property
    def merged(self) -> Row:
        """The row of the model's answers by the recipe, to requests that name no alpha."""
        return self.row("merged")

    def sweep(self) -> list[Row]:
        """Every merge of the heads by rising alpha, heads alone included; empty for a model with one head."""
        rows = {
            row.alpha: row for row in self.rows if row.kind in ("merged", "head", "alpha") and row.alpha is not None
        }
        return [rows[alpha] for alpha in sorted(rows)]

    def curve(self) -> Curve | None:
        """Recall at the largest cut-off and topic match of every alpha; None for a model with one head."""
        sweep = self.sweep()
        if len(sweep) < 2:
            return None
        fine = all(row.match_l2 is not None for row in sweep)
        largest = self.protocol.recall_at[-1]
        points = []
        for row in sweep:
            match = row.match_l2 if fine else row.match_l1
            assert row.alpha is not None
            recall = row.recall[largest]
            points.append(
                CurvePoint(
                    alpha=row.alpha,
                    recall=recall.value,
                    match=match.value if match is not None else None,
                    recall_interval=(recall.low, recall.high),
                    match_interval=(match.low, match.high) if match is not None else None,
                )
            )
        return Curve(recall_at=largest, topic="topic_l2" if fine else "topic_l1", points=points)


def users_file(place: int) -> Path:
    """The file of per-user values of a row; the first row, the merged one, is compared most."""
    return USERS if place == 0 else USERS.with_stem(f"{USERS.stem}-{place}")


def user_values(path: Path, evaluation: Evaluation, row: Row) -> UserValues:
    """The per-user values behind a row.

    Args:
        path: of the evaluation artifact.
        evaluation: its content.
        row: of it.
    """
    return UserValues.read(path / users_file(evaluation.rows.index(row)))


def load_evaluation(path: Path) -> Evaluation:
    """Reads an evaluation artifact.

    Raises:
        ValueError: none there, or its metrics are not of this form.
    """
    artifact = open_artifact(path, "evaluation")
    try:
        return Evaluation.model_validate_json((artifact.path / METRICS).read_text())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path / METRICS}: {field}: {first['msg']}") from None
