"""Two tables of a small shop: customers keep to a few departments, so there is something to learn."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

DEPARTMENTS = ("Kitchen", "Garden", "Music", "Sports")
SETTINGS = {
    "model.embedding_dim": 8,
    "model.dense_hidden": [8],
    "model.dense_dim": 4,
    "model.head_hidden": [16],
    "model.head_dim": 8,
    "model.content_dim": 4,
    "loss.num_uniform_negatives": 24,
    "training.max_steps": 40,
    "preranker.training.max_steps": 20,
    "preranker.linear_items": 100,
    "preranker.check_users": 30,
    "evaluation.num_users": 60,
    "evaluation.recall_at": [5, 20],
    "evaluation.exact_search": False,
}


def shop_events(num_users: int = 120, num_items: int = 160, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    shelf = num_items // len(DEPARTMENTS)
    rows = []
    for user in range(num_users):
        start = datetime(2025, 1, 1) + timedelta(hours=int(rng.integers(0, 24)))
        for visit in range(20):
            item = shelf * (user % len(DEPARTMENTS)) + int(rng.integers(0, shelf))
            action = "purchase" if rng.random() < 0.3 else "view"
            rows.append((f"C-{user}", f"SKU-{item}", start + timedelta(days=visit * 5), action))
    users, items, times, actions = zip(*rows, strict=True)
    return pa.table({"customer": users, "sku": items, "ts": pa.array(times, pa.timestamp("us")), "action": actions})


def shop_items(num_items: int = 160, *, embeddings: bool = True, seed: int = 1) -> pa.Table:
    rng = np.random.default_rng(seed)
    shelf = num_items // len(DEPARTMENTS)
    departments = [DEPARTMENTS[item // shelf] for item in range(num_items)]
    columns = {
        "sku": [f"SKU-{item}" for item in range(num_items)],
        "title": [f"A fine thing number {item} to have" for item in range(num_items)],
        "department": departments,
        "category": [f"{department} {item % 3}" for item, department in enumerate(departments)],
        "brand": [f"brand {rng.integers(0, 12)}" for _ in range(num_items)],
        "tags": [[f"tag {tag}" for tag in rng.integers(0, 20, 2)] for _ in range(num_items)],
        "price": rng.gamma(2.0, 10.0, num_items).round(2),
        "review_count": rng.integers(0, 1000, num_items),
        "shop": ["the shop"] * num_items,
    }
    if embeddings:
        directions = np.eye(4)[[DEPARTMENTS.index(name) for name in departments]]
        vectors = np.concatenate([directions, rng.normal(0, 0.3, (num_items, 4))], axis=1)
        columns["embedding"] = pa.array(vectors.astype(np.float32).tolist(), pa.list_(pa.float32()))
    return pa.table(columns)
