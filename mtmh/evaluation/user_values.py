"""Figures of each user behind a row of the table: what intervals and paired differences are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mtmh.evaluation.metrics import Bootstrap, Estimate, Values


@dataclass(frozen=True)
class UserValues:
    """Sums and shares of U users under one way to answer.

    Attributes:
        user_index: [U] int64.
        recall: cut-off -> [U].
        l1: matching and counted pairs, [U] each.
        l2: the same for the fine topic.
    """

    user_index: npt.NDArray[np.int64]
    recall: dict[int, Values]
    l1: tuple[Values, Values]
    l2: tuple[Values, Values]

    def write(self, path: Path) -> None:
        """Writes one row a user."""
        names = [f"recall_{k}" for k in self.recall] + ["l1_matches", "l1_pairs", "l2_matches", "l2_pairs"]
        arrays = [*self.recall.values(), *self.l1, *self.l2]
        pq.write_table(pa.table({"user_index": self.user_index, **dict(zip(names, arrays, strict=True))}), path)

    @classmethod
    def read(cls, path: Path) -> UserValues:
        """Reads what ``write`` wrote."""
        columns = pq.read_table(path)
        table = {name: columns.column(name).to_numpy() for name in columns.column_names}
        recall = {int(name.removeprefix("recall_")): table[name] for name in table if name.startswith("recall_")}
        l1, l2 = ((table[f"{topic}_matches"], table[f"{topic}_pairs"]) for topic in ("l1", "l2"))
        return cls(table["user_index"], recall, l1, l2)

    def select(self, rows: npt.NDArray[np.intp]) -> UserValues:
        """Some of the users."""
        return UserValues(
            self.user_index[rows],
            {k: recall[rows] for k, recall in self.recall.items()},
            (self.l1[0][rows], self.l1[1][rows]),
            (self.l2[0][rows], self.l2[1][rows]),
        )

    def parts(self, column: str) -> tuple[Values, Values] | None:
        """What a figure is the ratio of, summed over users.

        Args:
            column: ``recall@K``, ``L1 match`` or ``L2 match``.

        Returns:
            two [U] float64 arrays; None: not measured.
        """
        if column in ("L1 match", "L2 match"):
            counts = self.l1 if column == "L1 match" else self.l2
            return counts if counts[1].any() else None
        recall = self.recall.get(int(column.removeprefix("recall@")))
        return None if recall is None else (recall, np.ones(len(recall)))

    def recall_above(self, other: UserValues, k: int, bootstrap: Bootstrap) -> Estimate:
        """Mean recall@k minus another's over the same users, paired by user."""
        ones = np.ones(len(self.user_index))
        difference = bootstrap.difference((self.recall[k], ones), (other.recall[k], ones))
        assert difference is not None
        return difference
