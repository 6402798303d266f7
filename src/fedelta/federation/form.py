"""Whether a reply has values of the types and ranges that it should have.

No value in a reply is trusted. A number may be a text, a container may be nested too deep to print, and an object may
raise an error when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any, get_args

import numpy as np

from fedelta.federation.records import Cause, Fault, Reply

LARGEST_FLOAT32 = 3.4028234663852886e38
MAX_REASON = 500  # characters; a reason may come from another program


def well_formed(reply: Reply, client_id: int, *, needs_loss: bool = True) -> Reply:
    """`reply` with values of the types that `Reply` has; if its values have others, with a fault instead.

    Without `needs_loss`, as with privacy, its metrics are not read.
    """
    is_bytes = isinstance(reply.payload, bytes | bytearray | memoryview)
    payload = bytes(reply.payload) if is_bytes else b""
    fault = reply.fault
    try:
        problem = _type_problem(reply, needs_loss=needs_loss)
    except Exception as error:  # noqa: BLE001 values from a runtime may raise anything when they are read
        problem = f"the client's reply cannot be read: {type(error).__name__}"
    if problem is None and fault is not None:
        fault = replace(fault, reason=fault.reason[:MAX_REASON])
    elif problem is not None:
        fault = Fault(problem[:MAX_REASON])
    if fault is not None:
        return Reply(client_id, 0, payload, fault=fault, simulated_seconds=None if problem else _seconds(reply))
    metrics = {"train_loss": float(reply.metrics["train_loss"])} if needs_loss else {}
    return Reply(client_id, int(reply.num_examples), payload, metrics, simulated_seconds=_seconds(reply))


def _seconds(reply: Reply) -> float | None:
    return None if reply.simulated_seconds is None else float(reply.simulated_seconds)


def safe_repr(value: object) -> str:
    """`repr(value)`, cut to `MAX_REASON` characters; the type's name if `repr` fails, for example on deep nesting."""
    try:
        return repr(value)[:MAX_REASON]
    except Exception:  # noqa: BLE001 a `__repr__` may raise anything
        return f"a value of type `{type(value).__name__}`"


def _type_problem(reply: Reply, *, needs_loss: bool) -> str | None:
    """The first value of a reply that has the wrong type or range, in words; None if all are right."""
    fault: object = reply.fault
    seconds = reply.simulated_seconds
    metrics: object = reply.metrics
    payload: object = reply.payload
    if fault is not None and not (
        isinstance(fault, Fault) and isinstance(fault.reason, str) and fault.cause in get_args(Cause)
    ):
        return f"the client's fault is {safe_repr(fault)}, expected a `Fault`"
    if seconds is not None and not (_fits_float32(seconds) and seconds >= 0):
        return f"the client's simulated time is {safe_repr(seconds)} s, expected a finite number, 0 or more"
    if not isinstance(payload, bytes):
        return f"the client's payload is of type `{type(payload).__name__}`, expected bytes"
    if fault is not None:
        return None
    num_examples = whole_number(reply.num_examples)
    if num_examples is None:
        return f"the client claims {safe_repr(reply.num_examples)} examples, expected a whole number"
    if not 1 <= num_examples < 2**63:
        # Python refuses to print integers of more than 4,300 digits.
        claim = num_examples if abs(num_examples) < 2**63 else "a number beyond 64 bits of"
        return f"the client claims {claim} examples, expected at least 1"
    if not needs_loss:
        return None
    if not isinstance(metrics, Mapping):
        return f"the client's metrics are {safe_repr(metrics)}, expected numbers by name"
    loss = metrics.get("train_loss", math.nan)
    if not _fits_float32(loss):
        return f"the client's metric `train_loss` is {safe_repr(loss):.40}, expected a finite number"
    return None


def whole_number(value: object) -> int | None:
    """`value` as an int if it is a whole number; None for anything else, including `True` and `False`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    return int(value)


def _fits_float32(value: Any) -> bool:  # Any: the type is not known yet
    """Whether `value` is a finite number that float32 can hold."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(np.abs(value) <= LARGEST_FLOAT32)
