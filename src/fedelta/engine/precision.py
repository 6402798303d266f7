"""What half precision costs on this machine, measured: a CPU without bfloat16 units is many times slower with it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear

_PRODUCT = 2**26  # multiplications of a timed product
_REPEATS = 3
_WORTH_SAYING = 1.5  # less may be chance


def slow_bfloat16(module: nn.Module) -> str | None:
    """A sentence on how much slower bfloat16 makes the model on a CPU, where it does; else None.

    Args:
        module: on its device; the product of its largest matrix is timed, for about 50 ms.
    """
    largest = max(module.parameters(), key=lambda tensor: tensor.numel() if tensor.dim() > 1 else 0)
    if largest.device.type != "cpu":
        return None
    out_features, in_features = largest.shape[0], largest.shape[1:].numel()
    ratio = slowdown(in_features, out_features)
    if ratio < _WORTH_SAYING:
        return None
    times = f"{ratio:.1f}" if ratio < 3 else f"{ratio:.0f}"
    return (
        f"`runtime.compute_dtype` is 'bfloat16', which is about {times} times slower on this CPU (measured on a matrix "
        f"of {out_features} x {in_features}); leave it at 'float32' here."
    )


def slowdown(in_features: int, out_features: int) -> float:
    """Seconds of a linear layer under bfloat16 autocast, divided by its seconds in float32."""
    num_rows = min(1024, max(32, _PRODUCT // (in_features * out_features)))
    x, weight = torch.rand(num_rows, in_features), torch.rand(out_features, in_features)

    def half() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight)

    with torch.no_grad():
        return _seconds(half) / _seconds(lambda: linear(x, weight))


def _seconds(call: Callable[[], object]) -> float:
    """The shortest of a few times, after one that does not count."""
    call()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
