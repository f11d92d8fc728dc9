"""Runs the checks of the Triton path: compiled where there is a GPU, in Triton's interpreter elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mtmh.modules import contrastive_losses
from test_losses import chunked, random_inputs

NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; pip install -r requirements/triton.txt checks its kernels in the interpreter",
)


@NEEDS_TRITON
def test_triton_checks() -> None:
    """In a process of its own: Triton decides when it is imported whether to interpret."""
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "triton_checks.py"],
        cwd=Path(__file__).parent,
        env={**os.environ, **interpret, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 24


@NEEDS_TRITON
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus(capability: int) -> None:
    """The interpreter takes what the compiler may refuse; compiling needs no GPU."""
    import triton
    from mtmh.modules.losses import triton as losses_triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants: dict[str, Any] = {
        "WIDTH": 128,
        "TEACHER_WIDTH": 128,
        "SIMILAR_WIDTH": 128,
        "HITS": True,
        "ALL_JUDGED": False,
        "BLOCK_M": losses_triton.BLOCK_ROWS,
        "BLOCK_L": losses_triton.BLOCK_NEGATIVES,
        "BLOCK_K": losses_triton.BLOCK_WIDTH,
        "BLOCK_OUT": losses_triton.BLOCK_OUT,
        "PRECISION": "tf32x3",
    }
    types = dict.fromkeys(("num_splits", "tiles_of_split", "num_rows", "num_negatives"), "i32")
    types |= {"threshold": "fp32", "bits": "*i32", "no_content": "*i8"}
    for kernel in (
        losses_triton._statistics_kernel,
        losses_triton._trigger_gradient_kernel,
        losses_triton._negative_gradient_kernel,
    ):
        known = {name: value for name, value in constants.items() if name in kernel.arg_names}
        signature = {name: "constexpr" if name in known else types.get(name, "*fp32") for name in kernel.arg_names}
        compiled = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=known),
            target=GPUTarget("cuda", capability, 32),
            options=losses_triton.LAUNCH,
        )
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 99 * 1024  # of a program, on the smallest GPUs of these generations


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_triton_is_refused_and_auto_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = random_inputs().to(torch.float32)
    parts = (inputs.trigger, inputs.positive, inputs.negative, inputs.heads)
    with pytest.raises(ValueError, match=r"kernel triton: needs the package triton .* a GPU .*on cpu"):
        contrastive_losses(*parts, temperature=0.2, teacher=inputs.teacher, kernel="triton")
    found = contrastive_losses(
        *parts,
        temperature=inputs.temperature,
        row_weight=inputs.row_weight,
        log_weight_negative=inputs.log_weight_negative,
        teacher=inputs.teacher,
        hits=inputs.hits,
    )
    assert torch.equal(found.total, chunked(inputs).total)
