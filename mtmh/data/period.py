"""The training and the test period of a dataset, and the check that no model knows what is tested."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict

from mtmh.data.schema import DatasetSummary


class Period(BaseModel):
    """Recorded in a checkpoint, so that a later run can tell what the model has seen.

    Attributes:
        train_end: the first instant after all events of T1; None: the source has no clock, or nobody recorded it.
        test_begin: the first instant of T2; None likewise.
        user_test_fraction: share of each user's events in T2; None: the cut is one instant, or nobody recorded it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_end: int | None
    test_begin: int | None
    user_test_fraction: float | None

    @classmethod
    def of(cls, summary: DatasetSummary) -> Self:
        """The period of a dataset; what was prepared before periods were recorded still tells its cut in time."""
        cutoff = None if summary.cutoff is None else int(summary.cutoff)
        return cls(
            train_end=cutoff if summary.train_end is None else summary.train_end,
            test_begin=cutoff if summary.test_begin is None else summary.test_begin,
            user_test_fraction=summary.user_test_fraction,
        )

    def after(self, before: Period | None) -> Period:
        """This period, of a run that goes on from a model of ``before``: what was seen is never forgotten.

        Args:
            before: None: nobody recorded it.
        """
        if before is None or before.train_end is None:
            seen = None
        else:
            seen = None if self.train_end is None else max(self.train_end, before.train_end)
        if why_it_may_leak(before, self) is None:
            # Cut by user and not forced: what this period trains on holds what the one before did.
            return self if seen is None else self.model_copy(update={"train_end": seen})
        # Forced: of each user more may have been seen than this period's share.
        return self.model_copy(update={"train_end": seen, "user_test_fraction": None})


def why_it_may_leak(before: Period | None, now: Period) -> str | None:
    """The reason why a model of the period ``before`` may know what the period ``now`` tests; None: it does not.

    It was not if all that it has seen lies before the first test event. Where both cut each user's events by
    themselves, instants of users overlap; then it was not if the later dataset holds back no larger share of each user:
    in a log that has only grown, a user's first four fifths never shrink.
    """
    if before is None:
        return "it does not say which events it was trained on (it was written before checkpoints did)"
    fractions = (before.user_test_fraction, now.user_test_fraction)
    if fractions[0] is not None and fractions[1] is not None and fractions[1] <= fractions[0]:
        return None
    if before.train_end is None or now.test_begin is None:
        which = "it" if before.train_end is None else "the dataset (mtmh prepare writes it anew)"
        return f"{which} does not say at which instant its periods end"
    if before.train_end <= now.test_begin:
        return None
    return (
        f"it was trained on events until {before.train_end - 1}, and the test period of this dataset begins at "
        f"{now.test_begin}: what it is tested on, it may have learned"
    )
