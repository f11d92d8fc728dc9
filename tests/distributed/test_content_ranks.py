"""Texts embedded by two ranks: each encodes its shards, and the bytes are those of one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from forked_ranks import Launcher
from test_embed_content import TEXTS, make_dataset, stop_after_a_shard, text_config
from tiny_bert import write_bert

from mtmh.artifacts import open_artifact
from mtmh.content.embed import embed_content


def test_two_ranks_write_the_bytes_of_one_and_finished_shards_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_dataset(tmp_path, {"text": pa.array(TEXTS)})
    config = text_config(tmp_path, write_bert(tmp_path / "bert"))
    out, parts = tmp_path / "content", tmp_path / "content.parts"
    config = stop_after_a_shard(config, out, monkeypatch)
    alone = embed_content(config, tmp_path / "alone").path
    assert [path.name for path in sorted(parts.glob("part-*.json"))] == ["part-000000.json"]
    # A mark that only survives if the finished shard is taken as it is.
    marked = np.roll(np.load(parts / "part-000000.npy"), 1, axis=0)
    np.save(parts / "part-000000.npy", marked)
    launcher = Launcher(2, run=partial(embed_content, out=out))  # kept: the store goes with it
    launcher.start(config).finish()
    wanted = np.load(alone / "embeddings.npy")
    wanted[:5] = marked
    assert (out / "embeddings.npy").read_bytes()[-wanted.nbytes :] == wanted.tobytes()
    found, expected = (open_artifact(path, "content").summary for path in (out, alone))
    assert found == expected
    assert not parts.exists()
