"""The ClientApp for sites with a stock SuperNode."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.app import Message as Carrier
from flwr.app.metadata import Metadata

from fedelta.errors import InputError
from fedelta.runtimes.flower import client_app
from fedelta.runtimes.flower.envelope import unwrap, wrap
from fedelta.runtimes.remote.messages import REFUSED, Message


def carrier(records: RecordDict) -> Carrier:
    return Carrier(records, metadata=Metadata(1, "m", 1, 7, "", "", time.time(), 60.0, "query"))


def context(**node_config: str) -> Context:
    return Context(1, 7, {key.replace("_", "-"): value for key, value in node_config.items()}, RecordDict(), {}, 1)


def call(message: Carrier, context: Context) -> Message:
    """The answer of the whole app, as the SuperNode's process calls it."""
    reply = client_app.app(message, context)
    assert reply.metadata.reply_to_message_id == "m"
    return unwrap(reply.content, 2**20)


def test_the_worker_of_the_nodes_site_answers(monkeypatch):
    asked = []

    def ask(folder: Path, message: Message) -> Message:
        asked.append((folder, message.kind, bytes(message.blobs[0])))
        return Message("trained", {"round": 1}, (b"up",))

    monkeypatch.setattr(client_app, "ask", ask)
    answer = call(carrier(wrap(Message("train", {}, (b"down",)))), context(fedelta_site="/srv/site"))
    assert asked == [(Path("/srv/site"), "train", b"down")]
    assert (answer.kind, bytes(answer.blobs[0])) == ("trained", b"up")


def test_the_folder_may_be_in_the_environment(monkeypatch):
    monkeypatch.setenv("FEDELTA_SITE", "/srv/other")
    monkeypatch.setattr(client_app, "ask", lambda folder, message: Message("finished", {"folder": str(folder)}))
    assert call(carrier(wrap(Message("finish"))), context()).manifest == {"folder": "/srv/other"}


def test_without_a_folder_the_server_is_told_what_to_do(monkeypatch):
    monkeypatch.delenv("FEDELTA_SITE", raising=False)
    answer = call(carrier(wrap(Message("finish"))), context())
    assert answer.kind == REFUSED
    assert answer.manifest["reason"] == "the node does not know the folder of its site."
    assert "--node-config 'fedelta-site=" in answer.manifest["hint"]


@pytest.mark.parametrize("records", [RecordDict(), wrap(Message("finish"))])
def test_whatever_goes_wrong_is_a_refusal(monkeypatch, records):
    def ask(folder: Path, message: Message) -> Message:
        raise InputError("no such site.")

    monkeypatch.setattr(client_app, "ask", ask)
    assert call(carrier(records), context(fedelta_site="x")).kind == REFUSED


def test_it_loads_neither_torch_nor_what_reads_data():
    program = "import sys, fedelta.runtimes.flower.client_app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pandas", "pyarrow", "pydantic", "fastapi"} & set(loaded)


def test_a_sites_process_loads_neither_torch_nor_what_reads_data():
    program = "import sys, fedelta.deployment.site.running; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pandas", "pyarrow"} & set(loaded)
