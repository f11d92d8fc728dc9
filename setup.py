"""Package metadata; ``modules/`` and ``torchx_apps/`` install as ``mtmh.modules`` and ``mtmh.torchx_apps``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def pins(name: str) -> list[str]:
    """The requirements of ``requirements/NAME.txt`` and of the files it includes."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()]
    found: list[str] = []
    for line in filter(None, lines):
        if line.startswith("-r "):
            found += pins(line.removeprefix("-r ").removesuffix(".txt"))
        elif not line.startswith((".", "-")):
            found.append(line)
    return found


def matrix(device: str) -> list[str]:
    """What must be of one release: torch, fbgemm, torchrec. The rest may be newer in a stack that imports mtmh."""
    return [pin for pin in pins(device) if pin not in pins("base")]


setup(
    name="mtmh",
    version="0.1.0",
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
            "config/recipes/*.yaml",
            "config/recipes/variants/*.yaml",
            "prepare/sources/*.yaml",
            "evaluation/*.html",
            "serving/static/*",
            "chain/*.html",
        ]
    },
    # TorchRec asks for fbgemm-gpu, whose CPU and CUDA builds exclude each other, so both sit behind an extra.
    install_requires=[pin.replace("==", ">=") for pin in pins("base")],
    extras_require={
        "cpu": matrix("cpu"),
        "cuda": matrix("cuda"),
        "dev": pins("dev"),
        "lora": pins("lora"),
        "milvus": pins("milvus"),
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
