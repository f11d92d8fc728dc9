"""The wheel in an environment of its own: what it holds, and another TorchRec project that imports the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, write_inputs
from torchrec import KeyedJaggedTensor

from mtmh.training.model_builder import load_model
from mtmh.training.trainer import train

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "docs/examples/own-torchrec-stack"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# As torchrun starts them, but forked from a process that has imported what takes each of them seconds.
FORKED = """
import os, runpy, socket, sys
import mtmh.training.model_builder, torchrec
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
sys.argv = sys.argv[1:]
for rank in range(2):
    if os.fork() == 0:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
sys.exit(any([os.wait()[1] for _ in range(2)]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("mtmh", "modules", "torchx_apps", "requirements"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has this one's packages, but of mtmh the wheel only."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched, but the .pth files in it, that of an editable mtmh too, are not read.
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    pip("--python", str(folder), "install", "--no-deps", "--no-index", str(wheel))
    return folder / "bin/python"


def test_only_mtmh_is_at_the_top_and_nothing_is_left_out(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mtmh"}
    expected = {
        str(file.relative_to(ROOT) if folder == "mtmh" else Path("mtmh") / file.relative_to(ROOT))
        for folder in ("mtmh", "modules", "torchx_apps")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert expected <= set(names)


def test_another_project_shards_and_trains_the_tower_beside_its_own_tables(python: Path, tmp_path: Path) -> None:
    report = run_project(python, tmp_path, TORCHRUN, "--steps", "5")
    assert report["plan"] == dict.fromkeys(["user_id", "country", "brand"], "table_wise") | {"item_id": "column_wise"}
    assert_trained(report, ["user_id", "country", "item_id", "brand"])


def test_it_goes_on_from_a_checkpoint_of_ours(python: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    checkpoint = train(tiny_config(tmp_path, training={"max_steps": 3}))
    report = run_project(python, tmp_path, ["-c", FORKED], "--steps", "3", "--checkpoint", str(checkpoint))
    assert_trained(report, ["user_id", "country", "item_id", "brand", "tags"])

    model = load_model(checkpoint)
    rows = {table.name: table.num_embeddings for table in model.sparse_nn.ebc.embedding_bag_configs()}
    rng = torch.Generator().manual_seed(1)  # as the project draws the items it shows
    ids = torch.cat([torch.randint(rows[key], (100,), generator=rng) for key in model.sparse_nn.keys])
    floats = torch.randn(100, model.dense_nn.num_features, generator=rng)
    items = KeyedJaggedTensor(keys=model.sparse_nn.keys, values=ids, lengths=torch.ones(len(ids), dtype=torch.int64))
    found = np.load(tmp_path / "report/embeddings.npz")
    assert set(found) == {"engagement", "relevance"}
    with torch.no_grad():
        for head, expected in model(items, floats).items():
            np.testing.assert_allclose(found[head], expected, rtol=0, atol=1e-6)


def run_project(python: Path, folder: Path, launcher: list[str], *arguments: str) -> dict[str, Any]:
    """Runs a copy of the project on 2 ranks, from which the checkout cannot be found, and returns its report."""
    shutil.copytree(PROJECT, folder / "project", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [python, *launcher, "train.py", "--out", str(folder / "report"), *arguments],
        cwd=folder / "project",
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((folder / "report/report.json").read_text())
    assert Path(report["mtmh"]).is_relative_to(python.parents[1]), "mtmh came from elsewhere than the wheel"
    return report


def assert_trained(report: dict[str, Any], tables: list[str]) -> None:
    """Every table is spread over the two ranks, and training has changed each of them and every layer in use."""
    assert len(report["ranks"]) == 2
    for part in report["ranks"]:
        assert part["losses"][-1] < part["losses"][0]
        for name, changed in part["changed"].items():
            # The project trains on the engagement head alone.
            assert changed == (".relevance." not in name), name
    shards = [{name.split(".")[-2] for name in part["changed"] if "ebc" in name} for part in report["ranks"]]
    assert shards[0] | shards[1] == set(tables)
    assert shards[0] & shards[1] == {"item_id"}, "cut by columns: a part on both ranks"


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
