"""The HTTP application: routes over the service, and errors in one form."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mtmh import __version__
from mtmh.artifacts import DamagedArtifactError
from mtmh.errors import RequestError
from mtmh.retrieval.catalogue import UnknownItemError
from mtmh.retrieval.text_search import MOST_WORDS
from mtmh.serving.api import (
    Feedback,
    FindParameters,
    IndexResponse,
    ItemsResponse,
    NewItems,
    RetrieveRequest,
    RetrieveResponse,
    SimilarParameters,
    document_limits,
    largest_body,
    names_at,
)
from mtmh.serving.connections import arrival
from mtmh.serving.feedback_routes import add_feedback_routes
from mtmh.serving.guard import Guard, id_of
from mtmh.serving.http_errors import FieldProblem, ProblemDetails, Refused, documented, invalid_request, problem
from mtmh.serving.item_routes import add_item_routes
from mtmh.serving.service import Service
from mtmh.serving.work_queue import DeadlineExceeded, QueueFull
from mtmh.serving.writing_routes import add_writing_routes

STATIC = Path(__file__).parent / "static"

log = logging.getLogger("mtmh.serve")


def create_app(service: Service) -> FastAPI:
    """The application over a service."""
    app = FastAPI(
        title="MTMH retrieval",
        version=__version__,
        summary="Items that go with an item, or with what a user engaged with.",
        lifespan=_lifespan,
        docs_url=None,  # both would load scripts from elsewhere; /docs is a page of our own
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(
        Guard,
        metrics=service.metrics,
        max_body_bytes=service.limits.max_body_bytes or largest_body(service.limits, service.numbers_an_item),
        max_requests=service.limits.max_requests,
        body_seconds=service.limits.timeout_ms / 1000,
        draining=lambda: service.draining,
        overloaded=lambda: service.overloaded,
        image_origin=service.pictures.origin,
    )
    _add_error_handlers(app, service)
    _add_reading_routes(app, service)
    add_item_routes(app, service)
    add_writing_routes(app, service)
    add_feedback_routes(app, service)
    _add_operating_routes(app, service)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.openapi = lambda: _openapi(app, service)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    ended = threading.Event()

    def look() -> None:
        service.current.refresh()
        if service.holds_files:
            service.current.hold_files()

    duties = {"looking for a new index version": look}
    if service.adaptive is not None:
        duties["keeping feedback"] = service.adaptive.save

    def watch() -> None:
        while not ended.wait(service.limits.reload_seconds):
            for name, duty in duties.items():
                try:
                    duty()
                except Exception:  # the watch goes on: the next version may be whole
                    log.exception("%s failed", name)

    watcher = threading.Thread(target=watch, name="index-watch", daemon=True)
    watcher.start()
    lag = asyncio.create_task(service.lag.watch())
    try:
        yield
    finally:
        lag.cancel()
        ended.set()
        await asyncio.to_thread(watcher.join)
        await asyncio.to_thread(service.close)


def _add_reading_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/retrieve",
        response_model=RetrieveResponse,
        responses=documented(400, 404, 408, 413, 415, 422, 429, 503, 504),
        tags=["retrieve"],
    )
    async def retrieve(body: RetrieveRequest, request: Request) -> Response:
        """Items for each trigger, or for a user's history. `alpha` percent come from the engagement head."""
        return await service.retrieve(body, arrival(request.scope), id_of(request))

    @app.get("/v1/items", response_model=ItemsResponse, responses=documented(422, 429, 504), tags=["items"])
    async def find_items(parameters: Annotated[FindParameters, Query()]) -> Response:
        """Items whose text holds every word of the query, or whose id begins so; case and accents do not matter."""
        query = parameters.query
        if (words := len(query.split())) > MOST_WORDS:
            expected = f"at most {MOST_WORDS} words, not {words}"
            raise Refused(
                422, f"query.query: {expected}", fields=[FieldProblem(field="query.query", expected=expected)]
            )
        snapshot = service.current.snapshot
        catalogue = snapshot.retriever.catalogue

        def find() -> list[dict[str, Any]]:
            found = catalogue.find_by_text(query, parameters.limit)
            return service.shown(catalogue.ids(found), catalogue.describe(found))

        return _json({"version": snapshot.version, "items": await service.look_up(find)})

    @app.get("/v1/index", response_model=IndexResponse, responses=documented(429, 504), tags=["items"])
    async def index() -> Response:
        """The index version that answers, the defaults of a request, and the evaluation's curve where there is one."""
        retriever = service.current.snapshot.retriever
        curve = await service.compute(service.measured_curve)
        content = IndexResponse(
            model=service.name,
            version=retriever.version,
            num_items=retriever.num_items,
            heads=retriever.heads,
            **retriever.defaults.model_dump(include={"k", "k_ann", "alpha"}),
            num_probes=retriever.num_probes,
            max_k=service.limits.max_k,
            max_history=service.limits.max_history,
            columns=retriever.catalogue.column_names,
            features=service.features,
            writes=bool(service.api_keys),
            adaptive_alpha=service.adaptive is not None,
            curve=curve,
        )
        return _json(content)


def _add_operating_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operate"])
    async def healthz() -> dict[str, str]:
        """Answers as long as the process runs."""
        return {"status": "ok"}

    @app.get("/readyz", responses=documented(503), tags=["operate"])
    async def readyz() -> dict[str, str]:
        """Answers 200 while requests should be sent here; 503 once the service is about to end or its index damaged."""
        if service.draining:
            raise Refused(503, "the service is about to end")
        if (files := service.current.snapshot.retriever.files) is not None:
            files.check()
        return {"status": "ok", "version": service.current.snapshot.version}

    @app.get("/metrics", tags=["operate"], response_class=Response, include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def explorer() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html", headers={"Cache-Control": "no-cache"})


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        path = request.url.path
        by_path: dict[str, type[BaseModel]] = {"/v1/retrieve": RetrieveRequest, "/v1/feedback": Feedback}
        message = by_path.get(path, NewItems)
        if request.method == "GET":
            message = SimilarParameters if path.endswith("/similar") else FindParameters
        return invalid_request(error, lambda place: names_at(message, place))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        del request
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        del request
        return problem(error.status, error.detail, fields=error.fields, headers=error.headers)

    @app.exception_handler(DamagedArtifactError)
    async def damaged(request: Request, error: DamagedArtifactError) -> Response:
        del request, error  # the watch logs it, and takes the version into use again once it is whole
        return problem(503, "a file of the index is damaged")

    @app.exception_handler(UnknownItemError)
    async def unknown(request: Request, error: UnknownItemError) -> Response:
        del request
        return problem(404, str(error))

    @app.exception_handler(RequestError)
    async def not_fitting(request: Request, error: RequestError) -> Response:
        if not error.field:
            return problem(422, str(error))
        field = f"{'query' if request.method == 'GET' else 'body'}.{error.field}"
        return problem(422, f"{field}: {error.expected}", fields=[FieldProblem(field=field, expected=error.expected)])

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        del request
        service.metrics.rejected.labels("queue_full").inc()
        return problem(429, str(error), headers={"Retry-After": str(error.retry_after)})

    @app.exception_handler(DeadlineExceeded)
    async def late(request: Request, error: DeadlineExceeded) -> Response:
        del request
        service.metrics.rejected.labels("deadline").inc()
        return problem(504, str(error))


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = schema["components"]["schemas"]
        problem_schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem_schema.pop("$defs"))
        schemas["Problem"] = problem_schema
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document_limits(schemas, service.limits, service.features)
        app.openapi_schema = schema
    return app.openapi_schema
