"""The packages of each extra are all that its part of mtmh imports."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement

MODULES = {
    "": ["mtmh.modules", "mtmh.modules.losses.chunked", "mtmh.modules.content_encoder"],
    "train": [
        "mtmh.prepare.prepare",
        "mtmh.content.train",
        "mtmh.content.embed",
        "mtmh.training.trainer",
        "mtmh.tower.embed",
        "mtmh.index.build",
        "mtmh.preranking.trainer",
    ],
    "serve": ["mtmh.serving.server", "mtmh.live.live_index", "mtmh.cli.answer_table"],
    "launch": ["mtmh.torchx_apps.components", "mtmh.chain.run"],
    "client": ["mtmh.client"],
    "tune": ["mtmh.tuning.study"],
    "report": ["mtmh.evaluation.evaluate", "mtmh.evaluation.report"],
}
# What is hidden is looked for in vain, as where it is not installed.
HIDE = """
import importlib, sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)
HIDDEN = set(sys.argv[1].split(","))
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


@pytest.fixture(scope="module")
def owners() -> Mapping[str, list[str]]:
    return packages_distributions()


@pytest.mark.parametrize("extra", MODULES)
def test_an_extra_is_enough_for_its_part(extra: str, owners: Mapping[str, list[str]]) -> None:
    installed = needed(extra)
    hidden = {top for top, distributions in owners.items() if installed.isdisjoint(map(plain, distributions))}
    assert "fastapi" in hidden or extra == "serve"
    assert {"matplotlib", "torchx", "transformers"} & hidden
    done = subprocess.run(
        [sys.executable, "-c", HIDE, ",".join(hidden), *MODULES[extra]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_model_alone_needs_torch_and_torchrec() -> None:
    required = [found for found in map(Requirement, requires("mtmh") or []) if wanted(found, "")]
    assert sorted(found.name for found in required) == ["torch", "torchrec"]


def needed(extra: str) -> set[str]:
    """Names of the distributions that ``pip install mtmh[extra]`` brings, itself among them."""
    found, todo = set[str](), [("mtmh", extra)]
    while todo:
        name, its_extra = todo.pop()
        found.add(name)
        try:
            required = requires(name) or []
        except PackageNotFoundError:
            continue
        for other in map(Requirement, required):
            if wanted(other, its_extra) and plain(other.name) not in found:
                todo += [(plain(other.name), more) for more in (other.extras or {""})]
    return found


def wanted(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
