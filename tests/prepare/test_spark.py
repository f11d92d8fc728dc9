"""Prepare on a real Spark cluster (a master and two workers on loopback) gives DuckDB's dataset, byte for byte."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs as pafs
import pytest
import yaml
from every_source import every_source
from prepare_helpers import files_of

from mtmh.artifacts import Artifact
from mtmh.cli import __main__ as script
from mtmh.config import Config
from mtmh.places import RemotePath
from mtmh.prepare.prepare import prepare

pyspark = pytest.importorskip("pyspark", reason="no pyspark: pip install -r requirements/spark.txt")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("no Java: apt-get install openjdk-17-jre-headless", allow_module_level=True)

NAMES = [
    "synthetic by user",
    "synthetic by time",
    "tables by user",
    "tables by time",
    "tables by an instant",
    "tables without items",
    "labels by user",
    "labels by time",
    "labels but the last",
    "movielens by user",
    "movielens by time",
    "journey by user",
    "journey by time",
    "retail by user",
    "retail by time",
    "amazon by user",
]
# Of each way to read and to split; the others take minutes together. That of object storage is "tables by time".
QUICK = ["tables by user", "tables without items", "labels by time", "movielens by user"]
# Small data: to compile its queries would take longer than to run them.
OPTIONS = {
    "spark.cores.max": "2",
    "spark.executor.cores": "1",
    "spark.executor.memory": "600m",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
PATIENCE = 1800.0  # seconds, on a busy machine


class Cluster:
    """A master and two workers, each a process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"spark://127.0.0.1:{port}"
        self._folder = folder
        deploy = "org.apache.spark.deploy"
        self._processes = [
            self._start("master", f"{deploy}.master.Master", "--port", str(port)),
            *(
                self._start(name, f"{deploy}.worker.Worker", "-c", "2", "-m", "2g", "-d", f"{folder}/{name}", self.url)
                for name in ("worker-1", "worker-2")
            ),
        ]
        end = time.monotonic() + PATIENCE
        while self._log("master").count("Registering worker") < 2:
            assert time.monotonic() < end, self._log("master")
            time.sleep(0.2)

    def kill_worker(self) -> None:
        """Kills a worker with its executors, as a host that goes down."""
        worker = psutil.Process(self._processes[-1].pid)
        for process in [*worker.children(recursive=True), worker]:
            process.send_signal(signal.SIGKILL)
        self._processes[-1].wait()

    @property
    def workers_with_executors(self) -> int:
        """The number of workers at whom an executor runs."""
        return sum(bool(psutil.Process(process.pid).children()) for process in self._processes[1:])

    def stop(self) -> None:
        """Ends all processes."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait()

    def _start(self, name: str, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        program = Path(pyspark.__file__).parent / "bin" / "spark-class"
        command = [str(program), main, "--host", "127.0.0.1", "--webui-port", "0", *arguments]
        environment = os.environ | {
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_MEMORY": "300m",
            "JAVA_TOOL_OPTIONS": JAVA,
        }
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def _log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: str) -> Iterator[Cluster]:
    """Its workers have the credentials of the S3 server in their environment."""
    del s3_server
    patch = pytest.MonkeyPatch()
    patch.setenv("JAVA_TOOL_OPTIONS", JAVA)
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("PYSPARK_PYTHON", sys.executable)
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    started.stop()
    patch.undo()


@pytest.fixture(scope="module")
def session(cluster: Cluster) -> Iterator[None]:
    """One application for many datasets: to start one takes as long as they do."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(cluster.url)
    for key, value in OPTIONS.items():
        builder = builder.config(key, value)
    running = builder.getOrCreate()
    yield
    running.stop()


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    return every_source(tmp_path_factory.mktemp("sources"))


def on_spark(config: Config, **spark: Any) -> Config:
    tree = config.model_dump(mode="json")
    tree["data"] |= {"engine": "spark", "spark": spark}
    return Config.model_validate(tree)


def facts(artifact: Artifact) -> dict[str, Any]:
    return {"digest": artifact.manifest.digest, "files": files_of(artifact.path), **artifact.summary}


def test_all_recipes_are_compared(recipes: dict[str, Config]) -> None:
    assert sorted(recipes) == sorted(NAMES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in NAMES]
)
@pytest.mark.usefixtures("session")
def test_spark_gives_the_dataset_of_duckdb(
    tmp_path: Path, recipes: dict[str, Config], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = prepare(recipes[name], tmp_path / "duckdb")
    assert expected.summary["num_items"] >= 20
    assert expected.summary["num_users"] >= 20
    assert expected.summary["dropped_events"]
    # Fewer rows than users and items: no vocabulary and no count of each comes to the driver.
    monkeypatch.setattr("mtmh.prepare.spark_engine.FEW_ROWS", 16)
    monkeypatch.setattr("mtmh.prepare.steps.STEPS_OF_TIME", 16)
    found = prepare(on_spark(recipes[name]), tmp_path / "spark")
    assert facts(found) == facts(expected)
    assert {path.name for path in tmp_path.iterdir()} == {"duckdb", "spark"}


@pytest.mark.usefixtures("session")
def test_executors_read_from_object_storage(tmp_path: Path, recipes: dict[str, Config], bucket: RemotePath) -> None:
    config = recipes["tables by time"]
    expected = prepare(config, tmp_path / "duckdb")
    there = bucket / "shop"
    pafs.copy_files(str(config.data.input), there.path, destination_filesystem=there.filesystem)
    tree = on_spark(config).model_dump(mode="json")
    tree["data"]["input"] = str(there)
    assert files_of(prepare(Config.model_validate(tree), tmp_path / "spark").path) == files_of(expected.path)


@pytest.mark.usefixtures("session")
def test_a_file_that_an_executor_cannot_read_is_named(tmp_path: Path, recipes: dict[str, Config]) -> None:
    config = recipes["tables by time"]
    folder = tmp_path / "data"
    shutil.copytree(Path(str(config.data.input)), folder)
    broken = folder / "day=2" / "e.parquet"
    content = bytearray(broken.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    broken.write_bytes(content)
    tree = on_spark(config).model_dump(mode="json")
    tree["data"]["input"] = str(folder)
    with pytest.raises(ValueError, match=r"day=2/e\.parquet: cannot be read"):
        prepare(Config.model_validate(tree), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path, cluster: Cluster, recipes: dict[str, Config]) -> None:
    """The last test of the cluster, by spark-submit as a person would."""
    config = recipes["labels by user"]
    expected = prepare(config, tmp_path / "duckdb")
    tree = on_spark(config).model_dump(mode="json")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree))
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    options = [word for key, value in OPTIONS.items() for word in ("--conf", f"{key}={value}")]
    command = [str(submit), "--master", cluster.url, *options, script.__file__]
    command += ["prepare", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "spark")]
    environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1"}
    with (tmp_path / "submit.log").open("wb") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    scratch = tmp_path / ".spark.partial" / "scratch"
    end = time.monotonic() + PATIENCE
    while not (any(scratch.glob("split-*")) and cluster.workers_with_executors == 2):
        assert driver.poll() is None, (tmp_path / "submit.log").read_text()
        assert time.monotonic() < end, (tmp_path / "submit.log").read_text()
        time.sleep(0.05)
    cluster.kill_worker()
    assert driver.poll() is None, "it ended before the worker did"
    assert driver.wait(PATIENCE) == 0, (tmp_path / "submit.log").read_text()
    assert "Lost executor" in (tmp_path / "submit.log").read_text()
    assert files_of(tmp_path / "spark") == files_of(expected.path)
