"""Two writers on one folder: the second is told who is at work, and a killed one holds nothing."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mtmh.artifacts import write_artifact
from mtmh.config import Config, load_config
from mtmh.sole_writer import sole_writer

HOLDER = """
import sys, time
from pathlib import Path
from mtmh.sole_writer import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(600)
"""


def test_the_second_writer_is_told_who_is_at_work(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        expected = rf"dataset: being written by host {socket.gethostname()}, process {holder.pid}; wait"
        with pytest.raises(ValueError, match=expected), write_artifact(folder, "dataset", config={}):
            pytest.fail("two at once")
        with sole_writer(tmp_path / "other"):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with write_artifact(folder, "dataset", config={}):
        assert (tmp_path / ".dataset.lock").read_text() == f"host {socket.gethostname()}, process {os.getpid()}"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def stages(root: Path) -> dict[Path, Callable[[], object]]:
    """Folder that a stage holds -> the stage."""
    from mtmh.content.train import train_content
    from mtmh.prepare.prepare import prepare
    from mtmh.preranking.trainer import train_preranker
    from mtmh.tower.embed import embed_catalogue
    from mtmh.training.trainer import train

    config: Config = load_config("demo", [f"paths.root={root}", "content.kind=encoder"])
    return {
        config.dataset_dir: lambda: prepare(config, config.dataset_dir),
        config.encoder_dir.with_name(f"{config.encoder_dir.name}.steps"): lambda: train_content(
            config, config.encoder_dir
        ),
        config.model_dir("checkpoints"): lambda: train(config),
        config.model_dir("embeddings"): lambda: embed_catalogue(config, config.model_dir("embeddings")),
        config.preranker_checkpoints: lambda: train_preranker(config),
    }


def test_stages_say_so_before_they_look_at_anything(tmp_path: Path) -> None:
    for folder, stage in stages(tmp_path).items():
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holds\n"
            with pytest.raises(ValueError, match=rf"{folder}: being written by .*process {holder.pid}; wait"):
                stage()
        finally:
            holder.kill()
            holder.communicate()
