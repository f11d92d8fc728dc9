"""The protocol's parts, and the whole of it against a plain Python re-implementation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_world import make_model, make_world

from mtmh.data.dataset import Dataset, EvaluationUsers, open_dataset
from mtmh.data.histories import Histories, last_distinct
from mtmh.evaluation import protocol, ranked
from mtmh.evaluation.cohort import make_cohort
from mtmh.evaluation.evaluate import evaluate
from mtmh.evaluation.results import Evaluation, load_evaluation


def ragged(lists: list[list[int]]) -> Histories:
    items = np.array([item for row in lists for item in row], np.int32)
    return Histories(items, np.cumsum([0, *map(len, lists)]))


def test_triggers_are_the_last_distinct_items() -> None:
    histories = ragged([[1, 2, 3, 2], [], [5, 5, 5], [9, 8, 7, 9]])
    expected = [[2, 3, 1], [-1, -1, -1], [5, -1, -1], [9, 7, 8]]
    assert last_distinct(histories, 3).tolist() == expected
    assert last_distinct(histories, 1)[:, 0].tolist() == [2, -1, 5, 9]


def test_seen_items_are_no_ground_truth() -> None:
    users = EvaluationUsers(np.array([10, 11, 12]), ragged([[1, 2], [3], [4, 4]]), ragged([[2, 5, 6], [3], [1]]))
    cohort = make_cohort(users, num_triggers=5, exclude_seen=True)
    assert cohort.user_index.tolist() == [10, 12]
    assert (cohort.truth.items.tolist(), cohort.truth.offsets.tolist()) == ([5, 6, 1], [0, 2, 3])
    assert (cohort.seen.items.tolist(), cohort.seen.offsets.tolist()) == ([1, 2, 4, 4], [0, 2, 4])
    assert cohort.num_without_truth == 1
    everything = make_cohort(users, num_triggers=5, exclude_seen=False)
    assert everything.truth.items.tolist() == [2, 5, 6, 3, 1]
    assert len(everything.seen.items) == 0


def test_given_events_are_input_and_no_ground_truth() -> None:
    users = EvaluationUsers(np.array([10, 11, 12]), ragged([[1, 2], [3], [4, 4]]), ragged([[5, 6], [7], [8, 9, 4]]))
    cohort = make_cohort(users, num_triggers=5, exclude_seen=True, num_given=1)
    assert cohort.user_index.tolist() == [10, 12]  # the other has nothing left to be asked about
    assert (cohort.histories.items.tolist(), cohort.histories.offsets.tolist()) == ([1, 2, 5, 4, 4, 8], [0, 3, 6])
    assert cohort.triggers[:, :3].tolist() == [[5, 2, 1], [8, 4, -1]]
    assert (cohort.truth.items.tolist(), cohort.truth.offsets.tolist()) == ([6, 9], [0, 1, 2])


def test_nothing_new_to_find_is_said() -> None:
    users = EvaluationUsers(np.array([10]), ragged([[1, 2]]), ragged([[2]]))
    with pytest.raises(ValueError, match="exclude_seen"):
        make_cohort(users, num_triggers=5, exclude_seen=True)


def naive(dataset: Dataset, config: Any, vectors: dict[str, np.ndarray], alpha: float) -> dict[str, float]:
    """The paper's protocol with exact search, one user, trigger and item at a time, in float64."""
    retrieval, settings = config.retrieval, config.evaluation
    users = dataset.evaluation_users(settings.num_users, config.seed)
    topics = {level: dataset.items([f"topic_{level}"]).column(0).to_pylist() for level in ("l1", "l2")}
    counts = dataset.item_table.train_count
    popular = sorted(range(len(counts)), key=lambda item: (-counts[item], item))[: max(1, round(len(counts) / 100))]
    heads = [table.astype(np.float64) for table in vectors.values()]
    length = max(settings.recall_at)

    def merged(lists: list[list[int]], k: int) -> list[int]:
        """The quota merge of one trigger."""
        shares = [1.0] if len(heads) == 1 else [alpha / 100, 1 - alpha / 100]
        quotas = [int(share * k) for share in shares]
        for _ in range(k - sum(quotas)):
            remainders = [share * k - quota for share, quota in zip(shares, quotas, strict=True)]
            quotas[remainders.index(max(remainders))] += 1
        taken: list[int] = []
        for quota, ranked in zip(quotas, lists, strict=True):
            taken += [item for item in ranked[:k] if item not in taken][:quota]
        for ranked in lists:
            taken += [item for item in ranked[:k] if item not in taken][: k - len(taken)]
        return taken

    recalls: dict[int, list[float]] = {k: [] for k in settings.recall_at}
    pairs = {level: [0, 0] for level in topics}
    matches_at_5 = [0, 0]
    recommended: list[int] = []
    ndcg: list[float] = []
    for row in range(len(users.user_index)):
        history = users.histories.items[slice(*users.histories.offsets[row : row + 2])].tolist()
        truth = set(users.test.items[slice(*users.test.offsets[row : row + 2])].tolist())
        seen = set(history) if settings.exclude_seen else set()
        truth -= seen
        if not truth:
            continue
        triggers = list(dict.fromkeys(reversed(history)))[: settings.num_triggers]
        lists: dict[int, list[Any]] = {}
        for trigger in triggers:
            lists[trigger] = []
            for table in heads:
                ranked = sorted(
                    (i for i in range(len(table)) if i != trigger), key=lambda i: -(table[trigger] @ table[i])
                )
                lists[trigger].append([item for item in ranked[: retrieval.k_ann] if item not in seen])
            for item in merged(lists[trigger], retrieval.k):
                for level, labels in topics.items():
                    if labels[trigger] is not None and labels[item] is not None:
                        pairs[level][0] += labels[trigger] == labels[item]
                        pairs[level][1] += 1
        # As many of each trigger as fill the list, from the merge and from any head alone.
        width = retrieval.k
        while width * len(triggers) < length:
            width *= 2
        width = max(retrieval.k, min(width, length))
        while True:
            alone = [set().union(*(found[head][:width] for found in lists.values())) for head in range(len(heads))]
            together = set().union(*(merged(found, width) for found in lists.values()))
            if min(map(len, [*alone, together])) >= length or width >= length:
                break
            width = min(2 * width, length)
        best: dict[int, float] = {}
        brought_by: dict[int, int] = {}
        for trigger in triggers:
            for item in merged(lists[trigger], width):
                score = heads[0][trigger] @ heads[0][item]
                if score > best.get(item, -np.inf):
                    best[item], brought_by[item] = score, trigger
        ranked = sorted(best, key=lambda item: -best[item])[:length]
        recommended += ranked
        for item in ranked[:5]:
            labels = topics["l2"]
            if labels[item] is not None and labels[brought_by[item]] is not None:
                matches_at_5[0] += labels[item] == labels[brought_by[item]]
                matches_at_5[1] += 1
        gain = sum(1 / np.log2(place + 2) for place, item in enumerate(ranked[:5]) if item in truth)
        ndcg.append(gain / sum(1 / np.log2(place + 2) for place in range(min(5, len(truth)))))
        for k in settings.recall_at:
            recalls[k].append(len(truth & set(ranked[:k])) / len(truth))
    return {
        **{f"recall {k}": float(np.mean(values)) for k, values in recalls.items()},
        **{level: matches / total for level, (matches, total) in pairs.items()},
        "match at 5": matches_at_5[0] / matches_at_5[1],
        "ndcg": float(np.mean(ndcg)),
        "hit rate": float(np.mean([hit > 0 for hit in recalls[5]])),
        "coverage": len(set(recommended)) / dataset.num_items,
        "popular": float(np.mean([item in popular for item in recommended])),
        "fresh": float(np.mean([counts[item] == 0 for item in recommended])),
        "length": len(recommended) / len(recalls[settings.recall_at[0]]),
    }


