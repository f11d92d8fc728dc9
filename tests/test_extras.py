"""The packages of each extra are all that its part of mtmh imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
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
# A process an extra, forked from one that has imported what each of them needs: torch and torchrec take seconds.
HIDE = """
import importlib, json, os, sys, traceback
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)
def load(modules):
    for name in modules:
        importlib.import_module(name)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
(first, (HIDDEN, modules)), *others = json.load(sys.stdin).items()
load(modules)
print(json.dumps([first, ""]), flush=True)
for extra, (HIDDEN, modules) in others:
    if os.fork() == 0:
        fault = ""
        try:
            load(modules)
        except BaseException:
            fault = traceback.format_exc()
        print(json.dumps([extra, fault]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def faults() -> dict[str, str]:
    """What went wrong where only the packages of an extra were to be found: nothing, if all is well."""
    owners = packages_distributions()
    work: dict[str, tuple[list[str], list[str]]] = {}
    for extra, modules in MODULES.items():
        installed = needed(extra)
        hidden = {top for top, distributions in owners.items() if installed.isdisjoint(map(plain, distributions))}
        assert "fastapi" in hidden or extra == "serve"
        assert {"matplotlib", "torchx", "transformers"} & hidden
        work[extra] = (sorted(hidden), modules)
    done = subprocess.run(
        [sys.executable, "-c", HIDE], input=json.dumps(work), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize("extra", MODULES)
def test_an_extra_is_enough_for_its_part(extra: str, faults: dict[str, str]) -> None:
    assert faults[extra] == ""


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
