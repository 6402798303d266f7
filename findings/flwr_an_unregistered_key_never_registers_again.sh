#!/usr/bin/env bash
# flwr: a node's public key that was unregistered cannot be registered again
#
# Versions: flwr 1.41.0, CPython 3.11.
#
# What one would expect: `flwr supernode unregister` ends a node's access, and `flwr supernode register` with the same key
# gives it back, for example after an operator has removed the wrong hospital.
#
# What happens: the SuperLink keeps the unregistered node with its key, which has to be unique. Registering it again is
# refused with "Public key already in use", although no registered node has it. The site needs a new key, or the server a
# new database.
#
# What we do: a key is unregistered only once its file is gone, a second file with the same key does not count as that,
# and `fedelta server run` says that a removed site needs a new key.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export FLWR_HOME="$folder/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check flwr==1.41.0
cat >"$folder/see.py" <<'PYTHON'
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.superlink.main import create_app

state = create_app().state.linkstate_factory.state()  # what a SuperLink keeps, in memory
node = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"key of a hospital", 0)
state.delete_node(NOOP_FLWR_AID, node)
print([information.status for information in state.get_node_info(node_ids=[node])])
try:
    state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"key of a hospital", 0)
    print("registered again")
except ValueError as error:
    print(error)
PYTHON
output=$("$folder/venv/bin/python" "$folder/see.py" 2>/dev/null)
echo "$output"
[ "$output" = "['unregistered']
Public key already in use" ]
