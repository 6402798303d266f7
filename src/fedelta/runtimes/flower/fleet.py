"""Calls of a site to Flower's Fleet API, which the SuperLink serves: signed, in the server's time, with our errors."""

from __future__ import annotations

import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedelta.deployment.site.diagnosis import KeyRefusedError, RunEndedError, clock_offset, diagnosed
from fedelta.errors import FedeltaError, LinkError

# How long a message that has begun to travel is tried again: a server that is started anew needs less.
PATIENCE_SECONDS = 300.0
_LOOK_SECONDS = 10

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True)
class Server:
    """Where the server is, and how it is recognized.

    Args:
        address: host:port.
        ca: certificate of the authority that vouches for it, as PEM.
    """

    address: str
    ca: bytes


class Fleet:
    """The Fleet API of one server, for one site.

    Args:
        server: which to ask.
        key: private key of the site.
    """

    def __init__(self, server: Server, key: EllipticCurvePrivateKey) -> None:
        self._server = server
        self._signature = _Signature(key)
        self._ended = threading.Event()
        self.client = FleetHttpClient.from_server_address(
            server.address,
            insecure=False,
            root_certificates=server.ca,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperNode"), self._signature],
        )

    @property
    def public_key(self) -> bytes:
        """The site's key, as PEM."""
        return self._signature.public_key

    @property
    def clock_offset(self) -> float:
        """Seconds that the server's clock is ahead of this machine's."""
        return self._signature.offset

    def look(self) -> None:
        """Asks the server for nothing but its certificate and its time.

        Raises:
            LinkError: the server is not reached.
            InputError: it will not be reached until somebody mends something.
        """
        try:
            response = httpx.get(
                f"https://{self._server.address}/", verify=_trusting(self._server.ca), timeout=_LOOK_SECONDS
            )
        except httpx.HTTPError as error:
            raise diagnosed(error, self._server.address) from error
        self._signature.offset = clock_offset(response.headers.get("date"), time.time())

    def call(self, method: Callable[[Request], Response], request: Request) -> Response:
        """What one of the `client`'s methods answers.

        Raises:
            KeyRefusedError: the key is not registered, or another process is connected with it.
            RunEndedError: the run that the request is about is over.
            LinkError: the server is not reached.
            InputError: it will not be reached until somebody mends something.
        """
        offset = self.clock_offset
        try:
            return self._once(method, request)
        except KeyRefusedError:
            if self.clock_offset == offset:
                raise
            return self._once(method, request)  # this machine's clock was set meanwhile; the answer said by how much

    def patiently(self, method: Callable[[Request], Response], request: Request) -> Response:
        """Like `call`, again and again while the server is not reached."""
        end, pause = time.monotonic() + PATIENCE_SECONDS, 0.25
        while True:
            try:
                return self.call(method, request)
            except (KeyRefusedError, RunEndedError):
                raise
            except LinkError:
                if time.monotonic() > end or self.pause(pause):
                    raise
                pause = min(2 * pause, 5.0)

    def pause(self, seconds: float) -> bool:
        """Waits, and returns whether the connection ended meanwhile."""
        return self._ended.wait(seconds)

    def end(self) -> None:
        """Ends all waiting."""
        self._ended.set()

    def _once(self, method: Callable[[Request], Response], request: Request) -> Response:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise self._refusal(error) from error
        except httpx.HTTPError as error:
            raise diagnosed(error, self._server.address) from error
        except ValueError as error:  # Flower's, for an answer in another format
            raise LinkError(f"the answer of the server {self._server.address} cannot be read: {error}") from error

    def _refusal(self, error: httpx.HTTPStatusError) -> FedeltaError:
        refusal = FlowerError.from_json(error.response.text)
        code = None if refusal is None else refusal.code
        if code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            return RunEndedError("the run that the message belongs to is over.")
        if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return KeyRefusedError(f"the server {self._server.address} does not accept this site's key.")
        return diagnosed(error, self._server.address)


class _Signature:
    """Signs requests as Flower's SuperNode does, with the server's time.

    Flower refuses a signature that is more than 5 s of the future or 305 s of the past. The time in the server's
    answers came over TLS, so a machine whose own clock is wrong can go by that.

    Args:
        key: private key of the site.
    """

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self.offset = 0.0
        self.public_key = public_key_to_bytes(key.public_key())
        self._key = key

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Signs one request, and reads the server's time from the answer."""
        now = datetime.fromtimestamp(time.time() + self.offset, UTC).isoformat()
        headers = context.request.headers
        headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = b64encode(self.public_key).decode()
        headers[TIMESTAMP_HEADER] = now
        headers[FLEET_HTTP_SIGNATURE_HEADER] = b64encode(sign_message(self._key, now.encode())).decode()
        response = call_next(context)
        if (date := response.headers.get("date")) is not None:
            self.offset = clock_offset(date, time.time())
        return response


def _trusting(ca: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode("ascii"))
    return context
