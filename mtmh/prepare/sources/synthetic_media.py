"""Pictures and concepts of a simulated catalogue, for content encoders: both follow the topic, both are noisy.

**Pictures.** 32 x 32 pixels. The coarse topic gives the hue, the fine topic the hue of a disc and the direction of
stripes; the disc's place and size, phase, contrast and brightness are the item's own, and pixels are noisy. Some
pictures show another topic, some items have none, and a few files are damaged.

**Concepts.** What people and machines would attach to an item, from three sources that differ in care: ``hashtag``,
``query`` and ``generated`` are words of the item's fine topic, in most cases others than those of its title, or, for a
share of them, of another fine topic of the same coarse one; each is with its source's probability a word of any topic
instead. Topic names are never concepts: they are the labels that the teacher is checked against.

A picture and a concept are functions of (topic, title, seed), so any catalogue of the simulator can be given them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import Config, NonNegative, Positive, Settings
from mtmh.config.recorded import recorded_section
from mtmh.data.dataset import open_dataset
from mtmh.data.randomness import Purpose, generator
from mtmh.prepare.sources.synthetic import IntArray, Share, SyntheticOptions, topic_words

IMAGES = Path("images.parquet")
CONCEPTS = Path("concepts.parquet")
SIDE = 32
MEDIA_CHUNK_ITEMS = 4_000
# Source -> share of its concepts that are words of any topic.
WRONG_SHARE = {"hashtag": 0.25, "query": 0.4, "generated": 0.1}


class MediaOptions(Settings):
    """Shares of noise."""

    pixel_noise: NonNegative = 0.15  # standard deviation, of a range of 1
    wrong_image_share: Share = 0.1
    missing_image_share: Share = 0.05
    broken_image_share: Share = 0.005
    concepts_per_item: Positive = 4
    coarse_concept_share: Share = 0.4  # concepts that tell the coarse topic only


def write_media(config: Config, out: Path, options: MediaOptions | None = None) -> Artifact:
    """Draws the pictures and concepts of a recipe's simulated dataset.

    Args:
        config: the recipe; its dataset must exist and come from the source ``synthetic``.
        out: folder of the media: ``images.parquet`` (item_id, image) and ``concepts.parquet`` (item_id, concept,
            source).
        options: how much is noise.

    Raises:
        ValueError: no dataset, or one of another source.
    """
    options = options or MediaOptions()
    dataset = open_dataset(config.dataset_dir)
    if dataset.summary.source != "synthetic":
        raise ValueError(f"{config.dataset_dir}: source {dataset.summary.source}; only simulated items can be drawn")
    simulated = recorded_section(dataset.artifact, "data.options", SyntheticOptions)
    topics = topic_words(simulated.num_topics_l1, simulated.num_topics_l2)
    number = {(topic.l1, topic.l2): i for i, topic in enumerate(topics)}
    items = dataset.items(["item_id", "topic_l1", "topic_l2"])
    names = zip(items.column("topic_l1").to_pylist(), items.column("topic_l2").to_pylist(), strict=True)
    topic = np.array([number[name] for name in names])
    item_ids = items.column("item_id").combine_chunks()
    # No setting of a recipe beside those of the dataset: how much is noise is told by the files.
    with write_artifact(
        out, "media", config=options.model_dump(), decisive={}, inputs={"dataset": dataset.artifact}
    ) as writer:
        _write_images(writer.folder / IMAGES, item_ids, topic, simulated, config.seed, options)
        words = [topic.words for topic in topics]
        table = draw_concepts(topic, simulated.num_topics_l2, words, options, config.seed)
        table = table.set_column(0, "item_id", item_ids.take(table.column("item")))
        pq.write_table(table, writer.folder / CONCEPTS)
        writer.summary.update(num_items=dataset.num_items, num_concepts=table.num_rows)
    return open_artifact(out, "media")


def render(
    topic: IntArray, num_l1: int, num_l2: int, pixel_noise: float, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Pictures [N, SIDE, SIDE, 3] of items by topic number [N] (``l1 * num_l2 + l2``)."""
    count = len(topic)
    l1, l2 = np.divmod(topic, num_l2)
    across = np.linspace(-1.0, 1.0, SIDE)
    x, y = across[None, None, :], across[None, :, None]

    def own(low: float, high: float) -> npt.NDArray[np.float64]:
        return rng.uniform(low, high, count)[:, None, None]

    angle = (np.pi * l2 / num_l2)[:, None, None] + rng.normal(0.0, 0.08, count)[:, None, None]
    frequency = 6.0 + 3.0 * (l2 % 2)[:, None, None]
    stripes = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + own(0.0, 2.0 * np.pi))
    disc = (x - own(-0.5, 0.5)) ** 2 + (y - own(-0.5, 0.5)) ** 2 < own(0.1, 0.3)
    light = 0.55 + own(-0.1, 0.1) + own(0.15, 0.3) * stripes
    ground, spot = (_tint(part + rng.normal(0.0, 0.02, count)) for part in (l1 / num_l1, l2 / num_l2))
    pixels = light[..., None] * np.where(disc[..., None], spot, ground)
    pixels += rng.normal(0.0, pixel_noise, pixels.shape)
    return (255.0 * pixels.clip(0.0, 1.0)).astype(np.uint8)


