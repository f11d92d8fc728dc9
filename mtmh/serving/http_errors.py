"""Errors of the API, in one form: RFC 9457, ``application/problem+json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.responses import Response

from mtmh.errors import meant

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """One field of a request that does not fit.

    Attributes:
        field: where it is, as in ``body.filters.deny``.
        expected: what should be there.
    """

    field: str
    expected: str


class ProblemDetails(BaseModel):
    """The fault of a request.

    Attributes:
        title: of the status.
        status: of HTTP.
        detail: in words.
        fields: which fields of the request are meant.
    """

    title: str
    status: int
    detail: str
    fields: list[FieldProblem] = []


class Refused(Exception):
    """A request that the service does not carry out."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        fields: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = list(fields)
        self.headers = dict(headers or {})


def problem(
    status: int,
    detail: str,
    *,
    fields: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer of status ``status``."""
    content = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=detail, fields=list(fields))
    # Ids of the client may be in the text; what is not valid Unicode must not end in another error.
    body = content.model_dump_json(ensure_ascii=True).encode("ascii", "replace")
    return Response(body, status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def invalid_request(error: RequestValidationError, names_at: Callable[[Sequence[int | str]], list[str]]) -> Response:
    """422 that names each field and what was expected; what the client sent is not repeated.

    Args:
        error: of the request.
        names_at: the fields that its body may have at a place.
    """
    problems = [
        FieldProblem(field=".".join(map(str, fault["loc"])), expected=_expected(fault, names_at))
        for fault in error.errors()[:20]
    ]
    first = problems[0]
    return problem(422, f"{first.field}: {first.expected}", fields=problems)


def _expected(error: Mapping[str, Any], names_at: Callable[[Sequence[int | str]], list[str]]) -> str:
    if error["type"] == "json_invalid":
        return f"valid JSON; {error.get('ctx', {}).get('error', 'it is not')}"
    if error["type"] == "extra_forbidden":
        *place, name = error["loc"][1:]
        return f"no field of this name{meant(str(name), names_at(place))}"
    if error["type"] == "model_attributes_type" and tuple(error["loc"]) == ("body",):
        return "a JSON object, sent with the header Content-Type: application/json"
    return str(error["msg"]).removeprefix("Value error, ")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can answer with these statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }
