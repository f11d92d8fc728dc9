"""Kills the preranker's training with SIGKILL, also while it writes, and compares with a run that was left alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from forked_ranks import Launcher
from test_kill import assert_equal_to_the_bit, wait_for_writing
from tiny_preranker import tiny_config, write_inputs

from mtmh.config import Config
from mtmh.preranking.trainer import train_preranker

KILLS = 4
STEPS, EVERY = 60, 3


def config_of(root: Path, name: str, **training: object) -> Config:
    settings = {"max_steps": STEPS, "epochs": 20, "checkpoint_every": EVERY, "final": "retrain", **training}
    return tiny_config(root, name, settings, head_embeddings=False)


def test_a_preranker_killed_again_and_again_equals_one_that_was_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    write_inputs(tmp_path)
    launcher, moment = Launcher(world_size=2, run=train_preranker), random.Random(7)
    alone, killed = config_of(tmp_path, "alone", checkpoint_every=STEPS), config_of(tmp_path, "killed")
    launcher.start(alone).finish()
    checkpoints = killed.preranker_checkpoints
    cut_off = 0  # kills that left a checkpoint half written
    for number in range(KILLS):
        job = launcher.start(config_of(tmp_path, "killed", async_checkpoint=bool(number % 2)))
        wait_for_writing(checkpoints, job)
        time.sleep(moment.uniform(0.0, 0.02))
        for victim in moment.sample(job.ranks, 1 + number % 2):
            victim.kill()
        job.end()
        cut_off += bool(list(checkpoints.glob(".step-*.partial")))
    assert cut_off > 0
    launcher.start(killed).finish()
    assert_equal_to_the_bit(killed.preranker_checkpoints, alone.preranker_checkpoints, STEPS)
