"""The site's part of the submitted app, for sites where `flower-supernode` runs instead of `fedelta site run`.

That program starts a new process for every message, so this imports neither torch nor what reads data: the site's
worker has them loaded. The folder of the site is the node's configuration `fedelta-site`, or in the environment.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from fedelta.errors import FedeltaError, InputError
from fedelta.runtimes.flower.envelope import unwrap, wrap
from fedelta.runtimes.remote.caller import ask
from fedelta.runtimes.remote.messages import REFUSED, Message

VARIABLE, KEY = "FEDELTA_SITE", "fedelta-site"
# The worker refuses what is more than its settings allow; this only bounds what is held here.
_MAX_BYTES = 2**36

app = ClientApp()


@app.query()
def answer(message: FlowerMessage, context: Context) -> FlowerMessage:
    """The worker's answer to a message; a refusal with the reason if it cannot give one."""
    try:
        reply = ask(_folder(context), unwrap(message.content, _MAX_BYTES))
    except FedeltaError as error:
        reply = Message(REFUSED, {"reason": error.message, "hint": error.hint or ""})
    return FlowerMessage(wrap(reply), reply_to=message)


def _folder(context: Context) -> Path:
    folder = context.node_config.get(KEY) or os.environ.get(VARIABLE)
    if not folder:
        raise InputError(
            "the node does not know the folder of its site.",
            hint=f"""`flower-supernode --node-config '{KEY}="/path/of/the/site"'`, or run `fedelta site run`.""",
        )
    return Path(str(folder))
