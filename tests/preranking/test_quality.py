"""The questions to the preranker about T2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_preranker import tiny_config, write_inputs

from mtmh.data.dataset import open_dataset
from mtmh.preranking.labels import Labels
from mtmh.preranking.quality import questions


def test_only_items_that_a_user_has_not_seen_are_asked_about(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    config = tiny_config(tmp_path)
    dataset = open_dataset(config.dataset_dir)
    labels = Labels(config.preranker.tasks, dataset.summary)
    users = dataset.evaluation_users(config.preranker.check_users, config.seed, labels=True)
    posed = questions(config.preranker, dataset, labels, config.seed)
    repeated = 0
    for user in range(len(users.user_index)):
        past, test = (part.items[part.offsets[user] : part.offsets[user + 1]] for part in (users.histories, users.test))
        rows = posed.users == user
        positive = posed.labels[:, 0] > 0.5
        assert not np.isin(posed.items[rows], past).any()
        assert sorted(posed.items[rows & positive]) == sorted(np.setdiff1d(test, past))
        repeated += int(np.isin(test, past).sum())
    assert repeated > 0, "the data repeat items, or this shows nothing"
