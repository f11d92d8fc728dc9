"""The end of a run, and that a killed run decides as one that was not."""

from collections.abc import Iterator
from pathlib import Path

from mtmh.distributed.ranks import join_ranks
from mtmh.training.early_stopping import EarlyStopping, read_validation_curve

SCORES = [0.1, 0.3, 0.2, 0.3, 0.25, 0.9]


def figures(start: int = 0) -> Iterator[dict[str, float]]:
    return ({"score": score} for score in SCORES[start:])


def test_it_ends_when_nothing_got_better_for_a_while(tmp_path: Path) -> None:
    with join_ranks("cpu") as ranks:
        measured = figures()
        stopping = EarlyStopping(lambda: next(measured), tmp_path, 20, 3, ranks, print)
        assert [stopping(step) for step in (10, 20, 30, 40, 50)] == [False, False, False, False, True]
    assert (stopping.best.step, stopping.best.epoch) == (20, 1.0)
    assert [point.measured["score"] for point in read_validation_curve(tmp_path)] == SCORES[:5]


def test_a_killed_run_drops_points_after_its_checkpoint_and_goes_on(tmp_path: Path) -> None:
    with join_ranks("cpu") as ranks:
        measured = figures()
        killed = EarlyStopping(lambda: next(measured), tmp_path, 20, 3, ranks, print)
        for step in (10, 20, 30):
            killed(step)
        again = figures(2)
        resumed = EarlyStopping(lambda: next(again), tmp_path, 20, 3, ranks, print, start_step=20)
        assert [resumed(step) for step in (30, 40, 50)] == [False, False, True]
    assert resumed.best.step == 20
    assert [point.step for point in resumed.curve] == [10, 20, 30, 40, 50]


def test_gains_below_a_hundredth_do_not_prolong_a_run(tmp_path: Path) -> None:
    with join_ranks("cpu") as ranks:
        measured = iter([0.2, 0.201, 0.2019, 0.2015, 0.9])
        stopping = EarlyStopping(lambda: {"score": next(measured)}, tmp_path, 20, 3, ranks, print)
        assert [stopping(step) for step in (10, 20, 30, 40)] == [False, False, False, True]
        assert stopping.best.step == 10, "nor are they worth the steps of the second run"
        measured = iter([0.2, 0.2015, 0.203, 0.2045, 0.206])
        creeping = EarlyStopping(lambda: {"score": next(measured)}, tmp_path / "other", 20, 3, ranks, print)
        (tmp_path / "other").mkdir()
        assert not any(creeping(step) for step in (10, 20, 30, 40, 50)), "small gains add up"
        assert creeping.best.step == 40, "0.206 is better than 0.2045 by less than a hundredth"
