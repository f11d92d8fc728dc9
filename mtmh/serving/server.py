"""Runs the service: binds, says where, serves until told to end, and ends without dropping a request."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import time
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SO_REUSEADDR, SOL_SOCKET, TCP_NODELAY, socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from mtmh.adaptive.chooser import AlphaChooser
from mtmh.config import Config
from mtmh.serving.api_keys import read_api_keys
from mtmh.serving.app import create_app
from mtmh.serving.connections import limited_protocol, most_connections
from mtmh.serving.early_refusal import EarlyRefusal
from mtmh.serving.pictures import open_pictures
from mtmh.serving.service import Service

if TYPE_CHECKING:
    from mtmh.content.fresh import FreshContent

# The event loop gives the interpreter away at every read and write of a socket, and gets it back from a computing
# thread after at most this time. With Python's 5 ms a few busy threads leave the loop some dozens of requests a second.
_SWITCH_SECONDS = 0.0005
_SIMULATED = "images.parquet"  # of mtmh content simulate


class DrainingServer(uvicorn.Server):
    """On SIGTERM first says that it is not ready, keeps answering for a while, then ends as uvicorn does.

    The while gives a load balancer the time to notice. SIGINT, or a second SIGTERM, ends at once; requests that are
    being answered are finished in any case.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._end_at = float("inf")

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begins to listen, and says where. Who would cut off an index file in use has to wait from now on.

        Raises:
            ValueError: the address is taken.
        """
        try:
            await super().startup(sockets)
        except OSError as error:  # bound by us, but another has begun to listen there meanwhile
            limits = self._service.limits
            raise cannot_listen(limits.host, limits.port, error) from None
        if threading.current_thread() is threading.main_thread():  # signals come to it alone
            asyncio.get_running_loop().add_signal_handler(signal.SIGIO, self._give_way)
            self._service.holds_files = True
            self._service.current.hold_files()
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"serving http://{shown}:{port} (index version {self._service.current.snapshot.version})", flush=True)

    def _give_way(self) -> None:
        threading.Thread(target=self._service.give_way, name="index-writers", daemon=True).start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if sig == signal.SIGTERM and not self._service.draining:
            self._service.draining = True
            self._end_at = time.monotonic() + self._service.limits.drain_seconds
            return
        self._service.draining = True
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """True when it is time to end; called ten times a second."""
        return await super().on_tick(counter) or time.monotonic() >= self._end_at


def serve(config: Config) -> None:
    """Serves a recipe until a signal ends it.

    Raises:
        ValueError: no index that could be used, or the address cannot be bound.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    _log_to_stderr()
    if config.service.access_log:
        _log_access_to_stdout()
    listening = bound(config.service.host, config.service.port)  # before the index, which takes its time
    service = Service(
        config.name,
        config.model_dir("index"),
        config.model_dir("evaluation"),
        config.service,
        config.retrieval,
        config.index.milvus,
        _teacher(config),
        open_pictures(config.service.images, config.media_dir / _SIMULATED),
        AlphaChooser(adaptive, config.feedback_file) if (adaptive := config.service.adaptive_alpha) else None,
    )
    server = DrainingServer(
        # No limit_concurrency: it counts connections that a proxy keeps for later, too, and answers even /healthz 503.
        uvicorn.Config(
            create_app(service),
            access_log=False,
            log_config=None,
            server_header=False,
            http=limited_protocol(
                max_connections=most_connections(service.limits.max_connections),
                idle_seconds=service.limits.idle_seconds,
                header_seconds=service.limits.header_seconds,
                lag=lambda: service.lag.seconds,
                refuse=EarlyRefusal(
                    service.metrics, overloaded=lambda: service.overloaded, draining=lambda: service.draining
                ),
            ),
            timeout_keep_alive=service.limits.idle_seconds,
            timeout_graceful_shutdown=service.limits.timeout_ms // 1000 + 5,
        ),
        service,
    )
    asyncio.run(server.serve(sockets=[listening]))


def _teacher(config: Config) -> FreshContent | None:
    """The recipe's teacher, where fresh items may come; a service without it takes embeddings that come with them."""
    is_input = config.content.kind != "column" and config.model.content_dim > 0
    if not (is_input and config.service.embed_content and read_api_keys(config.service)):
        return None
    try:
        from mtmh.content.fresh import open_fresh_content

        return open_fresh_content(
            config.content, config.content_dir, config.encoder_dir, config.media_dir, config.training.device
        )
    except (ImportError, ValueError) as error:
        logging.getLogger("mtmh.serve").warning(
            "fresh items without a content_embedding are known by their features alone: the teacher cannot be used: %s",
            error,
        )
        return None


def bound(host: str, port: int) -> socket:
    """A socket that has the address and does not listen yet, so that nobody is kept waiting while the index opens."""
    taken = socket(AF_INET6 if ":" in host else AF_INET)
    taken.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    # Connections inherit it. asyncio sets it on sockets of its own making only; without it an answer's second packet
    # waits 40 ms for the client to acknowledge the first.
    taken.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise cannot_listen(host, port, error) from None
    return taken


def cannot_listen(host: str, port: int, error: OSError) -> ValueError:
    """The error that names an address, the settings it comes from, and the reason."""
    reason = error.strerror or error
    return ValueError(f"cannot listen on {host}:{port} (service.host, service.port): {reason}")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("mtmh.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _log_access_to_stdout() -> None:
    logger = logging.getLogger("mtmh.access")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
