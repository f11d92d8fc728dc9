"""The arithmetic of a run: precision of products and fixed order of sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import losses_of, state_of, tiny_config, write_inputs

from mtmh.config import TrainingConfig
from mtmh.training.arithmetic import arithmetic
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train


@pytest.mark.parametrize(
    ("setting", "on_gpu"), [("auto", "high"), ("highest", "highest"), ("high", "high"), ("bf16", "high")]
)
def test_a_gpu_multiplies_as_the_setting_says_and_only_within_the_block(setting: str, on_gpu: str) -> None:
    training = TrainingConfig.model_validate({"matmul_precision": setting})
    with arithmetic(training, torch.device("cuda", 0)):
        assert torch.get_float32_matmul_precision() == on_gpu
    with arithmetic(training, torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_deterministic_run_refuses_what_is_not_and_computes_what_a_cpu_computes_anyway(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    state = {}
    for name, deterministic in (("plain", False), ("deterministic", True)):
        training = {"max_steps": 6, "deterministic": deterministic}
        state[name] = state_of(train(tiny_config(tmp_path, name, training=training)))
        assert not torch.are_deterministic_algorithms_enabled()
    for key, value in state["plain"].items():
        assert torch.equal(state["deterministic"][key], value), key
    with arithmetic(TrainingConfig(deterministic=True), torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()


def test_bf16_products_train_nearly_the_same_model(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    losses = {}
    for precision in ("auto", "highest", "high", "bf16"):
        config = tiny_config(tmp_path, precision, training={"max_steps": 30, "matmul_precision": precision})
        train(config)
        losses[precision] = losses_of(config)
        assert latest_checkpoint(config.model_dir("checkpoints")).name == "step-00000030"
    assert losses["auto"] == losses["highest"] == losses["high"], "the CPU has one precision"
    assert losses["bf16"] != losses["highest"]
    for step, exact in losses["highest"].items():
        for head, loss in exact.items():
            assert losses["bf16"][step][head]["total"] == pytest.approx(loss["total"], rel=5e-3)
