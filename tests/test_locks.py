"""The locked files name what the pins name, nothing without a hash."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
LOCKS = {"lock-cpu": ["cpu", "all"], "lock-dev": ["cpu", "all", "dev"]}
BUILD = {"setuptools"}
STAND_IN = "./requirements/fbgemm-gpu-shim"


def pins(name: str) -> dict[str, str]:
    """Version by package, of a file and those that it includes."""
    found: dict[str, str] = {}
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r ").removesuffix(".txt"))
        elif line and line != STAND_IN:
            required = Requirement(line)
            (version,) = required.specifier
            found[canonicalize_name(required.name)] = version.version
    return found


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by package."""
    text = re.sub(r" *#.*", "", (REQUIREMENTS / f"{name}.txt").read_text()).replace("\\\n", " ")
    found: dict[str, tuple[str, list[str]]] = {}
    for line in filter(str.strip, text.splitlines()):
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+) *", line)
        assert match is not None, line
        assert match[1] not in found
        found[match[1]] = match[2], re.findall("sha256:([0-9a-f]{64})", match[3])
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_every_pin_at_its_version(name: str) -> None:
    wanted: dict[str, str] = {}
    for part in LOCKS[name]:
        wanted |= pins(part)
    found = {package: version for package, (version, _) in locked(name).items()}
    wanted["torch"] += "+cpu"
    assert {package: found.get(package) for package in wanted} == wanted, "make lock"
    assert found.keys() >= BUILD
    assert "fbgemm-gpu" not in found
    assert not [package for package in found if package.startswith("nvidia-")]


def test_both_locks_agree() -> None:
    run, dev = locked("lock-cpu"), locked("lock-dev")
    assert run.items() <= dev.items()
    assert {"pytest", "mypy"} <= dev.keys() - run.keys()


def make(*words: str) -> str:
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *words]
    done = subprocess.run(command, cwd=REQUIREMENTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_locked_install_takes_nothing_without_a_hash(tmp_path: Path) -> None:
    lines = [
        line for line in make("-n", "LOCKED=1", f"VENV={tmp_path}/venv", "doctor").splitlines() if "pip install" in line
    ]
    by_hash, ours = lines
    assert "--require-hashes --no-deps -r requirements/lock-dev.txt" in by_hash
    assert "--no-deps --no-build-isolation" in ours, "what builds them is locked too"


def test_an_audit_without_advisories_says_so_and_fails_nothing() -> None:
    assert "skipped, the advisories of PyPI cannot be reached" in make("audit", "ADVISORIES=http://127.0.0.1:9/")
