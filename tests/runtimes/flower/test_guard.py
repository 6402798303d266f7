"""Who is let in to the SuperLink, without sockets: Flower's own application, with its routes, behind the guard."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fedelta.runtimes.flower.guard import SECRET_HEADER, Guard

CONTROL = sorted(path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/control/"))
CHECKED_BY_FLOWER = sorted({path for _, path in PROTOBUF_REQUEST_TYPES} - set(CONTROL))


@pytest.fixture
def app() -> Guard:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("answer")

    return Guard(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])]), b"secret")


@pytest.mark.parametrize("headers", [{}, {SECRET_HEADER: ""}, {SECRET_HEADER: "secre"}, {SECRET_HEADER: "Secret"}])
def test_nobody_gives_orders_without_the_secret(app: Guard, headers: dict[str, str]):
    assert "/v1/control/start-run" in CONTROL
    assert {_status(app, path, headers) for path in CONTROL} == {401}


def test_with_the_secret_orders_are_taken(app: Guard):
    assert {_status(app, path, {SECRET_HEADER: "secret"}) for path in CONTROL} == {200}


def test_what_flower_checks_itself_is_passed_on(app: Guard):
    assert {"/v1/fleet/pull-messages", "/v1/runtime/acquire-task"} <= set(CHECKED_BY_FLOWER)
    assert {_status(app, path, {}) for path in CHECKED_BY_FLOWER} == {200}


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/health", "/v1/Control/start-run", "/v2/fleet/x"])
def test_whatever_else_there_may_be_needs_the_secret(app: Guard, path: str):
    assert _status(app, path, {}) == 401


def _status(app: Guard, path: str, headers: dict[str, str]) -> int:
    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://superlink") as client:
            return (await client.post(path, headers=headers)).status_code

    return asyncio.run(ask())
