"""A site's connection with the server: messages come, answers go.

It does what `flower-supernode` does, with what that program is made of, but in this process:

- a message is answered here, not by a new process, which would load Python and Flower each time;
- messages are asked for as often as the site chooses, not every 3 s;
- the code that a server may send along with a run is neither fetched nor executed;
- nothing listens at a site;
- requests are signed with the server's time, so that the server also accepts a site whose clock is wrong;
- after a kill, the site's own earlier session is ended first; Flower would refuse its key for up to a minute.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message as Carrier
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
    push_objects,
)

from fedelta.deployment.site.diagnosis import RunEndedError
from fedelta.errors import FedeltaError, LinkError, PayloadError
from fedelta.runtimes.flower.envelope import unwrap, wrap
from fedelta.runtimes.flower.fleet import Fleet
from fedelta.runtimes.remote.messages import REFUSED, Message

# The server takes a site for gone after two of these: 40 s, instead of Flower's 60 s. Beats are closer together, so
# that the network may be cut for 30 s: a beat that got lost may be noticed after 5 s only.
HEARTBEAT_SECONDS = 20.0
_BEAT_SECONDS, _AGAIN_SECONDS = 2.5, 1.0
_MANIFEST_BYTES = 2**25  # and headers
_NUM_PUSHES = 4


@dataclass(frozen=True)
class Delivery:
    """A message that came, and what its answer has to refer to.

    Args:
        message: of the server.
        carrier: Flower's, without content.
        begin: when it came, on the monotonic clock.
    """

    message: Message
    carrier: Carrier
    begin: float


class Connection:
    """One site's connection; see the module.

    Args:
        fleet: calls the server.
        max_bytes: of one message.
    """

    def __init__(self, fleet: Fleet, max_bytes: int) -> None:
        self._fleet = fleet
        self._client = fleet.client
        self._max_bytes = max_bytes
        self._node = Node()
        self._heart: threading.Thread | None = None

    @property
    def clock_offset(self) -> float:
        """Seconds that the server's clock is ahead of this machine's."""
        return self._fleet.clock_offset

    def look(self) -> None:
        """See `Fleet.look`."""
        self._fleet.look()

    def join(self, previous: int | None = None) -> int:
        """Connects the site, and returns the number that the server knows it by.

        Args:
            previous: that number, if an earlier process of this site may still be taken for connected.

        Raises:
            KeyRefusedError: the key is not registered, or another process is connected with it.
            LinkError: the server is not reached.
            InputError: it cannot be reached until a person corrects something.
        """
        self._fleet.look()
        if previous is not None:
            with contextlib.suppress(LinkError):  # it need not be connected any more
                self._fleet.call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=previous))
        request = ActivateNodeRequest(public_key=self._fleet.public_key, heartbeat_interval=HEARTBEAT_SECONDS)
        number: int = self._fleet.call(self._client.ActivateNode, request).node_id
        self._node = Node(node_id=number)
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()
        return number

    def receive(self) -> Delivery | None:
        """The next message for this site, if there is one.

        Raises:
            KeyRefusedError: the site is not registered any more.
            LinkError: the server is not reached.
            PayloadError: a message came that cannot be used; the server was told.
        """
        response = self._fleet.call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        carrier, begin = message_from_proto(response.messages_list[0]), time.monotonic()
        try:
            return Delivery(self._fetch(carrier, response.message_object_trees[0]), carrier, begin)
        except PayloadError as error:
            refusal = Message(REFUSED, {"reason": error.message, "hint": ""})
            self.answer(Delivery(refusal, carrier, begin), refusal)
            raise
        except RunEndedError:
            return None

    def answer(self, delivery: Delivery, answer: Message) -> bool:
        """Sends the answer to a message; returns whether the server still wanted it.

        Raises:
            LinkError: the server was not reached for minutes.
        """
        reply, seconds = self._reply(delivery, answer), time.monotonic() - delivery.begin
        with no_object_id_recompute():
            for attempt in range(_NUM_PUSHES):
                try:
                    return self._push(reply, seconds) or attempt > 0
                except RunEndedError:
                    return False
                except ObjectPushError:  # the SuperLink forgets half an answer when it is started anew
                    self._fleet.pause(attempt)
        raise LinkError("the server does not take the parts of the answer.")

    def leave(self) -> None:
        """Ends the connection, and says so to the server if that is possible at once."""
        self._fleet.end()
        if self._node.node_id:
            with contextlib.suppress(FedeltaError):
                self._fleet.call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id))
        self._client.close()

    def _fetch(self, carrier: Carrier, tree: ObjectTree) -> Message:
        """The content of a message that was announced."""
        run_id = carrier.metadata.run_id
        confirm = make_confirm_message_received_fn_protobuf(
            lambda request: self._fleet.patiently(self._client.ConfirmMessageReceived, request), self._node, run_id
        )
        try:
            whole = pull_and_inflate_object_from_tree(tree, self._puller(run_id), confirm, return_type=Carrier)
            return unwrap(whole.content, self._max_bytes)
        except (ObjectPullError, TypeError, ValueError, KeyError) as error:
            raise PayloadError(f"a message of the server is damaged: {error}") from error

    def _reply(self, delivery: Delivery, answer: Message) -> Carrier:
        reply = Carrier(wrap(answer), reply_to=delivery.carrier)
        asked, said = delivery.carrier.metadata, reply.metadata
        said.created_at = time.time() + self.clock_offset
        said.ttl = asked.created_at + asked.ttl - said.created_at
        said.__dict__["_message_id"] = reply.object_id
        return reply

    def _push(self, reply: Carrier, seconds: float) -> bool:
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
            clientapp_runtime_list=[seconds],
        )
        num_tries = 0

        def store(request: PushMessagesRequest) -> PushMessagesResponse:
            nonlocal num_tries
            num_tries += 1
            return self._client.PushMessages(request)

        response = self._fleet.patiently(store, request)
        if not response.objects_to_push:  # the server says in no other way that it does not take an answer
            if num_tries > 1:  # perhaps it took the first request, and what it replied was lost
                raise LinkError("the server has perhaps only the beginning of the answer.")
            return False
        push = make_push_object_fn_protobuf(
            lambda part: self._fleet.patiently(self._client.PushObject, part),
            self._node,
            reply.metadata.run_id,
            response.session_id,
        )
        push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(response.objects_to_push))
        return True

    def _puller(self, run_id: int) -> Callable[[str], bytes]:
        """Fetches one object of a message, and counts the bytes of all."""
        pull = make_pull_object_fn_protobuf(
            lambda request: self._fleet.patiently(self._client.PullObject, request), self._node, run_id
        )
        unused = [self._max_bytes + _MANIFEST_BYTES]

        def counted(object_id: str) -> bytes:
            content = pull(object_id)
            unused[0] -= len(content)
            if unused[0] < 0:
                raise PayloadError(f"a message of the server is larger than the {self._max_bytes} bytes allowed.")
            return content

        return counted

    def _beat(self) -> None:
        """Says that the site is there, until it leaves. If the server is away, `receive` notices."""
        pause = _BEAT_SECONDS
        while not self._fleet.pause(pause):
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
            try:
                self._fleet.call(self._client.SendNodeHeartbeat, request)
                pause = _BEAT_SECONDS
            except FedeltaError:
                pause = _AGAIN_SECONDS
