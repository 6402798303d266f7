"""What the server asks of Flower's SuperLink: registering sites, and starting and stopping runs.

Over the client that the `flwr` command uses, not over the command: that takes seconds and reads the user's home.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from fedelta.deployment.server.certificates import Certificates
from fedelta.errors import LinkError, RefusedError
from fedelta.runtimes.flower.guard import SECRET_HEADER
from fedelta.runtimes.flower.programs import bundle


@dataclass(frozen=True)
class Node:
    """A site as Flower knows it.

    Args:
        id: Flower's number of it.
        key: public key, as PEM.
        status: registered (never seen), online or offline.
        since: when it last came online or, offline, when it was last heard from; as ISO text, empty if never.
        name: as it was registered.
    """

    id: int
    key: bytes
    status: str
    since: str
    name: str = ""


@dataclass(frozen=True)
class Run:
    """A run as Flower knows it.

    Args:
        status: pending, starting, running or finished.
        details: why it ended, if it failed.
    """

    status: str
    details: str = ""

    @property
    def is_over(self) -> bool:
        """Whether its ServerApp has ended."""
        return self.status == "finished"


@dataclass(frozen=True)
class _Secret:
    """Puts the server's secret into every request."""

    secret: str

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """See Flower's `ProtobufClientInterceptor`."""
        context.request.headers[SECRET_HEADER] = self.secret
        return call_next(context)


@dataclass(frozen=True)
class Control:
    """A connection to the SuperLink.

    Args:
        client: of its Control API.
    """

    client: ControlHttpClient

    @classmethod
    def connect(cls, address: str, certificates: Certificates, secret: Path) -> Self:
        """A connection to `address`, which need not be up yet, with the secret in a file."""
        return cls(
            ControlHttpClient.from_server_address(
                address,
                insecure=False,
                root_certificates=certificates.authority.read_bytes(),
                interceptors=[
                    RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
                    _Secret(secret.read_text(encoding="utf-8").strip()),
                ],
            )
        )

    def nodes(self) -> Sequence[Node]:
        """Every registered site.

        Raises:
            LinkError: this and all other calls: the SuperLink is not up or refuses.
        """
        with _mapped():
            nodes = self.client.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(
                node.node_id,
                node.public_key,
                node.status,
                node.last_activated_at if node.status == "online" else node.last_deactivated_at,
                node.name,
            )
            for node in nodes
            if node.status != "unregistered"
        ]

    def register(self, name: str, key: bytes) -> None:
        """Lets the site with this key connect."""
        with _mapped():
            self.client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    def unregister(self, node: Node) -> None:
        """Ends the access of a site at once."""
        with _mapped():
            self.client.UnregisterNode(UnregisterNodeRequest(node_id=node.id))

    def start(self, values: Mapping[str, str]) -> int:
        """Submits a run with these values of its configuration, and returns its number."""
        app, _ = build_fab_from_files({"pyproject.toml": bundle(dict.fromkeys(values, "")).encode()})
        request = StartRunRequest(
            fab=Fab(hash_str=hashlib.sha256(app).hexdigest(), content=app),
            override_config={key: Scalar(string=value) for key, value in values.items()},
        )
        with _mapped():
            answer = self.client.StartRun(request)
        if not answer.HasField("run_id"):
            raise LinkError("Flower's SuperLink did not start the run, and says no reason; see its log.")
        return answer.run_id

    def run(self, number: int) -> Run | None:
        """One of the last twenty runs by its number; None if the SuperLink has none."""
        with _mapped():
            runs = self.client.ListRuns(ListRunsRequest()).run_dict
        run = runs.get(number)
        return None if run is None else Run(run.status.status, run.status.details)

    def stop(self, number: int) -> None:
        """Ends a run; its ServerApp notices at its next call."""
        with _mapped():
            self.client.StopRun(StopRunRequest(run_id=number))


@contextmanager
def _mapped() -> Iterator[None]:
    """Turns what the client raises into our error; an answer that says why is quoted."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        kind = RefusedError if error.response.is_client_error else LinkError
        raise kind(f"Flower's SuperLink refuses: {error.response.text[:500] or error}") from error
    except (httpx.HTTPError, ValueError) as error:
        raise LinkError(f"Flower's SuperLink cannot be reached: {error}") from error
