"""Simulated pictures and concepts follow topics, are noisy as asked, and are the same for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from synthetic_dataset import make_config, random_histories, write_dataset

from mtmh.config import load_config
from mtmh.content.images import decode
from mtmh.prepare.prepare import prepare
from mtmh.prepare.sources.synthetic import topic_words
from mtmh.prepare.sources.synthetic_media import (
    CONCEPTS,
    IMAGES,
    SIDE,
    MediaOptions,
    draw_concepts,
    render,
    write_media,
)

OPTIONS = ["num_users=40", "num_items=300", "num_events=1500", "num_topics_l1=3", "num_topics_l2=2", "num_days=5"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("media")
    config = load_config("synthetic", [f"paths.root={root}", *(f"data.options.{option}" for option in OPTIONS)])
    prepare(config, config.dataset_dir)
    return config


def test_files_and_noise(config: Any) -> None:
    options = MediaOptions(missing_image_share=0.2, broken_image_share=0.1, concepts_per_item=3)
    artifact = write_media(config, config.media_dir, options)
    images = pq.read_table(artifact.path / IMAGES)
    assert 200 < images.num_rows < 280
    pictures = [decode(file) for file in images.column("image").to_pylist()]
    assert 5 < sum(picture is None for picture in pictures) < 60
    assert {picture.size for picture in pictures if picture is not None} == {(SIDE, SIDE)}
    concepts = pq.read_table(artifact.path / CONCEPTS)
    assert concepts.num_rows == 900
    assert set(concepts.column("source").to_pylist()) == {"hashtag", "query", "generated"}
    names = {name for topic in topic_words(3, 2) for name in (topic.l1.lower(), topic.l2.lower())}
    assert not names & set(concepts.column("concept").to_pylist())


def test_the_same_seed_gives_the_same_media(config: Any, tmp_path: Path) -> None:
    first, second = (write_media(config, tmp_path / name) for name in ("a", "b"))
    assert first.manifest.files == second.manifest.files
    other = write_media(config.model_copy(update={"seed": 9}), tmp_path / "c")
    assert other.manifest.files != first.manifest.files


def test_pictures_of_a_topic_are_alike() -> None:
    rng = np.random.default_rng(0)
    topic = np.repeat(np.arange(6), 20)
    pixels = render(topic, 3, 2, 0.1, rng).astype(np.float64)
    assert pixels.shape == (120, SIDE, SIDE, 3)
    colour = pixels.mean(axis=(1, 2))
    centre = np.stack([colour[topic // 2 == l1].mean(axis=0) for l1 in range(3)])
    nearest = np.linalg.norm(colour[:, None] - centre, axis=2).argmin(axis=1)
    assert (nearest == topic // 2).mean() > 0.9


def test_concepts_are_words_of_the_topic_but_for_the_noise() -> None:
    words = [[f"{topic}-{word}" for word in range(5)] for topic in range(6)]
    topic = np.repeat(np.arange(6), 500)
    options = MediaOptions(coarse_concept_share=0.5)
    table = draw_concepts(topic, 2, words, options, seed=0)
    source = np.array(table.column("source").to_pylist())
    shown = np.array([int(text.lstrip("#").split("-")[0]) for text in table.column("concept").to_pylist()])
    own = topic[table.column("item").to_numpy()]
    for name, wrong in (("hashtag", 0.25), ("query", 0.4), ("generated", 0.1)):
        here = source == name
        # Half of the right ones are of one of two fine topics; a sixth of the wrong ones are right by chance.
        assert (shown == own)[here].mean() == pytest.approx((1 - wrong) * 0.75 + wrong / 6, abs=0.03)
        assert (shown // 2 == own // 2)[here].mean() == pytest.approx((1 - wrong) + wrong / 3, abs=0.03)
    assert all(text.startswith("#") for text in np.array(table.column("concept").to_pylist())[source == "hashtag"])


def test_only_simulated_catalogues(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", random_histories(4))
    with pytest.raises(ValueError, match="only simulated items can be drawn"):
        write_media(make_config(tmp_path), tmp_path / "media")
