"""An epsilon as it is shown to people."""

from __future__ import annotations

import math

_DIGITS = 4


def shown_epsilon(epsilon: float | None) -> str:
    """An epsilon with at most four digits, rounded up, since it is an upper bound.

    >>> shown_epsilon(3.253941), shown_epsilon(31.1361), shown_epsilon(4.9999999), shown_epsilon(0.0)
    ('3.254', '31.14', '5', '0')
    """
    if epsilon is None:
        return "unknown"
    if math.isinf(epsilon):
        return "infinite"
    if epsilon <= 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(epsilon)) - _DIGITS + 1)
    # Guarded: 3.254 / 0.001 is slightly more than 3254.
    return f"{math.ceil(round(epsilon / step, 6)) * step:.{_DIGITS}g}"
