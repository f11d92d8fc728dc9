"""The Python interface on a small shop: fit, ask, evaluate, save, load."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import re
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked_verb import forked_verb
from small_shop import SETTINGS, shop_events, shop_items

import mtmh
from mtmh.artifacts import open_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def model(folder: Path) -> mtmh.Model:
    said: list[str] = []
    fitted = mtmh.fit(
        shop_events().to_pandas(), shop_items(), folder=folder / "fitted", settings=SETTINGS, say=said.append
    )
    assert "user: column customer, 120 of them" in said
    assert "build_index: nothing there yet" in said
    assert not any(line.startswith("evaluate") for line in said)
    return fitted


def test_import_brings_no_other_package() -> None:
    code = "import mtmh, sys; dir(mtmh); print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_name_is_there_and_others_are_not() -> None:
    for name in ("fit", "load", "Model", "Retriever", "Query"):
        assert name in dir(mtmh)
        assert getattr(mtmh, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = mtmh.train  # type: ignore[attr-defined]


def test_similar_items_are_shared_out_by_alpha(model: mtmh.Model) -> None:
    for alpha, heads in ((100, {"engagement": 10}), (50, {"engagement": 5, "relevance": 5}), (0, {"relevance": 10})):
        answers = model.similar_items("SKU-1", k=10, alpha=alpha)
        assert {head: sum(answer.head == head for answer in answers) for head in heads} == heads
        assert "SKU-1" not in [answer.item for answer in answers]
    with pytest.raises(ValueError, match="unknown trigger 'SKU-x'"):
        model.similar_items("SKU-x")


def test_a_user_is_answered_with_items_of_the_departments_in_the_history(model: mtmh.Model) -> None:
    answers = model.recommend(["SKU-1", "unheard of", "SKU-2", "SKU-3"], k=8)
    assert len(answers) == 8
    assert not {"SKU-1", "SKU-2", "SKU-3"} & {answer.item for answer in answers}
    in_kitchen = [int(str(answer.item).removeprefix("SKU-")) < 40 for answer in answers]
    assert sum(in_kitchen) >= 6
    with pytest.raises(ValueError, match="unknown history"):
        model.recommend(["unheard of"])


def test_evaluation_is_a_verdict_figures_and_a_page_and_is_made_once(model: mtmh.Model) -> None:
    said: list[str] = []
    report = model.evaluate(say=said.append)
    assert said[-2] == "evaluate: nothing there yet"
    assert said[-1].startswith("evaluate: took ")
    assert set(said[:-2]) == {
        f"{stage}: unchanged"
        for stage in ("prepare", "content_embed", "train", "embed", "train_preranker", "build_index")
    }
    assert "the best yardstick at" in str(report)
    assert report.evaluation.merged.recall[20].value > 0.2
    assert report.page.is_file()
    said.clear()
    assert model.evaluate(say=said.append).evaluation == report.evaluation
    assert said[-1] == "evaluate: unchanged"


def test_a_served_model_has_the_explorer(model: mtmh.Model) -> None:
    reading, writing = mp.Pipe(duplex=False)
    # Forked from a process that has imported what takes seconds.
    server = mp.get_context("forkserver").Process(target=serve, args=(model.folder, writing))
    server.start()
    writing.close()
    with os.fdopen(os.dup(reading.fileno())) as said:
        try:
            address = re.findall(r"http://\S+", said.readline())[0]
            with urlopen(address) as page, urlopen(f"{address}/v1/items/SKU-1/similar?k=3") as found:
                assert b"<title>MTMH explorer" in page.read()
                assert len(json.load(found)["answers"][0]["items"]) == 3
        finally:
            server.kill()
            server.join()


def serve(folder: Path, said: Connection) -> None:
    os.dup2(said.fileno(), 1)
    mtmh.load(folder).serve(port=0)


def test_a_saved_model_answers_the_same_wherever_it_lies(model: mtmh.Model, folder: Path) -> None:
    saved = model.save(folder / "saved")
    moved = saved.rename(folder / "moved")
    loaded = mtmh.load(moved)
    assert loaded.similar_items("SKU-7") == model.similar_items("SKU-7")
    assert loaded.config.paths.root == moved
    with pytest.raises(ValueError, match="not empty"):
        model.save(moved)
    with pytest.raises(ValueError, match=r"no recipe\.yaml here"):
        mtmh.load(folder / "nothing")


def test_the_verbs_open_what_fit_has_written(model: mtmh.Model) -> None:
    done = forked_verb("retrieve", str(model.folder / "recipe.yaml"), "--trigger", "SKU-3")
    assert done.returncode == 0, done.stderr
    assert "Trigger SKU-3" in done.stdout


def test_a_second_fit_does_again_what_has_changed(model: mtmh.Model) -> None:
    said: list[str] = []
    settings = SETTINGS | {"index.num_clusters": 4}
    mtmh.fit(shop_events(), shop_items(), folder=model.folder, settings=settings, say=said.append)
    ran = [line.partition(":")[0] for line in said if ": nothing" in line or " was " in line]
    assert "train" not in ran
    assert "build_index" in ran


def test_a_temporary_folder_goes_with_its_model_unless_it_was_saved(tmp_path: Path) -> None:
    events, items = tmp_path / "events.parquet", tmp_path / "items.csv"
    pq.write_table(shop_events(), events)
    shop_items(embeddings=False).select(["sku", "title", "brand"]).to_pandas().to_csv(items, index=False)
    model = mtmh.fit(events, items, teacher=None, settings=SETTINGS, say=print)
    assert list(model.retriever.heads) == ["engagement"]
    assert len(model.similar_items("SKU-1")) == 10
    folder = model.folder
    assert folder.is_dir()
    del model
    assert not folder.exists()


def test_a_shop_of_a_dozen_customers_is_enough(tmp_path: Path) -> None:
    model = mtmh.fit(
        shop_events(num_users=12), shop_items(), folder=tmp_path, teacher=None, settings=SETTINGS, say=print
    )
    checkpoint = open_artifact(tmp_path / "mtmh/checkpoints/step-00000040", "checkpoint")
    assert checkpoint.manifest.config["training"]["batch_size"] == "auto"
    assert checkpoint.summary["batch_size"] < 1536
    assert len(model.recommend(["SKU-1"])) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": 7}, "events: expected a path or a frame of pandas, Polars or Arrow, got int"),
        ({"events": "nowhere.parquet"}, r"events: no file .*nowhere\.parquet"),
        ({"columns": {"usr": "customer"}}, "columns: no role usr; there are user_id"),
        ({"columns": {"user_id": "customers"}}, "user_id: .* has no column 'customers'; found 'customer'"),
        ({"settings": {"training.epoch": 1}}, r"training\.epoch: no such setting; did you mean epochs"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"events": shop_events(), "items": shop_items(), "folder": tmp_path, "say": print}
    with pytest.raises(ValueError, match=message):
        mtmh.fit(**(arguments | changes))


def test_frames_of_arrow_batches_are_taken(tmp_path: Path) -> None:
    from mtmh.start.tables import as_path

    reader = pa.RecordBatchReader.from_batches(shop_items().schema, shop_items().to_batches())
    assert pq.read_table(as_path(reader, "items", tmp_path)).equals(shop_items())
    indexed = shop_items().to_pandas().iloc[5:]
    assert pq.read_table(as_path(indexed, "items", tmp_path)).column_names == shop_items().column_names
