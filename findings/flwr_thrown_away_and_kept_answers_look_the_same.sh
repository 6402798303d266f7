#!/usr/bin/env bash
# flwr: an answer that the SuperLink throws away gets the same result as one that it keeps
#
# Versions: flwr 1.41.0, CPython 3.11.
#
# What one would expect: a node pushes its answer and learns from `PushMessagesResponse.results` whether the SuperLink
# has taken it. If it comes after the message's time to live, the answer is refused, and the node can say so: whoever
# runs it sees that the site is too slow.
#
# What happens: the SuperLink logs an error and stores nothing, but the node gets result 0, as for an answer in time;
# the result is a constant in `fleet_handlers.push_messages`. `flower-supernode` logs "Sent successfully" in every round,
# and its clients train for nothing. The only sign is that no parts of the answer are asked for.
#
# What we do: fedelta's sites take an empty list of parts for a refusal and say that the answer came too late; the server
# reads late answers all the same, and gives the site more time in the next round.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export FLWR_HOME="$folder/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check flwr==1.41.0
cat >"$folder/see.py" <<'PYTHON'
import time

from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.superlink.main import create_app
from flwr.superlink.servicer.fleet import fleet_handlers

state = create_app().state.linkstate_factory.state()  # what a SuperLink keeps, in memory
node = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"key", 0)
state.activate_node(node, 30)
run = state.create_run("f", "1", "h", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
(task,) = state.get_tasks(run_ids=[run])
state.claim_task(task.task_id)
state.activate_task(task.task_id)


def stamped(message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def answered(ttl: float, pause: float) -> tuple[int, int]:
    """What the SuperLink tells a node whose answer takes so long, and how many answers it has then."""
    metadata = Metadata(run, "", SUPERLINK_NODE_ID, node, "", "", time.time(), ttl, "query")
    request = stamped(Message(RecordDict(), metadata=metadata))
    state.store_message_and_object_tree(request, get_object_tree(request), state.start_session(run))
    assert state.get_message_ins(node, limit=1)
    time.sleep(pause)
    reply = stamped(Message(RecordDict(), reply_to=request, ttl=60.0))
    push = PushMessagesRequest(
        node=Node(node_id=node), messages_list=[message_to_proto(reply)], message_object_trees=[get_object_tree(reply)]
    )
    results = dict(fleet_handlers.push_messages(push, state).results)
    answers = [one for one in state.get_message_res({request.object_id}, run_id=run) if not one.has_error()]
    return results[reply.object_id], len(answers)


in_time, late = answered(60, 0), answered(0.2, 0.3)
print(f"in time: result {in_time[0]}, answers {in_time[1]}")
print(f"late:    result {late[0]}, answers {late[1]}")
assert in_time == (0, 1) and late == (0, 0), "the node learns that its answer was not taken"
PYTHON
"$folder/venv/bin/python" "$folder/see.py" 2>/dev/null | grep -v INFO
