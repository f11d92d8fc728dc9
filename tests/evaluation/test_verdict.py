"""The verdict: the words that go with given figures."""

from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Against, Evaluation, Protocol, Row, RowKind
from mtmh.evaluation.verdict import verdict


def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value=value, standard_error=half / 2, low=value - half, high=value + half)


def row(
    name: str, kind: RowKind, recalls: tuple[float, float], *, alpha: float | None = None, length: float = 20
) -> Row:
    recall = dict(zip((5, 20), map(estimate, recalls), strict=True))
    return Row(
        name=name,
        kind=kind,
        alpha=alpha,
        recall=recall,
        ndcg=recall,
        hit_rate=recall,
        fresh_recall={5: None, 20: None},
        match_l1=None,
        match_l2=estimate(0.4),
        coverage=0.5,
        popular=None,
        fresh=None,
        list_length=length,
    )


def evaluation(rows: list[Row], against: list[Against]) -> Evaluation:
    return Evaluation(
        model="mine", description="", dataset="test", dataset_digest="0", num_items=100, num_users=10,
        num_users_without_truth=0, num_pairs=20, k_ann=30, num_probes=3, alpha=50, seed=0,
        preranker="head-score", sorter="head-score", steps=7, rows=rows, against=against,
        protocol=Protocol(num_triggers=5, k=4, recall_at=[5, 20], exclude_seen=True),
    )  # fmt: skip


def beside(k: int, difference: float) -> Against:
    return Against(recall_at=k, yardstick="EASE", difference=estimate(difference))


def test_ahead_at_every_cut_off() -> None:
    rows = [row("mine, merged, alpha = 50", "merged", (0.12, 0.30), alpha=50)]
    assert verdict(evaluation(rows, [beside(5, 0.02), beside(20, 0.05)])) == [
        "mine is ahead of the best yardstick at every cut-off.",
        "recall@5: 12.00 %, EASE 10.00 %: +20% (+2.00, 95 % interval +1.00 to +3.00 points)",
        "recall@20: 30.00 %, EASE 25.00 %: +20% (+5.00, 95 % interval +4.00 to +6.00 points)",
    ]


def test_behind_and_level_with_what_to_try() -> None:
    rows = [
        row("mine, merged, alpha = 50", "merged", (0.10, 0.20), alpha=50, length=10),
        row("mine, alpha = 30", "alpha", (0.10, 0.22), alpha=30),
        row("mine, learned sorter", "preranking", (0.12, 0.25)),
        row("mine, exact search", "exact", (0.10, 0.24)),
        row("item-item cosine", "yardstick", (0.1, 0.1)),
    ]
    lines = verdict(evaluation(rows, [beside(5, 0.005), beside(20, -0.05)]))
    assert lines[0] == "mine is level with the best yardstick at recall@5, behind the best yardstick at recall@20."
    assert "L2 topic match: 40.00 %, item-item cosine 40.00 %" in lines
    assert (
        "Best alpha for recall@20: 30, 22.00 % and L2 match 40.00 %; the recipe's 50: 20.00 % and L2 match 40.00 %"
        in lines
    )
    hints = [line for line in lines if line.startswith("Try: ")]
    assert [hint.split(",")[0].split(":")[1].strip() for hint in hints] == [
        "a larger retrieval.k_ann or num_probes", "a larger retrieval.num_probes", "retrieval.sorter",
        "retrieval.alpha", "longer training (training.epochs) or a higher learning rate",
    ]  # fmt: skip
    assert "50% full" in hints[0]
    assert "recall@20 24.00 %" in hints[1]
    assert "'learned sorter' has recall@20 25.00 %" in hints[2]


def test_no_other_alpha_is_best_where_it_finds_no_more() -> None:
    rows = [
        row("mine, merged, alpha = 50", "merged", (0.10, 0.20), alpha=50),
        row("mine, alpha = 30", "alpha", (0.10, 0.20), alpha=30),
    ]
    lines = verdict(evaluation(rows, [beside(5, 0.02), beside(20, 0.05)]))
    assert "Best alpha for recall@20: 50, 20.00 % and L2 match 40.00 %" in lines


def test_without_yardsticks_nothing_is_claimed() -> None:
    assert verdict(evaluation([row("mine", "merged", (0.1, 0.2))], [])) == [
        "No yardstick was measured: nothing says whether these figures are good."
    ]
