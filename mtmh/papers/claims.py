"""What the MTMH paper claims, as differences of measured figures, and whether they hold here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mtmh.papers.adaptive import AdaptiveAlpha
from mtmh.papers.figures import Measured
from mtmh.papers.intervals import Interval
from mtmh.papers.models import (
    BASELINES,
    CONTENT,
    MTMH,
    MULTIMODAL_WEIGHT,
    Part,
    input_name,
    semantic_name,
    weight_name,
)
from mtmh.papers.published import H1, H2, SHARED

Verdict = Literal["holds", "the contrary", "not told", "lists differ"]

# Longer lists find more by themselves: where the mean lengths are further apart, more recall in the longer ones says
# nothing, more in the shorter ones all the more. Match is of the candidates that each trigger keeps, as many for all.
_LENGTHS_DIFFER = 0.01


@dataclass(frozen=True)
class Claim:
    """``more`` is above ``less`` in a column."""

    part: Part
    more: str
    less: str
    column: str


class Judged(BaseModel):
    """A claim and its measurement.

    Attributes:
        part: table or figure that makes it.
        text: in words.
        difference: paired by user and seed, percentage points of the column.
        verdict: ``holds`` and ``the contrary``: the 95 % interval of the difference leaves out 0. ``lists differ``: it
            does, but the lists with more recall are more than a hundredth longer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: Part
    text: str
    difference: Interval
    verdict: Verdict


_RECALL, _MATCH = "recall@500", "L2 match"

CLAIMS: tuple[Claim, ...] = (
    *(Claim("table1", MTMH, other, column) for other in BASELINES for column in (_RECALL, _MATCH)),
    Claim("table1", "NeuCF", "ItemCF", _RECALL),
    Claim("table1", "MoL", "NeuCF", _MATCH),
    Claim("table1", "HLLM", "NeuCF", _MATCH),
    Claim("table1", "NeuCF", "MoL", _RECALL),
    Claim("table1", "NeuCF", "HLLM", _RECALL),
    Claim("table2", MTMH, H1, _RECALL),
    Claim("table2", MTMH, H1, _MATCH),
    Claim("table2", H2, MTMH, _MATCH),
    Claim("table2", H1, H2, _RECALL),
    Claim("table2", MTMH, "MTSH", _RECALL),
    Claim("table2", "MTSH", MTMH, _MATCH),
    Claim("table2", MTMH, "STMH", _RECALL),
    Claim("table2", MTMH, SHARED, _MATCH),
    Claim("table4", MTMH, weight_name(0.0), _RECALL),
    Claim("table4", MTMH, weight_name(0.0), _MATCH),
    Claim("table4", weight_name(5.0), MTMH, _MATCH),
    Claim("table4", MTMH, weight_name(5.0), _RECALL),
    Claim("figure1", CONTENT, "NeuCF", _MATCH),
    Claim("figure1", "NeuCF", CONTENT, _RECALL),
    Claim("figure2", "MTSH", "NeuCF", _MATCH),
    Claim("figure2", "NeuCF", "MTSH", _RECALL),
    Claim("related1", semantic_name(0.5), "NeuCF", _MATCH),
    Claim("related1", "NeuCF", semantic_name(0.5), _RECALL),
    Claim("related2", input_name("both"), semantic_name(MULTIMODAL_WEIGHT), _MATCH),
    Claim("related2", input_name("both"), semantic_name(MULTIMODAL_WEIGHT), _RECALL),
    Claim("related2", input_name("both"), input_name("text"), _MATCH),
    Claim("figure6", f"{MTMH}, alpha = 30", f"{MTMH}, alpha = 70", _MATCH),
    Claim("figure6", MTMH, f"{MTMH}, alpha = 100", _RECALL),
    Claim("figure6", MTMH, f"{MTMH}, alpha = 0", _RECALL),
)


def judge(rows: Mapping[str, Measured], parts: tuple[Part, ...]) -> list[Judged]:
    """All claims of some parts that can be measured."""
    found = []
    for claim in CLAIMS:
        if claim.part not in parts or not {claim.more, claim.less} <= rows.keys():
            continue
        more, less = rows[claim.more], rows[claim.less]
        difference = more.above(less, claim.column)
        if difference is None:
            continue
        text, verdict = f"{claim.more} is above {claim.less} in {claim.column}", _verdict(difference)
        above, below = (more, less) if difference.value > 0 else (less, more)
        is_longer = above.list_length > (1 + _LENGTHS_DIFFER) * below.list_length
        if is_longer and verdict != "not told" and claim.column.startswith("recall"):
            verdict = "lists differ"
        found.append(Judged(part=claim.part, text=text, difference=difference, verdict=verdict))
    return found


def judge_adaptive(found: Sequence[AdaptiveAlpha]) -> list[Judged]:
    """The claim that an alpha for each user finds more than fixed ones; of seeds."""
    if not found:
        return []
    column = f"recall@{found[0].recall_at}"
    claims = {
        f"an alpha for each user is above fixed alphas of equal match in {column}": [f.above_frontier for f in found],
        f"an alpha for each user is above the best fixed alpha in hindsight in {column}": [f.above_best for f in found],
    }
    judged = []
    for text, estimates in claims.items():
        difference = Interval.of(estimates)
        assert difference is not None
        judged.append(Judged(part="adaptive", text=text, difference=difference, verdict=_verdict(difference)))
    return judged


def _verdict(difference: Interval) -> Verdict:
    if abs(difference.value) <= difference.half:
        return "not told"
    return "holds" if difference.value > 0 else "the contrary"
