"""How the tests talk to a service, as a server does: every message passes through its packed form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedelta import __version__
from fedelta.deployment.site.service import Service
from fedelta.deployment.site.settings import parse_site
from fedelta.runtimes.remote.messages import PROTOCOL, Message, pack, unpack
from fedelta.seeds import stream

RUN = "run 1"
DIGITS = tuple("0123456789")


def service(folder: Path, **settings: object) -> Service:
    """The service of a site over digits, unless `settings` say something else."""
    return Service(parse_site({"name": "hamburg", "data": {"source": "digits"}} | settings, folder))


def ask(service: Service, kind: str, manifest: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Message:
    """The answer to a message of the run, after it travelled."""
    message = unpack(*pack(Message(kind, {"run": RUN, **manifest}, blobs)), 2**30)
    return unpack(*pack(service.answer(message)), 2**30)


def describe(service: Service, recipe: str) -> Message:
    """The site's answer to a recipe."""
    return ask(service, "describe", {"protocol": PROTOCOL, "version": __version__, "config": recipe})


def prepare(
    service: Service, clients: Iterable[Sequence[object]], names: Sequence[str] = DIGITS, **more: Any
) -> Message:
    """The site's answer to its part of the run."""
    part = {"class_names": list(names), "clients": list(clients), "depths": None, "num_clients": 6}
    return ask(service, "prepare", part | more)


def trainee(client_id: int, version: int = 0, **more: Any) -> dict[str, Any]:
    """The entry of a client in `train`."""
    return {"id": client_id, "download": 0, "upload": 0, "version": version, "keeps_adrift": True} | more


def train(
    service: Service, round: int, clients: Sequence[dict[str, Any]], names: Sequence[str], blobs: Sequence[bytes]
) -> Message:
    """The site's answer in a round in which all clients send the tensors `names`."""
    request = {"round": round, "num_clients": 6, "uploads": [list(names)], "clients": clients}
    return ask(service, "train", request, blobs)


def entry(answer: Message, client_id: int) -> dict[str, Any]:
    """What `trained` says of a client; its upload, if there is one, as `payload`."""
    of_client = next(entry for entry in answer.manifest["clients"] if entry["id"] == client_id)
    payload = None if of_client["blob"] is None else bytes(answer.blobs[of_client["blob"]])
    return {**of_client, "payload": payload}


def write_images(path: Path, rows: Iterable[Mapping[str, object]], seed: int = 0) -> Path:
    """A JSON Lines file with a small random image in each row, beside the values of `rows`."""
    generator = stream(seed, "images")
    lines = [
        json.dumps({"image": torch.randint(0, 256, (8, 8), generator=generator).tolist(), **row}) + "\n" for row in rows
    ]
    path.write_text("".join(lines))
    return path
