"""Experiments that take seconds: real digits, a tiny random network, six clients at two or three sites."""

from __future__ import annotations

from tests.small import SMALL

# One lane, at the sites as in the simulation: sums then have the same order, and every bit can be compared.
ONE_LANE = {"runtime": {"lanes": 1}}
SITE = {"data": {"source": "digits", "max_train_examples": 120, "max_test_examples": 60}, **ONE_LANE}
HAMBURG, KIEL = {"clients": "0-2", **SITE}, {"clients": "3-5", **SITE}

# Every part of a client's memory at once: a correction that SCAFFOLD remembers, and what int8 leaves out of an upload.
RECIPE = f"""{SMALL[: SMALL.index("[strategy]")]}
[strategy]
name = "scaffold"
clients_per_round = 4
num_rounds = 3

[client]
local_steps = 30
batch_size = 8
lr = 0.05

[client.optimizer]
name = "sgd"
momentum = 0.0

[codec]
name = "int8"

[runtime]
name = "flower"
lanes = 1

[deployment]
min_sites = 2
start_seconds = 60.0
round_seconds = 90.0
min_grace_seconds = 60.0
"""
