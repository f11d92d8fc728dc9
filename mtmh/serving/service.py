"""The service behind the routes: the current index, the work queue, the answer cache, and how a batch is answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from starlette.responses import Response

from mtmh.adaptive.chooser import AlphaChooser
from mtmh.artifacts import DamagedArtifactError
from mtmh.config import MilvusConfig, RetrievalConfig, ServiceConfig
from mtmh.data.arrays import ItemId
from mtmh.live.segments import ChangesLostError
from mtmh.retrieval.catalogue import ItemDescription
from mtmh.retrieval.cpu_cores import compute_with, usable_cores
from mtmh.retrieval.curve import read_curve
from mtmh.retrieval.query import Query
from mtmh.retrieval.timings import Timings
from mtmh.serving.api import RetrieveRequest, beyond_limits
from mtmh.serving.api_keys import read_api_keys
from mtmh.serving.current_index import CurrentIndex, Snapshot
from mtmh.serving.http_errors import FieldProblem, Refused
from mtmh.serving.loop_lag import LoopLag
from mtmh.serving.pictures import NO_PICTURES, Pictures
from mtmh.serving.prometheus import AlphaMetrics, ServiceMetrics
from mtmh.serving.work_queue import WorkQueue

if TYPE_CHECKING:
    from mtmh.content.fresh import FreshContent

log = logging.getLogger("mtmh.serve")

_WRITE_SECONDS = 60.0
_WAITING_WRITES = 8
_WAITING_LOOKUPS = 16


class Service:
    """The state that the routes share.

    Args:
        name: of the model.
        index_dir: versioned folder of its index.
        evaluation_dir: of the evaluation that the explorer page shows, if it is there.
        limits: what the service takes on.
        defaults: of a request.
        milvus: ``index.milvus`` of the recipe; a version on another Milvus is refused.
        content: the teacher, for added items without a content embedding.
        pictures: of the items.
        adaptive: chooses the alphas of requests that leave them open; None: nobody does.

    Attributes:
        name: of the model.
        pictures: of the items.
        adaptive: see there.
        limits: what the service takes on.
        metrics: of this service.
        current: the index that answers.
        draining: whether the service is about to end.
        holds_files: whether writers of files in use have to wait; set by who handles SIGIO.
        lag: of the event loop.
        api_keys: for the routes that write.

    Raises:
        ValueError: no index that could be used, or an unreadable file of keys.
    """

    def __init__(
        self,
        name: str,
        index_dir: Path,
        evaluation_dir: Path,
        limits: ServiceConfig,
        defaults: RetrievalConfig,
        milvus: MilvusConfig | None = None,
        content: FreshContent | None = None,
        pictures: Pictures = NO_PICTURES,
        adaptive: AlphaChooser | None = None,
    ) -> None:
        self.name = name
        self.pictures = pictures
        self.adaptive = adaptive
        self.limits = limits
        self.measured_curve = partial(read_curve, evaluation_dir, index_dir)
        self.metrics = ServiceMetrics()
        if adaptive is not None:
            self.metrics.registry.register(AlphaMetrics(adaptive))
        self.draining = False
        self.holds_files = False
        self.lag = LoopLag()
        self.api_keys = read_api_keys(limits)
        self.current = CurrentIndex(index_dir, self.metrics, limits.cache_mb << 20, defaults, milvus, content)
        threads = limits.threads or usable_cores()
        on_start = partial(compute_with, limits.search_threads)
        self.queue = WorkQueue(
            "search",
            threads=threads,
            capacity=limits.queue_size,
            max_batch=limits.batch_triggers,
            on_batch=self.metrics.batch_requests.observe,
            on_start=on_start,
            lag=lambda: self.lag.seconds,
        )
        # Writes wait for each other anyhow; apart from the queue, they hold up no answer.
        self.writes = WorkQueue(
            "write",
            threads=1,
            capacity=_WAITING_WRITES,
            on_start=on_start,
        )
        # People look items up by words, which passes over the whole catalogue: one at a time, beside the questions.
        self.lookups = WorkQueue("lookup", threads=1, capacity=_WAITING_LOOKUPS)
        self.metrics.queue_depth.set_function(lambda: self.queue.depth)
        self.metrics.running.set_function(lambda: self.queue.running)
        self.metrics.loop_lag.set_function(lambda: self.lag.seconds)

    @property
    def overloaded(self) -> bool:
        """True if one more question would wait too long; the cheapest moment to refuse it is before it is read."""
        lag = self.lag.seconds
        budget = self.limits.timeout_ms / 1000 - lag  # of one that comes now
        return (
            self.queue.is_full
            or lag > self.limits.max_lag_ms / 1000
            or self.queue.would_be_late(time.monotonic() + budget)
        )

    @property
    def features(self) -> list[str]:
        """Fields of an item that the index does not know; empty: it can embed none."""
        tower = self.current.snapshot.retriever.tower
        return tower.features.names if tower is not None else []

    @property
    def numbers_an_item(self) -> int:
        """Numbers that may come with an item that the index does not know."""
        retriever = self.current.snapshot.retriever
        content = retriever.tower.features.facts.content_dim if retriever.tower is not None else 0
        return content + sum(vectors.shape[1] for vectors in retriever.vectors.values())

    def give_way(self) -> None:
        """Lets those write the index files who want to; questions of that while are refused (503)."""
        self.current.give_way(lambda: not any(queue.running for queue in (self.queue, self.lookups, self.writes)))

    async def compute(self, run: Callable[[], Any]) -> Any:
        """Runs one function in a thread, within the budget of a request."""
        return await self._run(self.queue, run)

    async def look_up(self, run: Callable[[], Any]) -> Any:
        """Runs one function that passes over the catalogue, within the budget of a request; never two at a time."""
        return await self._run(self.lookups, run)

    async def write(self, run: Callable[[float], Any]) -> Any:
        """Runs one function that changes the index; writes run one after the other.

        Args:
            run: given the deadline, of ``time.monotonic()``, after which it must not change anything.
        """
        deadline = time.monotonic() + _WRITE_SECONDS
        try:
            return (await self.writes.submit(lambda _: [run(deadline)], None, deadline=deadline)).result
        except (ChangesLostError, DamagedArtifactError) as error:  # answers go on; what to do a person must know
            log.error("a write was refused: %s", error)
            raise Refused(
                503, "changes of this index are missing on its disk: it takes no others until they are back"
            ) from None

    async def retrieve(self, request: RetrieveRequest, arrived: float, request_id: str = "") -> Response:
        """Answers from the cache or through the queue.

        Args:
            request: to answer.
            arrived: of ``time.monotonic()``, from which its budget counts.
            request_id: by which feedback may name it; empty: alpha is not chosen for it.
        """
        problems = beyond_limits(request, self.limits, self.current.snapshot.retriever.defaults.k_ann)
        if request.features and not self.features:
            problems.append(FieldProblem(field="body.features", expected="none: this index has no tower to embed them"))
        if problems:
            raise Refused(422, f"{problems[0].field}: {problems[0].expected}", fields=problems)
        request = self._with_alpha(request, request_id)
        question = request.model_dump_json(exclude={"timeout_ms"})
        cached = self.current.snapshot.cache.get(question)
        self.metrics.cache.labels("miss" if cached is None else "hit").inc()
        if cached is not None:
            return Response(cached, media_type="application/json", headers={"Server-Timing": "cache"})
        budget = min(request.timeout_ms or self.limits.timeout_ms, self.limits.timeout_ms)
        batched = request.triggers is not None and not request.side_by_side
        finished = await self.queue.submit(
            self._answer_batch,
            request,
            deadline=arrived + budget / 1000,
            key=request.model_dump_json(exclude={"triggers", "timeout_ms", "describe"}) if batched else None,
            size=len(request.triggers or ()),
        )
        snapshot, body, seconds = finished.result
        self.metrics.stages.labels("queue").observe(finished.waited)
        snapshot.cache.put(question, body)
        stages = {"queue": finished.waited, **seconds}
        timing = ", ".join(f"{stage};dur={1000 * spent:.2f}" for stage, spent in stages.items())
        return Response(body, media_type="application/json", headers={"Server-Timing": timing})

    def shown(self, items: Sequence[ItemId], descriptions: Sequence[ItemDescription]) -> list[dict[str, Any]]:
        """Display columns of items, as ``ItemText`` has them."""
        return [
            {"item": item, **asdict(described), "image": self.pictures.address(item, described.image)}
            for item, described in zip(items, descriptions, strict=True)
        ]

    def close(self) -> None:
        """Finishes what waits, and ends the threads."""
        self.holds_files = False
        self.current.release_files()
        self.queue.close()
        self.lookups.close()
        self.writes.close()
        if self.adaptive is not None:
            self.adaptive.close()

    def _with_alpha(self, request: RetrieveRequest, request_id: str) -> RetrieveRequest:
        """The request with an alpha, where it leaves it open and one would change its answer."""
        retriever = self.current.snapshot.retriever
        is_open = request.alpha is None and request.shares is None and not request.side_by_side
        # The list of a history is the learned preranker's own, as far as retrieval.user_share says.
        divided = request.triggers is not None or retriever.defaults.user_share == 0.0
        if self.adaptive is None or not (request_id and is_open and divided and len(retriever.heads) > 1):
            return request
        alpha = self.adaptive.choose(request_id, retriever, request.query())
        return request.model_copy(update={"alpha": alpha})

    async def _run(self, queue: WorkQueue, run: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + self.limits.timeout_ms / 1000
        return (await queue.submit(lambda _: [run()], None, deadline=deadline)).result

    def _answer_batch(self, requests: list[RetrieveRequest]) -> list[tuple[Snapshot, bytes, dict[str, float]]]:
        """Answers requests that differ in their triggers only, or one request of any form; all from one snapshot."""
        snapshot = self.current.snapshot
        timings = Timings()
        query = requests[0].query()
        answers = _answers(snapshot, requests, query, timings)
        with timings.stage("encode"):
            notes = snapshot.retriever.notes(query)
        encoded = []
        for request, lists in zip(requests, answers, strict=True):
            with timings.stage("encode"):
                encoded.append(self._encode(snapshot, request, lists, notes, timings))
        for stage, seconds in timings.seconds.items():
            self.metrics.stages.labels(stage).observe(seconds)
        return [(snapshot, body, timings.seconds) for body in encoded]

    def _encode(
        self,
        snapshot: Snapshot,
        request: RetrieveRequest,
        answers: list[dict[str, Any]],
        notes: list[str],
        timings: Timings,
    ) -> bytes:
        """A ``RetrieveResponse`` as JSON."""
        default = snapshot.retriever.defaults.alpha if request.shares is None else None
        alpha = request.alpha if request.alpha is not None else default
        response: dict[str, Any] = {"version": snapshot.version, "alpha": alpha, "answers": answers, "notes": notes}
        if request.describe:
            with timings.stage("describe"):
                typed = snapshot.retriever.catalogue.typed
                items = dict.fromkeys(typed(item, "item") for item in request.triggers or request.history or ())
                for answer in answers:
                    lists = [answer["items"], *answer.get("heads", {}).values(), answer.get("together") or []]
                    items.update(dict.fromkeys(found.item for found_items in lists for found in found_items))
                response["descriptions"] = self.shown(list(items), snapshot.retriever.describe(list(items)))
        return to_json(response, inf_nan_mode="null")


def _answers(
    snapshot: Snapshot, requests: Sequence[RetrieveRequest], query: Query, timings: Timings
) -> list[list[dict[str, Any]]]:
    """The answers of each request; ``query`` is that of the first one."""
    retriever = snapshot.retriever
    if query.history is not None:
        items = retriever.retrieve_user(query, timings)
        return [[{"trigger": None, "items": items, "ignored": retriever.unknown(query)}]]
    if requests[0].side_by_side:
        shown = retriever.retrieve_side_by_side(query, timings)
        answer = {"trigger": shown.trigger, "items": shown.merged, "heads": shown.heads, "together": shown.together}
        return [[answer]]
    typed = retriever.catalogue.typed
    triggers = [trigger for request in requests for trigger in request.triggers or ()]
    lists = iter(retriever.retrieve(replace(query, triggers=triggers), timings))
    return [
        [{"trigger": typed(trigger, "trigger"), "items": next(lists)} for trigger in request.triggers or ()]
        for request in requests
    ]
