"""Replies as they come from a runtime: with values of the promised types, or with a fault that says what is not.

Nothing in a reply is trusted: a number may be a text, nest as deep as it likes, or fail when it is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any, get_args

import numpy as np

from fedelta.federation.records import Cause, Fault, Reply

_LARGEST_FLOAT32 = 3.4028234663852886e38
MAX_REASON = 500  # characters; a reason may come from anywhere


def well_formed(reply: Reply, client_id: int) -> Reply:
    """`reply` with values of the types that it promises; with a fault where they are others."""
    is_bytes = isinstance(reply.payload, bytes | bytearray | memoryview)
    payload = bytes(reply.payload) if is_bytes else b""
    fault = reply.fault
    try:
        problem = _badly_typed(reply)
    except Exception as error:  # noqa: BLE001 whatever a value of a runtime does when it is looked at
        problem = f"the client's reply cannot be read: {type(error).__name__}"
    if problem is None and fault is not None:
        fault = replace(fault, reason=fault.reason[:MAX_REASON])
    elif problem is not None:
        fault = Fault(problem[:MAX_REASON])
    if fault is not None:
        return Reply(client_id, 0, payload, fault=fault, simulated_seconds=None if problem else _seconds(reply))
    loss = float(reply.metrics["train_loss"])
    return Reply(client_id, int(reply.num_examples), payload, {"train_loss": loss}, simulated_seconds=_seconds(reply))


def _seconds(reply: Reply) -> float | None:
    return None if reply.simulated_seconds is None else float(reply.simulated_seconds)


def shown(value: object) -> str:
    """`value` as text, whatever it is: some nest too deep for that, have too many digits, or refuse."""
    try:
        return repr(value)[:MAX_REASON]
    except Exception:  # noqa: BLE001 of a value's own `__repr__`
        return f"a value of type `{type(value).__name__}`"


def _badly_typed(reply: Reply) -> str | None:
    """What is wrong with the values of a reply, whatever their types are; None if nothing is."""
    fault: object = reply.fault
    seconds = reply.simulated_seconds
    metrics: object = reply.metrics
    payload: object = reply.payload
    if fault is not None and not (
        isinstance(fault, Fault) and isinstance(fault.reason, str) and fault.cause in get_args(Cause)
    ):
        return f"the client's fault is {shown(fault)}, expected a `Fault`"
    if seconds is not None and not (_is_finite(seconds) and seconds >= 0):
        return f"the client's simulated time is {shown(seconds)} s, expected a finite number, 0 or more"
    if not isinstance(payload, bytes):
        return f"the client's payload is of type `{type(payload).__name__}`, expected bytes"
    if fault is not None:
        return None
    num_examples = whole(reply.num_examples)
    if num_examples is None:
        return f"the client claims {shown(reply.num_examples)} examples, expected a whole number"
    if not 1 <= num_examples < 2**63:
        found = num_examples if abs(num_examples) < 2**63 else "a number beyond 64 bits of"
        return f"the client claims {found} examples, expected at least 1"
    if not isinstance(metrics, Mapping):
        return f"the client's metrics are {shown(metrics)}, expected numbers by name"
    loss = metrics.get("train_loss", math.nan)
    if not _is_finite(loss):
        return f"the client's metric `train_loss` is {shown(loss):.40}, expected a finite number"
    return None


def whole(value: object) -> int | None:
    """A whole number as such; None for anything else, truth values among it."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    return int(value)


def _is_finite(value: Any) -> bool:  # Any: whatever a runtime gives
    """Whether `value` is a number that float32 can hold."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(np.abs(value) <= _LARGEST_FLOAT32)
