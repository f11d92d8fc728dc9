"""Runs the checks of the Triton path: compiled where there is a GPU, in Triton's interpreter elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

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
    assert int(passed.group(1)) >= 37


@NEEDS_TRITON
@pytest.mark.parametrize(
    ("capability", "bf16"), [(80, True), (86, True), (90, True), (80, False), (86, False)], ids=str
)
def test_kernels_compile_for_gpus(capability: int, bf16: bool) -> None:
    """The interpreter takes what the compiler may refuse; compiling needs no GPU. Without the last optimisation."""
    import triton

    from benchmarks.triton_compile import KERNELS, MOST_SHARED, compile_kernel

    with triton.knobs.nvidia.scope():
        triton.knobs.nvidia.disable_ptxas_opt = True
        for kernel in KERNELS if bf16 else KERNELS[1 if capability == 80 else 3 :]:  # others are those above
            compiled = compile_kernel(kernel, capability, bf16 and kernel != "similar", 128, 192)
            assert compiled.asm["cubin"]
            assert compiled.metadata.shared <= MOST_SHARED[capability]


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
