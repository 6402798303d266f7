"""Flower's client app: the model is built once in each of Ray's workers."""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import cache
from pathlib import Path

import torch
from benchmarks.peers.loaded import Loaded, load
from benchmarks.peers.sides.flower import FOLDER, THREADS
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@cache
def loaded() -> Loaded:
    """The work, in this process."""
    torch.set_num_threads(int(os.environ[THREADS]))
    return load(Path(os.environ[FOLDER]))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's part of a round."""
    work, number = loaded(), message.content["config"]["server-round"]
    work.put(message.content["arrays"].to_torch_state_dict())
    work.train(work.steps(number, int(context.node_config["partition-id"])), work.optimizer())
    arrays = ArrayRecord(OrderedDict((name, tensor.detach()) for name, tensor in work.tuned.items()))
    metrics = MetricRecord({"num-examples": work.work.num_rows})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
