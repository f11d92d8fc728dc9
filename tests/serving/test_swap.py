"""A new index version under load: no failed request, no answer of two versions, and a bad version is refused."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_process import ServiceProcess

from mtmh.artifacts import write_artifact, write_atomically
from mtmh.config import Config, load_config
from mtmh.index.build import build_version
from mtmh.index.versions import current_version, new_version, publish
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever
from mtmh.tower.artifact import vectors_file


@pytest.fixture(scope="module")
def own_recipe(served_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recipe and its artifacts, to be changed."""
    folder = tmp_path_factory.mktemp("swapped")
    shutil.copytree(served_recipe.parent / "runs", folder / "runs")
    recipe = folder / "served.yaml"
    recipe.write_text(served_recipe.read_text().replace(str(served_recipe.parent), str(folder)))
    return recipe


def build_another(config: Config, seed: int) -> Path:
    """Publishes a version over other embeddings: every answer differs."""
    from mtmh.artifacts import open_artifact

    old = open_artifact(config.model_dir("embeddings"), "embeddings")
    inputs = {"dataset": open_artifact(config.dataset_dir, "dataset")}
    rng = np.random.default_rng(seed)
    aside = config.paths.root / "aside"
    shutil.copytree(old.path, aside)
    with write_artifact(old.path, "embeddings", config=old.manifest.config, inputs=inputs) as writer:
        writer.summary.update(old.summary)
        for head in old.summary["heads"]:
            vectors = rng.standard_normal(np.load(aside / vectors_file(head), allow_pickle=False).shape)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            np.save(writer.folder / vectors_file(head), vectors.astype(np.float32))
    shutil.rmtree(aside)
    return build_version(config)


class Load:
    """Clients that ask without pause and keep every answer."""

    def __init__(self, service: ServiceProcess, items: list[int], num_clients: int = 3) -> None:
        self._service = service
        self._items = items
        self._ended = threading.Event()
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(place,)) for place in range(num_clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, place: int) -> None:
        number = place
        while not self._ended.is_set():
            item = self._items[number % len(self._items)]
            number += 3
            try:
                reply = self._service.retrieve(triggers=[item, self._items[0]], k=5)
            except OSError as error:
                self.failures.append(repr(error))
                continue
            if reply.status != 200:
                self.failures.append(f"{reply.status} {reply.body!r}")
            else:
                self.answers.append((item, reply.json))


@pytest.fixture(scope="module")
def swapped(own_recipe: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(own_recipe, cache_mb=4) as running:
        yield running


def expected_answers(version: Path, items: list[int]) -> dict[int, list[list[int]]]:
    retriever = Retriever.load(version)
    return {
        item: [[int(answer.item) for answer in row] for row in retriever.retrieve(Query([item, items[0]], k=5))]
        for item in items
    }


def test_swaps_under_load_fail_nothing_and_mix_nothing(own_recipe: Path, swapped: ServiceProcess) -> None:
    config = load_config(own_recipe, ["index.keep_versions=10", "index.min_recall=0"])
    items = [item["item"] for item in swapped.call("GET", "/v1/items?limit=12").json["items"]]
    versions = [current_version(config.model_dir("index"))]
    expected = {versions[0].name: expected_answers(versions[0], items)}
    with Load(swapped, items) as load:
        for seed in range(3):
            versions.append(build_another(config, seed))
            expected[versions[-1].name] = expected_answers(versions[-1], items)
            swapped.wait_for(versions[-1].name)
        for version in (*versions, *reversed(versions), *versions):
            publish(version, keep=10)
            swapped.wait_for(version.name)
            time.sleep(0.1)
    assert load.failures == []
    assert len(load.answers) > 50
    for item, content in load.answers:
        found = [[shown["item"] for shown in answer["items"]] for answer in content["answers"]]
        assert found == expected[content["version"]][item]
    assert {content["version"] for _, content in load.answers} == set(expected)
    assert swapped.metric("mtmh_index_swaps_total") >= 12


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "not a manifest"])
def test_a_bad_version_is_refused_and_the_old_one_stays(own_recipe: Path, swapped: ServiceProcess, damage: str) -> None:
    config = load_config(own_recipe, ["index.keep_versions=20", "index.min_recall=0"])
    index_dir = config.model_dir("index")
    good = current_version(index_dir)
    swapped.wait_for(good.name)
    bad = new_version(index_dir)
    shutil.copytree(good, bad, dirs_exist_ok=True)
    file = next(iter(sorted(bad.glob("*.faiss"))))
    data = file.read_bytes()
    if damage == "altered":
        file.write_bytes(data[:-8] + bytes(8) if data[-8:] != bytes(8) else data[:-8] + b"\1" * 8)
    elif damage == "truncated":
        file.write_bytes(data[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        (bad / "manifest.json").write_text("{}")
    pointer = (index_dir / "CURRENT").read_text()
    refused = swapped.metric("mtmh_index_refused_total")
    items = [item["item"] for item in swapped.call("GET", "/v1/items?limit=6").json["items"]]
    with Load(swapped, items) as load:
        # What `publish` would never do.
        write_atomically(index_dir / "CURRENT", f'{{"version": "{bad.name}"}}')
        end = time.monotonic() + 20
        while swapped.metric("mtmh_index_refused_total") == refused:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.3)
    assert load.failures == []
    assert {content["version"] for _, content in load.answers} == {good.name}
    assert swapped.metric("mtmh_index_refused_total") == refused + 1  # said once, looked at many times
    assert f"{good.name} stays" in swapped.log.read_text()
    write_atomically(index_dir / "CURRENT", pointer)
    another = build_another(config, seed=99)
    swapped.wait_for(another.name)


def test_a_file_cut_off_in_use_is_noticed_before_it_is_read(own_recipe: Path, swapped: ServiceProcess) -> None:
    config = load_config(own_recipe, ["index.keep_versions=20", "index.min_recall=0"])
    version = current_version(config.model_dir("index"))
    swapped.wait_for(version.name)
    lists = next(iter(sorted(version.glob("*.lists"))))
    whole = lists.read_bytes()
    refused = swapped.metric("mtmh_index_refused_total")
    with lists.open("r+b") as file:  # the very file that is mapped: a read past its new end would be a SIGBUS
        file.truncate(0)
    for _ in range(3):
        assert swapped.retrieve(triggers=[17]).status == 503
    assert swapped.call("GET", "/readyz").status == 503
    assert swapped.call("GET", "/healthz").status == 200
    end = time.monotonic() + 20
    while swapped.metric("mtmh_index_refused_total") == refused:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert f"{lists}: 0 bytes, the manifest says {len(whole)}" in swapped.log.read_text()
    lists.write_bytes(whole)
    swapped.wait_for(version.name)
    assert swapped.retrieve(triggers=[17]).status == 200
    with lists.open("r+b") as file:
        file.truncate(len(whole) // 2)
    assert swapped.retrieve(triggers=[23]).status == 503  # 17 is in the cache
    another = build_another(config, seed=100)
    end = time.monotonic() + 20
    while swapped.retrieve(triggers=[23]).status != 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    swapped.wait_for(another.name)


def test_a_file_that_is_cut_off_while_questions_read_it_ends_no_process(
    own_recipe: Path, swapped: ServiceProcess
) -> None:
    config = load_config(own_recipe)
    version = current_version(config.model_dir("index"))
    swapped.wait_for(version.name)
    lists = next(iter(sorted(version.glob("*.lists"))))
    whole = lists.read_bytes()
    ended = threading.Event()

    def ask(seed: int) -> Counter[int]:
        source = random.Random(seed)
        statuses: Counter[int] = Counter()
        while not ended.is_set():
            question = {"triggers": source.choices(range(1, 400), k=100), "k": 100, "k_ann": 400, "num_probes": 20}
            statuses[swapped.retrieve(**question).status] += 1
        return statuses

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, seed) for seed in range(4)]
        try:
            for _ in range(12):
                time.sleep(0.15)
                with lists.open("r+b") as file:  # waits for the questions under way
                    file.truncate(0)
                    time.sleep(0.05)
                    file.write(whole)
                end = time.monotonic() + 30
                while swapped.call("GET", "/readyz").status != 200:
                    assert time.monotonic() < end
                    time.sleep(0.02)
        finally:
            ended.set()
        statuses = sum((job.result() for job in asking), Counter())
    assert swapped.process.poll() is None
    assert set(statuses) == {200, 503}, statuses
    assert swapped.retrieve(triggers=[17]).status == 200
