"""What the service adds to an answer: CPU time of a question through the application, beside the retriever itself.

Both answer the same question in turns, in one process on one thread; sockets and the protocol's parser are left out,
and so is the cache of answers. Ratios are of CPU time, so that they hold on a busy machine too.

    OMP_NUM_THREADS=1 python -m benchmarks.http_overhead                  # 4,000 simulated items, two minutes at first
    OMP_NUM_THREADS=1 python -m benchmarks.http_overhead --recipe demo    # your index
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from benchmarks.report import report_head
from benchmarks.serving.world import make_world
from mtmh.config import load_config
from mtmh.data.dataset import open_dataset
from mtmh.retrieval.retriever import Retriever
from mtmh.retrieval.timings import Timings
from mtmh.serving.api import RetrieveRequest
from mtmh.serving.app import create_app
from mtmh.serving.service import Service

WARM_UP = 20
HISTORY = 50  # items


def main() -> None:
    """Prints a row for each kind of question and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="with a built index; default: one over simulated items")
    parser.add_argument("--items", type=int, default=4000, help="of the simulated catalogue")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/serving"), help="where it is made and kept")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config = load_config(str(args.recipe or make_world(args.work, args.items)), ["service.cache_mb=0"])
    ids = open_dataset(config.dataset_dir).item_ids.tolist()
    service = Service(
        config.name, config.model_dir("index"), config.model_dir("evaluation"), config.service, config.retrieval
    )
    draw = random.Random(0)
    questions: dict[str, list[dict[str, Any]]] = {
        "one trigger": [{"triggers": [draw.choice(ids)]} for _ in range(args.requests)],
        f"history of {HISTORY}": [{"history": draw.choices(ids, k=HISTORY)} for _ in range(args.requests)],
    }
    report = report_head(args) | {"rows": []}
    try:
        for name, asked in questions.items():
            report["rows"].append({"name": name, **asyncio.run(in_turns(service, asked))})
            row = report["rows"][-1]
            print(
                f"{name:<16} through the application {row['application_ms']:6.2f} ms of CPU time, directly"
                f" {row['retriever_ms']:6.2f}; {row['throughput_ratio']:.3f} of the retriever's throughput"
            )
    finally:
        service.close()
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=2))


async def in_turns(service: Service, questions: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over questions, in milliseconds of CPU time."""
    app, retriever = create_app(service), service.current.snapshot.retriever
    through, direct = [], []
    for question in questions[:WARM_UP] + questions:
        body = json.dumps(question).encode()
        start = time.process_time()
        await ask(app, body)
        between = time.process_time()
        answer(retriever, body)
        through.append(1e3 * (between - start))
        direct.append(1e3 * (time.process_time() - between))
    application, alone = statistics.median(through[WARM_UP:]), statistics.median(direct[WARM_UP:])
    return {"application_ms": application, "retriever_ms": alone, "throughput_ratio": alone / application}


def answer(retriever: Retriever, body: bytes) -> None:
    """The answer as objects, by the retriever alone."""
    query = RetrieveRequest.model_validate_json(body).query()
    if query.history is not None:
        retriever.retrieve_user(query, Timings())
    else:
        retriever.retrieve(query, Timings())


async def ask(app: FastAPI, body: bytes) -> None:
    """The answer as JSON, by the application."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if not waiting:
            await asyncio.Event().wait()  # the client stays
        return waiting.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/retrieve",
        "raw_path": b"/v1/retrieve",
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    if sent[0]["status"] != 200:
        raise SystemExit(f"the service answered {sent[0]['status']}: {sent[1]['body'].decode()}")


if __name__ == "__main__":
    main()