def _tint(hue: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Colours [N, 1, 1, 3] by hue [N], one turn of the circle being 1."""
    # Three cosines a third of the circle apart: no conversion of colour spaces is needed.
    thirds = np.array([0.0, 1.0, 2.0]) / 3.0
    return (0.65 + 0.35 * np.cos(2.0 * np.pi * (hue[:, None] - thirds)))[:, None, None, :]


def draw_concepts(
    topic: IntArray, num_l2: int, words: Sequence[Sequence[str]], options: MediaOptions, seed: int
) -> pa.Table:
    """Concepts of items by topic number [N], with columns item (index), concept and source."""
    rng = generator(Purpose.SYNTHETIC_MEDIA, seed, 0)
    vocabulary = pa.array([word for own in words for word in own])
    sizes = np.array([len(own) for own in words])
    starts = np.cumsum(sizes) - sizes
    item = np.repeat(np.arange(len(topic)), options.concepts_per_item)
    source = rng.integers(len(WRONG_SHARE), size=len(item))
    wrong = rng.random(len(item)) < np.array(list(WRONG_SHARE.values()))[source]
    coarse = rng.random(len(item)) < options.coarse_concept_share
    sibling = topic[item] // num_l2 * num_l2 + rng.integers(num_l2, size=len(item))
    shown = np.where(wrong, rng.integers(len(words), size=len(item)), np.where(coarse, sibling, topic[item]))
    picked = vocabulary.take(pa.array(starts[shown] + rng.integers(sizes[shown])))
    is_hashtag = pa.array(source == list(WRONG_SHARE).index("hashtag"))
    concept = pc.if_else(is_hashtag, pc.binary_join_element_wise("#", picked, ""), picked)
    names = pa.array(list(WRONG_SHARE)).take(pa.array(source))
    return pa.table({"item": item, "concept": concept, "source": names})


def _write_images(
    path: Path, item_ids: pa.Array, topic: IntArray, simulated: SyntheticOptions, seed: int, options: MediaOptions
) -> None:
    num_l1, num_l2 = simulated.num_topics_l1, simulated.num_topics_l2
    schema = pa.schema([("item_id", item_ids.type), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, len(topic), MEDIA_CHUNK_ITEMS):
            rng = generator(Purpose.SYNTHETIC_MEDIA, seed, 1, start)
            own = topic[start : start + MEDIA_CHUNK_ITEMS]
            wrong = rng.random(len(own)) < options.wrong_image_share
            shown = np.where(wrong, rng.integers(num_l1 * num_l2, size=len(own)), own)
            files = [_jpeg(pixels) for pixels in render(shown, num_l1, num_l2, options.pixel_noise, rng)]
            broken = np.flatnonzero(rng.random(len(own)) < options.broken_image_share)
            for place in broken:
                files[place] = files[place][: len(files[place]) // 3]
            with_image = np.flatnonzero(rng.random(len(own)) >= options.missing_image_share)
            writer.write_table(
                pa.table(
                    [
                        item_ids.take(pa.array(start + with_image)),
                        pa.array([files[place] for place in with_image], pa.binary()),
                    ],
                    schema=schema,
                )
            )


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()
