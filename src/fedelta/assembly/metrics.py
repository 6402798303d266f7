"""Numbers about a finished model that a function of the caller's gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fedelta.errors import InputError

Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]
"""Gives numbers by name of all outputs [N, ...] and labels [N, ...] of the test set."""


def checked_metrics(metrics: object) -> dict[str, float]:
    """The numbers by name.

    Raises:
        InputError: they are something else.
    """
    if isinstance(metrics, Mapping):
        try:
            return {str(name): float(value) for name, value in metrics.items()}
        except (TypeError, ValueError):
            pass
    raise InputError(
        f"the function of metrics returned {metrics!r:.80}, expected numbers by name.",
        hint='such as `{"f1": 0.9}`.',
    )
