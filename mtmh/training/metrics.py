"""AUC and normalised entropy, exact over all rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Array = npt.NDArray[np.floating]


def auc(scores: Array, labels: Array) -> float | None:
    """Probability that a positive row scores above a negative one, ties counting half; None without one of each.

    Args:
        scores: [N].
        labels: [N] 0 or 1.
    """
    return auc_of_ranks(rankdata(scores), labels > 0.5)


def auc_of_ranks(ranks: Array, positive: npt.NDArray[np.bool_]) -> float | None:
    """As `auc`, in double precision, of scores that are ranked already.

    Args:
        ranks: [N] from 1, the mean rank where scores are equal (``scipy.stats.rankdata``).
        positive: [N].
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if num_positive == 0 or num_negative == 0:
        return None
    above = float(ranks[positive].sum()) - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)


def normalized_entropy(probabilities: Array, labels: Array) -> float | None:
    """Mean cross-entropy, over that of one who knows only the share of positives (He et al., 2014, equation 1).

    Args:
        probabilities: [N] within 0 and 1.
        labels: [N] 0 or 1.

    Returns:
        below 1 where the rows' probabilities tell more than their mean; None where all labels are equal.
    """
    wide = np.asarray(labels, np.float64)
    rate = float(wide.mean()) if len(wide) else 0.0
    if rate in (0.0, 1.0):
        return None
    tiny = np.finfo(np.float64).tiny
    chances = np.asarray(probabilities, np.float64)
    entropy = -(wide * np.log(np.maximum(chances, tiny)) + (1.0 - wide) * np.log(np.maximum(1.0 - chances, tiny)))
    return float(entropy.mean() / -(rate * np.log(rate) + (1.0 - rate) * np.log(1.0 - rate)))
