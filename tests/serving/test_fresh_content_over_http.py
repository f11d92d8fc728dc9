"""Fresh items that bring a text and no embedding: the service's own teacher reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from service_process import ServiceProcess
from tiny_bert import WORDS, write_bert

RECIPE = """
name: served
paths: {{root: {root}/runs}}
data: {{source: tables, events: [{root}/events.parquet], items: [{root}/items.parquet], columns: {{text: [text]}}}}
content: {{kind: transformers, model: {root}/bert}}
model: {{embedding_dim: 8, dense_hidden: [16], dense_dim: 8, content_dim: 8, head_hidden: [32], head_dim: 16}}
loss: {{num_uniform_negatives: 32}}
training: {{batch_size: 60, max_steps: 10}}
index: {{min_recall: 0.5}}
retrieval: {{sorter: head-score}}
"""
PAIRS = sorted((a, b) for a in WORDS for b in WORDS)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose items are known by their texts, two words each."""
    from mtmh.config import load_config
    from mtmh.content.embed import embed_content
    from mtmh.index.build import build_version
    from mtmh.prepare.prepare import prepare
    from mtmh.tower.embed import embed_catalogue
    from mtmh.training.trainer import train

    root = tmp_path_factory.mktemp("fresh")
    write_bert(root / "bert")
    items, users = len(PAIRS), 60
    events = [(user, (user * 7 + step * 11) % items, 1000 * step + user) for user in range(users) for step in range(12)]
    columns = zip(("user_id", "item_id", "timestamp"), zip(*events, strict=True), strict=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns}), root / "events.parquet")
    texts = [" ".join(pair) for pair in PAIRS]
    pq.write_table(pa.table({"item_id": list(range(items)), "text": texts}), root / "items.parquet")
    path = root / "served.yaml"
    path.write_text(RECIPE.format(root=root))
    config = load_config(path)
    prepare(config, config.dataset_dir)
    embed_content(config, config.content_dir)
    train(config)
    embed_catalogue(config, config.model_dir("embeddings"))
    build_version(config)
    return path


@pytest.fixture(scope="module")
def service(recipe: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(recipe) as running:
        yield running


def nearest(service: ServiceProcess, item: int, k: int = 5) -> list[int]:
    reply = service.retrieve(triggers=[item], k=k)
    assert reply.status == 200, reply.body
    return [found["item"] for found in reply.json["answers"][0]["items"]]


def test_an_item_of_a_known_text_is_where_items_of_that_text_are(service: ServiceProcess) -> None:
    row: dict[str, Any] = dict.fromkeys(service.call("GET", "/v1/index").json["features"])
    reply = service.write(
        "POST", "/v1/items", {"items": [row | {"item_id": 5000, "text": "red shoe"}, row | {"item_id": 5001}]}
    )
    assert reply.status == 200, reply.body
    twins = [row | {"item_id": 5002, "text": "red shoe"}, row | {"item_id": 5003, "text": "blue hat"}]
    assert service.write("POST", "/v1/items", {"items": twins}).status == 200
    assert nearest(service, 5000, k=1) == [5002], "the same text is the same item to the tower"
    assert nearest(service, 5001) != nearest(service, 5000), "without a text little is known of it"
    assert nearest(service, 5003) != nearest(service, 5000)
    again = service.write("POST", "/v1/items", {"items": [row | {"item_id": 5000, "text": "red shoe"}]})
    assert again.status == 200, "an addition may be repeated"
    wrong = service.write("POST", "/v1/items", {"items": [row | {"item_id": 5004, "text": 3}]})
    assert wrong.status == 422
    assert "text" in wrong.json["detail"]


def test_a_service_that_cannot_use_the_teacher_says_so_and_serves(recipe: Path) -> None:
    other = recipe.with_name("other.yaml")
    other.write_text(recipe.read_text().replace("/bert}", "/gone}"))
    with ServiceProcess(other) as running:
        row: dict[str, Any] = dict.fromkeys(running.call("GET", "/v1/index").json["features"])
        reply = running.write("POST", "/v1/items", {"items": [row | {"item_id": 6000, "text": "red shoe"}]})
        assert reply.status == 200, reply.body
        log = running.log.read_text()
        assert "without a content_embedding are known by their features alone: the teacher cannot be used" in log
