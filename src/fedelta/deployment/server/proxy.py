"""The public port: passes on what sites may ask of Flower's SuperLink, and nothing else.

Flower serves sites, operators and its own programs on one port, and only the calls of sites are authenticated. So the
SuperLink listens on loopback, and this proxy stands in front of it: it passes on the calls in `FLEET` by their names,
never a path as it came, and bounds what a request and an answer may hold.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from fedelta.deployment.server.certificates import Certificates
from fedelta.deployment.server.connections import Doorkeeper, allow_many_files, watched
from fedelta.deployment.server.hub import Hub
from fedelta.runtimes.remote.messages import MAX_MANIFEST_BYTES

logger = logging.getLogger("fedelta")

FLEET = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
_PREFIX = "/v1/fleet/"
# Flower cuts arrays into objects of 5 MiB; a manifest is one object.
MAX_REQUEST_BYTES = MAX_MANIFEST_BYTES + 2**20
# Passed on at the same time. Reading whole requests takes the memory of as many large ones as there are connections.
_MAX_REQUESTS = 64
_BODY_SECONDS = 120.0  # for the body of a request; no part of an answer is larger than 17 MiB
_KEY = "flwr-public-key"
_DROPPED = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "content-length", "upgrade", "te"})


@dataclass
class Budget:
    """Bytes of the objects that each site has sent for its present answer.

    Args:
        max_bytes: of one answer.
    """

    max_bytes: int
    _spent: dict[str, int] = field(default_factory=dict)

    def allows(self, key: str, num_bytes: int) -> bool:
        """Whether the site with this key may send so many more bytes for its present answer."""
        return self._spent.get(key, 0) + num_bytes <= self.max_bytes

    def book(self, call: str, key: str, num_bytes: int) -> None:
        """Counts a call that the SuperLink has taken, so one of a registered site; a new answer begins at zero."""
        if call == "push-messages":
            self._spent[key] = 0
        elif call == "push-object":
            self._spent[key] = self._spent.get(key, 0) + num_bytes


def proxy(client: httpx.AsyncClient, budget: Budget) -> Starlette:
    """The application that passes calls on over `client`, whose base URL is the SuperLink's."""
    routes = [Route(f"{_PREFIX}{call}", _endpoint(call, client, budget), methods=["POST"]) for call in FLEET]
    return Starlette(routes=routes)


def serve(address: tuple[str, int], superlink: str, certificates: Certificates, max_message_bytes: int) -> None:
    """Runs the proxy until it is ended.

    Args:
        address: host and port to listen on.
        superlink: address of the SuperLink.
        certificates: of this server.
        max_message_bytes: of one answer of a site.
    """
    client = httpx.AsyncClient(
        base_url=f"https://{superlink}",
        verify=_context(certificates),
        timeout=httpx.Timeout(60, pool=None),
        limits=httpx.Limits(max_connections=_MAX_REQUESTS),
    )
    allow_many_files()
    uvicorn.run(
        proxy(client, Budget(max_message_bytes)),
        host=address[0],
        port=address[1],
        ssl_certfile=str(certificates.server),
        ssl_keyfile=str(certificates.server_key),
        server_header=False,
        http=watched(Doorkeeper()),
        timeout_keep_alive=65,
        access_log=False,
        log_level="warning",
    )


def main(folder: str, superlink: str) -> None:
    """The proxy of a server's folder, as a program."""
    hub = Hub(Path(folder))
    settings = hub.settings()
    # What Flower adds to the bytes of an answer, and the manifest.
    most = settings.max_message_mib * 2**20 + 2 * MAX_REQUEST_BYTES
    serve((settings.listen, settings.port), superlink, hub.certificates, most)


def _endpoint(call: str, client: httpx.AsyncClient, budget: Budget) -> Callable[[Request], Awaitable[Response]]:
    """Answers one kind of call."""

    async def answer(request: Request) -> Response:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                content = await _content(request)
        except (ClientDisconnect, TimeoutError):
            return Response(status_code=400, headers={"connection": "close"})
        key = request.headers.get(_KEY, "")[:4096]
        if content is None or (call == "push-object" and not budget.allows(key, len(content))):
            logger.warning("%s: a request of %s is too large", call, request.client and request.client.host)
            return PlainTextResponse("too large", status_code=413, headers={"connection": "close"})
        headers = [(name, value) for name, value in request.headers.items() if name not in _DROPPED]
        try:
            reply = await client.post(f"{_PREFIX}{call}", content=content, headers=headers)
        except httpx.HTTPError as error:
            logger.warning("%s: the SuperLink does not answer: %s", call, error)
            return PlainTextResponse("the server is starting", status_code=503)
        if reply.is_success:
            budget.book(call, key, len(content))
        kept = {name: value for name, value in reply.headers.items() if name not in _DROPPED | {"date", "server"}}
        return Response(reply.content, reply.status_code, kept)

    return answer


async def _content(request: Request) -> bytes | None:
    """The body, or None if it is larger than any that Flower sends; reads no further than that."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_REQUEST_BYTES:
            return None
    return bytes(content)


def _context(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.authority))


if __name__ == "__main__":
    main(*sys.argv[1:3])
