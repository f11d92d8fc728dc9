"""An index of clusters in memory, for tests of searching."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mtmh.index.storage import IvfSettings, Storage, train_ivf
from mtmh.index.vector_index import IvfIndex


def build_ivf(
    vectors: npt.NDArray[np.float32],
    *,
    num_clusters: int | None = None,
    train_sample: int = 262_144,
    seed: int = 0,
    storage: Storage = "flat",
) -> IvfIndex:
    """Trains k-means on a seeded sample of vectors [I, D] and files each under its cluster."""
    settings = IvfSettings(num_clusters, train_sample, seed=seed, storage=storage)
    settings.check(len(vectors), vectors.shape[1])
    index = train_ivf(vectors[settings.sample(len(vectors))], len(vectors), settings)
    index.add(vectors)
    return IvfIndex(index)
