"""Routes of one item for a browser or curl: what it is, what goes with it, and its picture."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from pydantic_core import to_json
from starlette.responses import Response

from mtmh.serving.api import ItemResponse, RetrieveRequest, RetrieveResponse, SimilarParameters
from mtmh.serving.connections import arrival
from mtmh.serving.guard import id_of
from mtmh.serving.http_errors import FieldProblem, Refused, documented
from mtmh.serving.pictures import ROUTE, kind_of
from mtmh.serving.service import Service

PathId = Annotated[str, Path(min_length=1, max_length=256, description="Id of an item; may hold slashes.")]


def add_item_routes(app: FastAPI, service: Service) -> None:
    """Adds them; an item whose id ends in ``/similar`` is asked for by POST."""

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=RetrieveResponse,
        responses=documented(404, 422, 429, 503, 504),
        tags=["retrieve"],
    )
    async def similar(item_id: PathId, parameters: Annotated[SimilarParameters, Query()], request: Request) -> Response:
        """Items that go with one item, described; as POST /v1/retrieve answers with one trigger."""
        try:
            question = RetrieveRequest(triggers=[item_id], describe=True, **dict(parameters))
            return await service.retrieve(question, arrival(request.scope), id_of(request))
        except Refused as error:
            fields = [
                FieldProblem(field=found.field.replace("body.", "query.", 1), expected=found.expected)
                for found in error.fields
            ]
            detail = error.detail.replace("body.", "query.", 1)
            raise Refused(error.status, detail, fields=fields, headers=error.headers) from None

    @app.get(
        "/v1/items/{item_id:path}",
        response_model=ItemResponse,
        responses=documented(404, 422, 429, 504),
        tags=["items"],
    )
    async def item(item_id: PathId) -> Response:
        """Text and topics of one item."""
        snapshot = service.current.snapshot
        retriever = snapshot.retriever

        def describe() -> dict[str, Any]:
            found = retriever.catalogue.find_answerable([item_id], "item")
            if found[0] < 0:
                raise retriever.catalogue.unknown([item_id], "item")
            (shown,) = service.shown([retriever.catalogue.typed(item_id, "item")], retriever.catalogue.describe(found))
            return {"version": snapshot.version, **shown}

        return Response(to_json(await service.compute(describe)), media_type="application/json")

    @app.get(ROUTE + "{name:path}", include_in_schema=False)
    async def picture(name: str) -> Response:
        # In a thread of its own: a slow disk must not hold up questions.
        file = await asyncio.to_thread(service.pictures.read, name)
        kind = kind_of(file) if file is not None else None
        if kind is None:
            raise Refused(404, "no such picture")
        return Response(file, media_type=kind, headers={"Cache-Control": "max-age=3600"})
