"""Trials at a site: each client of a `federation.client.Site` is a trial, and its uploads are what is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from fedelta.auditing.bounds import Scores
from fedelta.auditing.evidence import score
from fedelta.codecs.wire import decode
from fedelta.federation.client import Site
from fedelta.params import Params, select
from fedelta.strategies.base import RoundPlan


def uploads(site: Site, client_ids: Iterable[int], round: int, start: Params) -> dict[int, Params]:
    """What the clients send if the round begins with `start`, decoded.

    Raises:
        ValueError: a client sent nothing.
    """
    spec = site.wire
    names_of = dict.fromkeys(client_ids, spec.shared)
    payload = site.channel.first_download(select(start, spec.shared), spec)
    plan = RoundPlan(round, names_of, names_of, num_clients=len(names_of), due=spec.shared)
    sent = {}
    for reply in site.run(plan, dict.fromkeys(names_of, payload)):
        if reply.fault is not None:
            raise ValueError(f"client {reply.client_id} of an audit sent nothing: {reply.fault.reason}")
        sent[reply.client_id], _ = decode(reply.payload, spec, site.channel.up)
    return sent


def scores(site: Site, num_rounds: int, start: Params, evidence_of: Callable[[Params], float], rate: float) -> Scores:
    """The score of every client of the site after so many rounds, in ascending order of their numbers.

    All rounds begin with the same params: what is released does not depend on what was released before.

    Args:
        site: whose clients are the trials.
        num_rounds: of each trial.
        start: params of every round.
        evidence_of: what an upload says.
        rate: probability with which the canary has a part in an upload.
    """
    clients = sorted(site.partition)
    draws: dict[int, list[list[float]]] = {client_id: [] for client_id in clients}
    for round in range(1, num_rounds + 1):
        for client_id, delta in uploads(site, clients, round, start).items():
            draws[client_id].append([evidence_of(delta)])
    return np.array([score(draws[client_id], rate) for client_id in clients])
