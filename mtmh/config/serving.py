"""Settings of the HTTP service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from mtmh.config.base import NonNegative, Positive, Settings


class AdaptiveAlphaConfig(Settings):
    """Alphas chosen from feedback (docs/adaptive-alpha.md), for requests that leave theirs open.

    ``alphas``: what may be chosen; nothing below the smallest or above the largest ever is. ``explore``: share of
    requests whose alpha is drawn evenly, so that each keeps a known probability. ``memory``: the newest feedback that
    counts. ``expire_minutes``: later feedback is refused. ``file``: of the log, in which all that was learned is; null:
    ``feedback.sqlite`` in the model's folder.
    """

    alphas: Annotated[list[Annotated[float, Field(ge=0.0, le=100.0)]], Field(min_length=2)] = [30, 40, 50, 60, 70]
    explore: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    memory: Positive = 50_000
    expire_minutes: Annotated[float, Field(gt=0.0)] = 1440.0
    file: Path | None = None

    @field_validator("alphas")
    @classmethod
    def _ascend(cls, alphas: list[float]) -> list[float]:
        if alphas != sorted(set(alphas)):
            raise ValueError(f"expected distinct alphas in ascending order, got {alphas}")
        return alphas


class ServiceConfig(Settings):
    """The HTTP service: where it listens, how much it takes on, and the largest request it answers."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=65_536)] = 8080  # 0: a free one
    threads: Positive | None = None  # that search; None: one for each core that the process may use
    search_threads: Positive = 1  # over which one search is spread
    queue_size: Positive = 128  # requests that may wait for a thread; one more is answered 429
    batch_triggers: Positive = 64  # of waiting requests that are searched as one
    timeout_ms: Positive = 1000  # budget of a request, waiting included; it may ask for less
    max_lag_ms: Positive = 250  # of the event loop; a longer one means that requests wait unseen: they get 429 as well
    max_connections: Positive = 4096  # open ones, whatever they do; one more is answered 503 and closed
    idle_seconds: Positive = 75  # that a connection stays open without a request; longer than proxies keep theirs
    header_seconds: Annotated[float, Field(gt=0.0)] = 10.0  # in which a request must have sent its header
    max_requests: Positive = 2048  # that arrive or are answered at the same time; one more gets 429
    max_body_bytes: Positive | None = None  # null: what the largest request by the other limits takes
    max_triggers: Positive = 100  # a request
    max_history: Positive = 500  # items of a user
    max_filter_items: Positive = 2000  # ids in each list of a filter
    max_k: Positive = 500
    max_k_ann: Positive = 10_000
    max_num_probes: Positive = 1024
    max_new_items: Positive = 100  # a write
    embed_content: bool = True  # texts and pictures of fresh items, by the recipe's teacher, where writes are allowed
    max_candidates: Positive = 250_000  # triggers times k_ann
    cache_mb: Annotated[int, Field(ge=0)] = 64  # of answers kept; forgotten with the index version
    reload_seconds: Annotated[float, Field(gt=0.0)] = 2.0  # how often a new index version is looked for
    drain_seconds: NonNegative = 3.0  # after SIGTERM: /readyz says 503, requests are still answered
    api_keys_file: Path | None = None  # a key a line, for the routes that write; beside those of MTMH_API_KEYS
    # Pictures of the items for the explorer page: a folder or an address (https://...) in which the items' `image` is
    # looked up, or a Parquet file with item_id and image (bytes). None: those of mtmh content simulate, if it ran.
    images: str | None = None
    access_log: bool = False  # a JSON line a request on stdout
    adaptive_alpha: AdaptiveAlphaConfig | None = None  # null: alpha is what request or recipe say
