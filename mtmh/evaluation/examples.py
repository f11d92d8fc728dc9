"""Example triggers for the report, with the answers of each head and of the merge."""

from __future__ import annotations

from mtmh.data.arrays import ItemId
from mtmh.evaluation.results import Example, ShownItem
from mtmh.retrieval.answers import RetrievedItem, SideBySide
from mtmh.retrieval.catalogue import ItemDescription
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever

NUM_EXAMPLES = 10
_LOOKED_AT = 40  # popular items that examples are chosen from
_SHOWN = 6  # answers of a list
_OF_A_TOPIC = 3  # examples at most, while there are others


def find_examples(retriever: Retriever) -> list[Example]:
    """Popular items whose heads differ and stay on topic, so that a reader sees what the heads are for.

    They show how the model answers; how well it does so is what the figures are for.
    """
    popular = retriever.catalogue.ids(retriever.catalogue.popular(_LOOKED_AT, retriever.catalogue.answerable))
    k = min(_SHOWN, retriever.defaults.k)
    seen = [retriever.retrieve_side_by_side(Query([item], k=k)) for item in popular]
    seen.sort(key=_telling, reverse=True)
    chosen: list[SideBySide] = []
    topics: dict[str, int] = {}
    spare: list[SideBySide] = []
    for found in seen:
        topic = found.descriptions[found.trigger].topic_l1
        topics[topic] = topics.get(topic, 0) + 1
        (chosen if not topic or topics[topic] <= _OF_A_TOPIC else spare).append(found)
    return [_example(found) for found in [*chosen, *spare][:NUM_EXAMPLES]]


def _telling(found: SideBySide) -> float:
    """How well an item shows the point: the share of answers that one head alone has, and of those on topic."""
    answers = [answer.item for head in found.heads.values() for answer in head]
    if not answers:
        return 0.0
    topic = found.descriptions[found.trigger].topic_l1
    on_topic = sum(topic != "" and found.descriptions[item].topic_l1 == topic for item in answers)
    return (len(set(answers)) + on_topic) / len(answers)


def _example(found: SideBySide) -> Example:
    own = found.descriptions[found.trigger].topic_l1

    def shown(answers: list[RetrievedItem]) -> list[ShownItem]:
        return [_item(answer.item, found.descriptions[answer.item], answer.head, own) for answer in answers]

    return Example(
        trigger=_item(found.trigger, found.descriptions[found.trigger], "", ""),
        heads={head: shown(answers) for head, answers in found.heads.items()},
        merged=shown(found.merged) if len(found.heads) > 1 else [],
    )


def _item(item: ItemId, described: ItemDescription, head: str, own: str) -> ShownItem:
    topics = list(dict.fromkeys(filter(None, (described.topic_l1, described.topic_l2))))
    same = described.topic_l1 == own if own and described.topic_l1 else None
    return ShownItem(item=str(item), text=described.text, topics=topics, head=head, own_topic=same)
