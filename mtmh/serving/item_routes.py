"""Routes of one item for a browser or curl: what it is, and what goes with it."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path, Query
from pydantic_core import to_json
from starlette.responses import Response

from mtmh.serving.api import ItemResponse, RetrieveRequest, RetrieveResponse
from mtmh.serving.http_errors import FieldProblem, Refused, documented
from mtmh.serving.service import Service

PathId = Annotated[str, Path(min_length=1, max_length=256, description="Id of an item; may hold slashes.")]


def add_item_routes(app: FastAPI, service: Service) -> None:
    """Adds both; an item whose id ends in ``/similar`` is asked for by POST."""

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=RetrieveResponse,
        responses=documented(404, 422, 429, 503, 504),
        tags=["retrieve"],
    )
    async def similar(
        item_id: PathId,
        k: Annotated[int | None, Query(ge=1, description="Answers; default: that of GET /v1/index.")] = None,
        alpha: Annotated[
            float | None, Query(ge=0, le=100, allow_inf_nan=False, description="Percent from the engagement head.")
        ] = None,
    ) -> Response:
        """Items that go with one item, described; as POST /v1/retrieve answers with one trigger."""
        try:
            return await service.retrieve(RetrieveRequest(triggers=[item_id], k=k, alpha=alpha, describe=True))
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

        def describe() -> ItemResponse:
            found = retriever.catalogue.find_answerable([item_id], "item")
            if found[0] < 0:
                raise retriever.catalogue.unknown([item_id], "item")
            (described,) = retriever.catalogue.describe(found)
            typed = retriever.catalogue.typed(item_id, "item")
            return ItemResponse(
                version=snapshot.version,
                item=typed,
                text=described.text,
                topic_l1=described.topic_l1,
                topic_l2=described.topic_l2,
            )

        return Response(to_json(await service.compute(describe)), media_type="application/json")
