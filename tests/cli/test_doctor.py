"""``mtmh doctor`` as a user runs it: on a sound installation, and on ones that do not fit together."""

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked_verb import forked_verb

from mtmh.cli.doctor import NO_KERNELS, _devices

WIDE = {"COLUMNS": "200"}


def claim(folder: Path, package: str, version: str) -> Path:
    """Puts metadata ahead of the installed ones, as a second installation would."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return folder


def test_a_sound_installation_passes() -> None:
    command = [sys.executable, "-m", "mtmh.cli", "doctor"]
    result = subprocess.run(command, env=os.environ | WIDE, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All is well." in result.stdout
    for subject in ("torchrec", "fbgemm kernel", "faiss search", "gloo"):
        assert subject in result.stdout


@pytest.mark.parametrize(
    ("package", "version", "cure"),
    [
        ("torchrec", "1.5.0", "goes with fbgemm"),
        ("torch", "2.4.0", "torch must be one of"),
        ("fbgemm-gpu", "1.8.0", "both builds own the folder fbgemm_gpu"),
    ],
)
def test_a_mismatch_fails_with_its_cure(
    tmp_path: Path, package: str, version: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {found.name.lower().replace("_", "-") for found in distributions()}
    if package == "fbgemm-gpu" and "fbgemm-gpu-cpu" not in installed:
        pytest.skip("needs the CPU build of fbgemm")
    monkeypatch.syspath_prepend(claim(tmp_path, package, version))  # a forked process has this one's path
    result = forked_verb("doctor", environment=WIDE)
    assert result.returncode == 1
    assert cure in result.stdout
    assert "rm -rf .venv && make doctor" in result.stdout


@pytest.mark.parametrize(
    ("major", "minor", "cure"),
    [(8, 0, ""), (8, 6, ""), (9, 0, ""), (10, 0, ""), (7, 5, NO_KERNELS), (12, 0, NO_KERNELS)],
)
def test_a_gpu_without_kernels_is_named(major: int, minor: int, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(name="A GPU", total_memory=80 * 2**30, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    gpu = next(check for check in _devices() if check.subject == "cuda:0")
    assert (gpu.state, gpu.cure) == (f"A GPU, 80 GiB, compute capability {major}.{minor}", cure)
