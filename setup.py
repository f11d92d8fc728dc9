"""Package metadata; ``modules/`` and ``torchx_apps/`` install as ``mtmh.modules`` and ``mtmh.torchx_apps``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "mtmh/__init__.py").read_text(), re.MULTILINE)
assert VERSION is not None


def pins(name: str) -> list[str]:
    """The requirements of ``requirements/NAME.txt`` and of the files it includes, each once."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()]
    found: list[str] = []
    for line in filter(None, lines):
        if line.startswith("-r "):
            found += pins(line.removeprefix("-r ").removesuffix(".txt"))
        else:
            found.append(line)
    return list(dict.fromkeys(found))


def at_least(name: str) -> list[str]:
    """The same for a stack that imports mtmh, where each may be newer; urllib3 is TorchX's business."""
    return [pin.replace("==", ">=") for pin in pins(name) if not pin.startswith("urllib3")]


setup(
    name="mtmh",
    version=VERSION[1],
    description="Multi-task, multi-head item-to-item retrieval on TorchRec",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # Only mtmh may appear at the top of site-packages: the other two names are too common.
    packages=[
        *find_packages(include=["mtmh", "mtmh.*"]),
        *(f"mtmh.{name}" for name in find_packages(include=["modules", "modules.*", "torchx_apps", "torchx_apps.*"])),
    ],
    package_dir={"mtmh": "mtmh", "mtmh.modules": "modules", "mtmh.torchx_apps": "torchx_apps"},
    package_data={
        "mtmh": [
            "py.typed",
            "__init__.pyi",
            "config/recipes/*.yaml",
            "config/recipes/variants/*.yaml",
            "prepare/sources/*.yaml",
            "evaluation/*.html",
            "serving/static/*",
            "pages/*.html",
        ]
    },
    # What mtmh.modules needs: the oldest release that `mtmh doctor` accepts. Builds of fbgemm for CPU and CUDA exclude
    # each other, so a machine without a GPU installs requirements/cpu.txt first.
    install_requires=["torch>=2.11", "torchrec>=1.6"],
    extras_require={
        **{name: at_least(name) for name in ("train", "serve", "launch", "report", "tune", "client", "all")},
        **{name: pins(name) for name in ("dev", "docs", "lake", "lora", "milvus", "sign", "spark", "yardsticks")},
    },
    entry_points={
        "console_scripts": ["mtmh = mtmh.cli:main"],
        # Any entry in this group hides TorchX's own components, so those are registered again.
        "torchx.components": [
            "mtmh = mtmh.torchx_apps.components",
            "dist = torchx.components.dist",
            "utils = torchx.components.utils",
        ],
        "torchx.named_resources": [
            f"{name} = mtmh.torchx_apps.resources:{name}" for name in ("cpu_small", "a100x8", "h100x8", "h200x8")
        ],
    },
)
