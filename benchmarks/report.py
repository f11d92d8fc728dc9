"""The head of a benchmark's JSON: the command that gave the figures, the machine, and the settings."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.compare import made_by


def report_head(args: argparse.Namespace) -> dict[str, Any]:
    """Command, machine and settings; those of a benchmark's own processes (``worker``, ``recipe``) are none."""
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("worker", "recipe")}
    return {"command": made_by(), "machine": machine(), "settings": settings}


def machine() -> dict[str, Any]:
    """The machine of the figures."""
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "pyarrow": pa.__version__,
    }
