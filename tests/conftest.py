"""The markers ``slow`` and ``long``, by which `make test-fast` and `make test` leave tests out, and an S3 server."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mtmh.places import RemotePath

HERE = Path(__file__).parent
# How long an example takes says how busy the machine is; what takes how long is for benchmarks/.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# Ranks and services are forked from a process that has imported, once, what takes them seconds.
multiprocessing.set_forkserver_preload(
    [
        "mtmh.training.trainer",
        "mtmh.preranking.export",
        "mtmh.preranking.trainer",
        "mtmh.serving.server",
        "mtmh.tower.unseen",
        "tests.preloaded",  # found where pytest runs in the folder of the project
    ]
)
# Half a minute each and more, and what they show is shown on a smaller scale by their neighbours.
LONG = [
    "benchmarks/test_first_hour.py::test_checks_of_whole_programs_pass",
    "benchmarks/test_lookup_run.py",
    "benchmarks/test_training_benchmark.py",
    "benchmarks/test_checkpoint_stall.py",
    "chain/test_chain.py::test_a_teacher_that_cannot_tell_topics_apart_stops_the_chain",
    "content/test_content_train.py::test_a_killed_run_resumes_and_ends_as_one_that_was_not",
    # distributed/test_node.py has torchrun restart ranks too.
    "distributed/test_kill.py::test_torchrun_goes_on_by_itself_when_a_worker_is_killed",
    "distributed/test_kill_preranker.py",
    "distributed/test_node.py::test_the_job_ends_when_the_first_node_is_lost_and_goes_on_when_it_is_started_again",
    "distributed/test_ranks_id_tables.py",
    "test_end_to_end.py",  # chain/test_chain.py goes the same way by TorchX jobs, cli/test_start.py by `mtmh run`
]
SLOW = [
    HERE / name
    for name in (
        "benchmarks",
        "distributed",
        "papers/test_reproduce.py",
        "slurm",
        "chain/test_chain.py",
        "chain/test_killed_chain.py",
        "cli/test_doctor.py",
        "cli/test_errors.py",
        "cli/test_start.py",
        "content/test_content_catalogue.py",
        "content/test_content_check.py",
        "content/test_content_cli.py",
        "content/test_content_train.py",
        "live/test_learned_preranker.py",
        "pages/test_in_browser.py",
        "prepare/test_lake.py",
        "prepare/test_nothing_is_altered.py",
        "prepare/test_remote_files.py",
        "prepare/test_spark.py",
        "preranking/test_train_preranker.py",
        "retrieval/test_similar_items.py",
        "serving/test_client.py",
        "serving/test_connections.py",
        "serving/test_explorer.py",
        "serving/test_features_and_shares.py",
        "serving/test_fuzz.py",
        "serving/test_item_routes.py",
        "serving/test_pictures.py",
        "serving/test_recipe_settings.py",
        "serving/test_service.py",
        "serving/test_shaped_answers.py",
        "serving/test_swap.py",
        "serving/test_writes.py",
        "start/test_model.py",
        "test_end_to_end.py",
        "test_extras.py",
        "test_import.py",
        "test_notebooks.py",
        "test_python_blocks.py",
        "test_site.py",
        "test_transfer.py",
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
    for name in LONG:
        file, _, function = name.partition("::")
        assert function in (HERE / file).read_text(), f"tests/conftest.py: {name} is gone"
    # A long file that comes last keeps one worker while the others have nothing to do.
    items.sort(key=lambda item: not item.path.is_relative_to(HERE / "tuning"))
    for item in items:
        if any(item.path.is_relative_to(path) for path in SLOW):
            item.add_marker(pytest.mark.slow)
        if any(item.nodeid.removeprefix("tests/").startswith(name) for name in LONG):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server on loopback, which the environment names as AWS's tools expect it: its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",  # as delta-rs wants it said
    }
    patch = pytest.MonkeyPatch()
    for name, value in environment.items():
        patch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end, "the S3 server does not listen"
            assert server.poll() is None, "the S3 server is gone"
            time.sleep(0.1)
        yield environment["AWS_ENDPOINT_URL"]
    finally:
        server.terminate()
        server.wait()
        patch.undo()


@pytest.fixture
def bucket(s3_server: str) -> RemotePath:
    """A bucket of the test's own."""
    from pyarrow.fs import S3FileSystem

    name = f"b-{uuid.uuid4().hex[:12]}"
    S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True).create_dir(name)
    return RemotePath(f"s3://{name}")
