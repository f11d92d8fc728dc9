"""The routes that change the catalogue: add fresh items, remove items. They need a key."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.security import APIKeyHeader
from pydantic_core import to_json
from starlette.responses import Response

from mtmh.serving.api import NewItems, Written
from mtmh.serving.api_keys import API_KEYS, key_is_valid
from mtmh.serving.http_errors import FieldProblem, Refused, documented
from mtmh.serving.service import Service

# At module level: FastAPI resolves annotations of routes there.
ApiKey = Annotated[
    str | None,
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description=f"A key of {API_KEYS} or of the key file.")),
]


def add_writing_routes(app: FastAPI, service: Service) -> None:
    """Adds the routes; without a configured key they refuse everybody."""

    def may_write(key: ApiKey) -> None:
        check_key(service, key)
        if not service.current.has_versions:
            raise Refused(
                409, "this index is one without versions and takes no changes: mtmh build-index without --out makes one"
            )

    @app.post(
        "/v1/items",
        response_model=Written,
        responses=documented(400, 401, 403, 408, 409, 413, 415, 422, 429, 503, 504),
        tags=["items"],
        dependencies=[Depends(may_write)],
    )
    async def add_items(body: NewItems) -> Response:
        """Adds fresh items. Once answered, they can be retrieved.

        An id that is there already is refused, unless it was added by an equal row: a request may be repeated.
        """
        if service.current.snapshot.retriever.tower is None:
            raise Refused(409, "this index has no tower to embed items from their features: build it again")
        if len(body.items) > service.limits.max_new_items:
            expected = f"at most {service.limits.max_new_items} items, not {len(body.items)}"
            raise Refused(422, f"body.items: {expected}", fields=[FieldProblem(field="body.items", expected=expected)])
        version, added = await service.write(lambda deadline: service.current.add(body.items, deadline))
        return _answer(Written(version=version, items=added))

    @app.delete(
        "/v1/items/{item_id:path}",
        response_model=Written,
        responses=documented(401, 403, 404, 409, 422, 429, 503, 504),
        tags=["items"],
        dependencies=[Depends(may_write)],
    )
    async def remove_item(item_id: str) -> Response:
        """Takes an item out of all answers."""
        item = service.current.snapshot.retriever.catalogue.typed(item_id, "item")
        version = await service.write(lambda deadline: service.current.remove([item], deadline))
        return _answer(Written(version=version, items=[item]))


def check_key(service: Service, key: str | None) -> None:
    """Refuses who has no key, and everybody where none is configured."""
    if not service.api_keys:
        raise Refused(403, f"this service takes no writes: set {API_KEYS} or service.api_keys_file and restart it")
    if key is None or not key_is_valid(key, service.api_keys):
        raise Refused(401, "expected a valid key in the header X-API-Key", headers={"WWW-Authenticate": "ApiKey"})


def _answer(written: Written) -> Response:
    return Response(to_json(written), media_type="application/json")
