"""The public port without sockets: requests go into the application, and what it passes on is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from fedelta.deployment.server.proxy import FLEET, MAX_REQUEST_BYTES, Budget, proxy

PUSH_OBJECT, PUSH_MESSAGES = "/v1/fleet/push-object", "/v1/fleet/push-messages"


@dataclass
class SuperLink:
    """Answers every request, and remembers it."""

    status: int = 200
    is_up: bool = True
    seen: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not self.is_up:
            raise httpx.ConnectError("refused")
        self.seen.append(request)
        return httpx.Response(self.status, content=b"answer", headers={"content-type": "application/x-protobuf"})


def ask(superlink: SuperLink, *requests: httpx.Request, budget: int = 10**9) -> list[httpx.Response]:
    """What the proxy answers to the requests, one after the other."""

    async def answers() -> list[httpx.Response]:
        inner = httpx.AsyncClient(base_url="https://superlink", transport=httpx.MockTransport(superlink))
        app = proxy(inner, Budget(budget))
        async with httpx.AsyncClient(base_url="https://hub", transport=httpx.ASGITransport(app)) as site:
            return [await site.send(request) for request in requests]

    return asyncio.run(answers())


def post(path: str, content: bytes | AsyncIterator[bytes] = b"request", key: str = "a2V5") -> httpx.Request:
    headers = {"flwr-public-key": key, "content-type": "application/x-protobuf"}
    return httpx.Request("POST", f"https://hub{path}", content=content, headers=headers)


def test_the_calls_of_sites_are_passed_on_with_their_signature():
    superlink = SuperLink()
    (answer,) = ask(superlink, post("/v1/fleet/pull-messages"))
    assert (answer.status_code, answer.content) == (200, b"answer")
    (seen,) = superlink.seen
    assert (seen.url, seen.content) == ("https://superlink/v1/fleet/pull-messages", b"request")
    assert seen.headers["flwr-public-key"] == "a2V5"


def test_nothing_but_the_calls_of_sites_is_passed_on():
    # All that Flower serves on its port, and the two calls of sites that change who is registered.
    known = {path for _, path in PROTOBUF_REQUEST_TYPES} | {"/health", "/docs", "/openapi.json", "/"}
    closed = sorted(known - {f"/v1/fleet/{call}" for call in FLEET})
    assert {"/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/register-node"} <= set(closed)
    superlink = SuperLink()
    assert {answer.status_code for answer in ask(superlink, *map(post, closed))} == {404}
    assert superlink.seen == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "//v1/control/start-run",
        "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2fstart-run",
        "/V1/CONTROL/start-run",
    ],
)
def test_a_path_in_disguise_is_not_passed_on(path: str):
    superlink = SuperLink()
    request = post("/")
    request.url = httpx.URL("https://hub", raw_path=path.encode())
    (answer,) = ask(superlink, request)
    assert answer.status_code == 404
    assert superlink.seen == []


def test_a_query_is_dropped():
    superlink = SuperLink()
    ask(superlink, post("/v1/fleet/pull-messages?next=/v1/control"))
    assert superlink.seen[0].url == "https://superlink/v1/fleet/pull-messages"


def test_only_post_is_passed_on():
    superlink = SuperLink()
    (answer,) = ask(superlink, httpx.Request("GET", "https://hub/v1/fleet/pull-messages"))
    assert answer.status_code == 405
    assert superlink.seen == []


def test_a_request_that_is_too_long_is_refused_before_it_is_read_to_its_end():
    superlink, num_parts, statuses = SuperLink(), 0, []

    async def receive() -> dict[str, object]:
        nonlocal num_parts
        num_parts += 1
        return {"type": "http.request", "body": bytes(2**20), "more_body": num_parts < 1000}

    async def send(event: dict[str, object]) -> None:
        statuses.append(event.get("status"))

    app = proxy(httpx.AsyncClient(transport=httpx.MockTransport(superlink)), Budget(10**9))
    scope = {"type": "http", "method": "POST", "path": PUSH_OBJECT, "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    assert (statuses[0], superlink.seen) == (413, [])
    assert num_parts == MAX_REQUEST_BYTES // 2**20 + 1


def test_the_objects_of_one_answer_may_not_be_more_than_a_message_may_have():
    superlink = SuperLink()
    objects = [post(PUSH_OBJECT, bytes(40)) for _ in range(3)]
    answers = ask(superlink, post(PUSH_MESSAGES), *objects, budget=100)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 413]


def test_with_the_next_answer_the_count_begins_anew():
    superlink = SuperLink()
    requests = [post(PUSH_OBJECT, bytes(60)), post(PUSH_MESSAGES), post(PUSH_OBJECT, bytes(60))]
    assert [answer.status_code for answer in ask(superlink, *requests, budget=100)] == [200, 200, 200]


def test_a_stranger_cannot_use_up_what_a_site_may_send():
    # The SuperLink refuses who has not the key; what was refused does not count.
    superlink = SuperLink(status=401)
    assert [answer.status_code for answer in ask(superlink, *[post(PUSH_OBJECT, bytes(90))] * 3, budget=100)] == [
        401
    ] * 3


def test_one_site_does_not_use_up_what_another_may_send():
    requests = [post(PUSH_OBJECT, bytes(90), key) for key in ("a", "b")]
    assert [answer.status_code for answer in ask(SuperLink(), *requests, budget=100)] == [200, 200]


def test_while_the_superlink_is_away_a_site_is_told_to_try_again():
    (answer,) = ask(SuperLink(is_up=False), post("/v1/fleet/pull-messages"))
    assert answer.status_code == 503  # one of those at which Flower's client repeats a call


def test_refusals_of_the_superlink_reach_the_site():
    (answer,) = ask(SuperLink(status=401), post("/v1/fleet/activate-node"))
    assert (answer.status_code, answer.content) == (401, b"answer")
