"""The digest of a stage's code: changed by what the stage can reach and Python reads, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from mtmh.artifacts import _MADE_BY, Kind, code_of
from mtmh.source_code import _modules, digest_of, reached_modules

FILES = {
    "mtmh": "__version__ = '1'\nfrom mtmh.serving import app\n",
    "mtmh.stage": '"""Makes something."""\nfrom mtmh import __version__, helper\nfrom .model.layer import Layer\n',
    "mtmh.helper": '"""Helps."""\ndef help():\n    """Late."""\n    import mtmh.late\n    return 1  # one\n',
    "mtmh.late": "x = 1\n",
    "mtmh.model": "from mtmh.serving import app\n",
    "mtmh.model.layer": "from ..tables import *\n",
    "mtmh.tables": "rows = 3\n",
    "mtmh.serving": '"""Serves."""\napp = 1\n',
}
REACHED = {"mtmh.stage", "mtmh.helper", "mtmh.late", "mtmh.model.layer", "mtmh.tables"}


@pytest.fixture
def modules(tmp_path: Path) -> dict[str, Path]:
    packages = {"mtmh", "mtmh.model"}
    paths = {
        name: tmp_path / name.replace(".", "/") / "__init__.py"
        if name in packages
        else tmp_path / f"{name.replace('.', '/')}.py"
        for name in FILES
    }
    for name, text in FILES.items():
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_text(text)
    return paths


def changed(modules: dict[str, Path], tmp_path: Path, name: str, old: str, new: str) -> bool:
    """True if the digest of the stage is another one after a change in a copy of one file."""
    assert old in FILES[name]
    copy = tmp_path / "copy" / modules[name].name
    copy.parent.mkdir()
    copy.write_text(FILES[name].replace(old, new))
    return digest_of(modules, "mtmh.stage") != digest_of(modules | {name: copy}, "mtmh.stage")


def test_what_a_stage_reaches(modules: dict[str, Path]) -> None:
    assert reached_modules(modules, "mtmh.stage") == REACHED


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("mtmh.stage", "Makes something.", "Makes something else."),
        ("mtmh.helper", "Late.", "Later."),
        ("mtmh.helper", "# one", "# uno"),
        ("mtmh.tables", "rows = 3", "rows   =  3"),
        ("mtmh.serving", "app = 1", "app = 2"),
        ("mtmh", "'1'", "'2'"),
    ],
)
def test_words_about_code_and_code_elsewhere_change_nothing(
    modules: dict[str, Path], tmp_path: Path, name: str, old: str, new: str
) -> None:
    assert not changed(modules, tmp_path, name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("mtmh.helper", "return 1", "return 2"),
        ("mtmh.late", "x = 1", "x = 2"),
        ("mtmh.tables", "rows = 3", "rows = '3'"),
        ("mtmh.stage", "from mtmh import __version__, helper", "from mtmh import __version__, helper, serving"),
    ],
)
def test_code_that_the_stage_reaches_changes_it(
    modules: dict[str, Path], tmp_path: Path, name: str, old: str, new: str
) -> None:
    assert changed(modules, tmp_path, name, old, new)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_has_code_that_ends_below_the_stage(kind: Kind) -> None:
    reached = reached_modules(_modules(), *_MADE_BY[kind])
    folders = {name.split(".")[1] for name in reached}
    assert not folders & {"cli", "serving", "chain", "torchx_apps"}
    assert {"artifacts", "config"} <= folders
    assert len(code_of(kind)) == 64


def test_the_tower_s_checkpoint_reaches_its_model_and_nothing_behind_it() -> None:
    reached = reached_modules(_modules(), *_MADE_BY["checkpoint"])
    assert {
        "mtmh.modules.mtmh",
        "mtmh.modules.losses.chunked",
        "mtmh.data.pairs",
        "mtmh.training.checkpoint",
    } <= reached
    assert not {name.split(".")[1] for name in reached} & {"index", "retrieval", "live", "evaluation", "preranking"}
