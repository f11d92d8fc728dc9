"""The routes of feedback: what was engaged with, by which alphas are chosen, and what it has taught."""

from __future__ import annotations

from fastapi import Depends, FastAPI
from pydantic_core import to_json
from starlette.responses import Response

from mtmh.adaptive.chooser import AlphaChooser, UnknownRequestError
from mtmh.serving.api import Feedback, FeedbackResponse, FeedbackTaken
from mtmh.serving.http_errors import Refused, documented
from mtmh.serving.service import Service
from mtmh.serving.writing_routes import ApiKey, check_key


def add_feedback_routes(app: FastAPI, service: Service) -> None:
    """Adds them; a service that does not choose alphas answers 409."""

    def may_feed(key: ApiKey) -> None:
        check_key(service, key)

    def chooser() -> AlphaChooser:
        if service.adaptive is None:
            raise Refused(409, "this service chooses no alpha: set service.adaptive_alpha in its recipe")
        return service.adaptive

    @app.post(
        "/v1/feedback",
        response_model=FeedbackTaken,
        responses=documented(400, 401, 403, 404, 408, 409, 413, 415, 422, 429),
        tags=["feedback"],
        dependencies=[Depends(may_feed)],
    )
    async def feed(body: Feedback) -> Response:
        """Takes what a user did with an answer. A request may be repeated: it counts once."""
        try:
            counted = chooser().feed(body.request_id, body.reward)
        except UnknownRequestError as error:
            raise Refused(404, str(error)) from None
        return Response(
            to_json(FeedbackTaken(request_id=body.request_id, counted=counted)), media_type="application/json"
        )

    @app.get(
        "/v1/feedback",
        response_model=FeedbackResponse,
        responses=documented(409, 429, 504),
        tags=["feedback"],
    )
    async def learned() -> Response:
        """What feedback has taught: the reward so far, and an estimate for each alpha alone."""
        found = await service.compute(chooser().summary)
        alphas = [
            {"alpha": alpha, "chosen": chosen, "reward": found.values[place] if found.values else {}}
            for place, (alpha, chosen) in enumerate(zip(found.alphas, found.chosen, strict=True))
        ]
        content = {"num_feedback": found.num_feedback, "reward": found.reward, "alphas": alphas}
        return Response(to_json(content), media_type="application/json")
