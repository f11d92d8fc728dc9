"""The marker ``slow``: tests that train, spawn processes or wait, which `make test-fast` leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLOW = [
    HERE / name
    for name in (
        "benchmarks",
        "distributed",
        "slurm",
        "chain/test_chain.py",
        "cli/test_doctor.py",
        "cli/test_errors.py",
        "cli/test_start.py",
        "content/test_content_catalogue.py",
        "content/test_content_check.py",
        "content/test_content_cli.py",
        "content/test_content_train.py",
        "live/test_learned_preranker.py",
        "prepare/test_nothing_is_altered.py",
        "preranking/test_train_preranker.py",
        "retrieval/test_similar_items.py",
        "serving/test_client.py",
        "serving/test_connections.py",
        "serving/test_explorer.py",
        "serving/test_features_and_shares.py",
        "serving/test_fuzz.py",
        "serving/test_item_routes.py",
        "serving/test_recipe_settings.py",
        "serving/test_service.py",
        "serving/test_swap.py",
        "serving/test_writes.py",
        "start/test_model.py",
        "test_end_to_end.py",
        "test_extras.py",
        "test_import.py",
        "test_python_blocks.py",
        "tower/test_delta.py",
        "training/test_auto_length.py",
        "training/test_continuation.py",
        "training/test_train.py",
        "training/test_train_id_tables.py",
    )
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for path in SLOW:
        assert path.exists(), f"tests/conftest.py: {path} is gone"
    for item in items:
        if any(item.path.is_relative_to(path) for path in SLOW):
            item.add_marker(pytest.mark.slow)
