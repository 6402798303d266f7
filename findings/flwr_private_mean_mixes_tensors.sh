#!/usr/bin/env bash
# flwr: server-side differential privacy subtracts tensors by position, so a reply in another key order is mixed up
#
# Versions: flwr 1.41.0, numpy 2.3.5, CPython 3.11.
#
# What one would expect: a reply is a mapping of names to arrays. `FedAvg` averages by name, and wrapping it for central
# differential privacy adds clipping and noise to the same mean. Without noise, and with a clipping norm above every
# update, the wrapped strategy gives what `FedAvg` gives.
#
# What happens: the wrapper takes the difference between reply and model position by position, without a look at the
# keys. If a node lists its arrays in another order than the server, as it does when its state dictionary was read with
# `safetensors.torch.load` (findings/safetensors_order.sh), each tensor is compared with another one: two tensors that
# moved by 1 count as two that moved by 100, are clipped for it, and end near the value of the other. No error is raised
# where the shapes agree.
#
# What we do: our own mean and our own clipping, by name.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export FLWR_HOME="$folder/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check flwr==1.41.0 numpy==2.3.5
cat >"$folder/see.py" <<'PYTHON'
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # as in a ServerApp


def arrays(**values):
    return ArrayRecord({name: Array(np.array(value)) for name, value in values.items()})


class TwoNodes:
    def get_node_ids(self):
        return [2, 3]


def mean(strategy, reply):
    """The mean of two equal replies to the model a = 0, b = 100."""
    strategy.configure_train(1, arrays(a=[0.0], b=[100.0]), ConfigRecord(), TwoNodes())
    content = lambda: RecordDict({"arrays": reply(), "metrics": MetricRecord({"num-examples": 1})})
    asked = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (2, 3)]
    result, _ = strategy.aggregate_train(1, [Message(content(), reply_to=message) for message in asked])
    return {name: float(result[name].numpy()[0]) for name in sorted(result)}


def private():
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, clipping_norm=1000.0, num_sampled_clients=2)


in_order = lambda: arrays(a=[1.0], b=[101.0])
turned = lambda: arrays(b=[101.0], a=[1.0])
for name, strategy in (("FedAvg", FedAvg), ("private", private)):
    print(f"{name}: in the server's order {mean(strategy(), in_order)}, in another {mean(strategy(), turned)}")
assert mean(FedAvg(), turned) == mean(private(), in_order) == {"a": 1.0, "b": 101.0}
clipped = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, clipping_norm=2.0, num_sampled_clients=2)
told = mean(clipped, turned)
print(f"private, clipped to 2: in another order {told}; both tensors moved by 1, which is within the norm")
assert abs(told["a"] - 1) > 50 and abs(told["b"] - 101) > 50, "the wrapper goes by name now"
PYTHON
"$folder/venv/bin/python" "$folder/see.py" 2>/dev/null