def figures(evaluation: Evaluation, place: int) -> dict[str, float]:
    row = evaluation.rows[place]
    assert row.match_l1 is not None
    assert row.match_l2 is not None
    assert row.popular is not None
    assert row.fresh is not None
    match = row.match[5]
    assert match is not None
    return {
        "match at 5": match.value,
        **{f"recall {k}": estimate.value for k, estimate in row.recall.items()},
        "ndcg": row.ndcg[5].value,
        "hit rate": row.hit_rate[5].value,
        "l1": row.match_l1.value,
        "l2": row.match_l2.value,
        "coverage": row.coverage,
        "popular": row.popular.value,
        "fresh": row.fresh.value,
        "length": row.list_length,
    }


@pytest.mark.parametrize(("alpha", "exclude_seen"), [(50, True), (30, True), (50, False), (100, True), (0, True)])
def test_the_whole_protocol_equals_the_naive_one(tmp_path: Path, alpha: float, exclude_seen: bool) -> None:
    make_world(tmp_path)
    config = make_model(
        tmp_path,
        "two",
        ["engagement", "relevance"],
        retrieval={"k": 5, "k_ann": 30, "num_probes": 6, "alpha": alpha},
        evaluation={
            "num_users": 12, "num_triggers": 6, "recall_at": [2, 5, 15], "alphas": [], "exclude_seen": exclude_seen
        },
    )  # fmt: skip
    dataset = open_dataset(config.dataset_dir)
    vectors = {
        head: np.load(config.model_dir("embeddings") / f"{head}.npy", allow_pickle=False)
        for head in ("engagement", "relevance")
    }
    evaluation = load_evaluation(evaluate(config, tmp_path / "evaluation").path)
    expected = naive(dataset, config, vectors, alpha)
    assert figures(evaluation, 0) == pytest.approx(expected, abs=1e-9)
    # All clusters are probed, so the index loses nothing.
    exact = next(place for place, row in enumerate(evaluation.rows) if row.kind == "exact")
    assert figures(evaluation, exact) == pytest.approx(expected, abs=1e-9)
    assert evaluation.rows[0].list_length == 15, "every list is full"
    # The widths of the users follow from the recipe's alpha and the heads alone, so a head's lists can be wider than
    # another alpha would make them; figures of the first places and of K answers a trigger do not depend on that.
    for place, (row, end) in enumerate(zip(evaluation.rows[1:3], (100, 0), strict=True), start=1):
        assert row.kind == "head"
        of_head, alone = figures(evaluation, place), naive(dataset, config, vectors, end)
        for name in ("l1", "l2", "length"):
            assert of_head[name] == pytest.approx(alone[name], abs=1e-9)
        if alpha == end:
            assert of_head == pytest.approx(alone, abs=1e-9)


def test_blocks_and_chunks_of_users_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_world(tmp_path)
    config = make_model(tmp_path, "two", ["engagement", "relevance"])
    whole = load_evaluation(evaluate(config, tmp_path / "whole").path)
    monkeypatch.setattr(protocol, "_BLOCK_CANDIDATES", 6 * 12 * 5)
    monkeypatch.setattr(protocol, "CHUNK_CANDIDATES", 6 * 12 * 2)
    monkeypatch.setattr(protocol, "_TABLE_CELLS", 0)
    monkeypatch.setattr(ranked, "CHUNK_CANDIDATES", 6 * 12 * 2)
    monkeypatch.setattr(ranked, "_MERGED_ROWS", 3)
    in_parts = load_evaluation(evaluate(config, tmp_path / "parts").path)
    assert in_parts.rows == whole.rows
