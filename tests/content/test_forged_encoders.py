"""Encoder folders by a writer who means harm: no code of theirs runs, whoever says yes."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import transformers
from forging import code, dotted_pickle, fit_manifest

from mtmh.config import Config
from mtmh.content.teacher import WEIGHTS, open_teacher


@pytest.fixture
def encoder(trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained.encoder_dir, tmp_path / "encoder")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "encoder"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_pickled_weights_are_refused(encoder: Path, tmp_path: Path) -> None:
    (encoder / WEIGHTS).write_bytes(dotted_pickle(tmp_path / "ran"))
    fit_manifest(encoder)
    with pytest.raises(ValueError, match=r"model\.safetensors: does not fit the architecture"):
        open_teacher(encoder)
    assert not (tmp_path / "ran").exists()


def test_code_in_the_folder_is_not_run(encoder: Path, tmp_path: Path) -> None:
    text = encoder / "text"
    (text / "forged.py").write_text(f"{code(tmp_path / 'ran')}\nclass Forged: pass\n")
    edit(text / "config.json", model_type="forged", auto_map={"AutoConfig": "forged.Forged"})
    fit_manifest(encoder)
    with pytest.raises(ValueError, match=f"{text} contains custom code"):
        open_teacher(encoder)
    assert not (tmp_path / "ran").exists()
    with suppress(Exception):
        transformers.AutoConfig.from_pretrained(text)
    assert (tmp_path / "ran").exists(), "it would run when asked and told yes"


def test_kernels_from_elsewhere_are_not_fetched(encoder: Path) -> None:
    edit(encoder / "text" / "config.json", attn_implementation="someone/kernels")
    fit_manifest(encoder)
    with pytest.raises(ValueError, match="asks for the attention of 'someone/kernels'"):
        open_teacher(encoder)
