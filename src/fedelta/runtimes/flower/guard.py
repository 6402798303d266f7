"""Asks for the server's secret wherever Flower's SuperLink asks for nothing."""

from __future__ import annotations

import hmac

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

SECRET_HEADER = "x-fedelta-secret"  # noqa: S105 its name
# Flower checks these itself: keys of sites; tokens of tasks, and the secret of the program that takes tasks.
_CHECKED = ("/v1/fleet/", "/v1/runtime/")


class Guard:
    """Asks for a secret wherever Flower asks for nothing.

    Args:
        app: the application behind it.
        secret: what a request has to have in its header.
    """

    def __init__(self, app: ASGIApp, secret: bytes) -> None:
        self._app, self._secret = app, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http" and not scope["path"].startswith(_CHECKED):
            shown = dict(scope["headers"]).get(SECRET_HEADER.encode(), b"")
            if not hmac.compare_digest(shown, self._secret):
                await PlainTextResponse("the server's secret is missing", status_code=401)(scope, receive, send)
                return
        await self._app(scope, receive, send)
