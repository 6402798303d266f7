"""The noise of FedPEFT's authors, for a reproduction; it guarantees nothing.

Both forms add Gaussian noise to the gradient of a whole batch in every step, and count one step only. The sensitivity
of that gradient is not known, because no example's own gradient is clipped, and the losses of many steps add up.

Source: Sun et al. 2022 (FedPEFT, arXiv 2210.01708), section on differential privacy, and the released code.
"""

from __future__ import annotations

import math

from fedelta.privacy.settings import Privacy


def fedpeft_multiplier(settings: Privacy) -> float:
    """The standard deviation of the noise divided by the clipping norm C.

    >>> code = Privacy(mechanism="fedpeft-code", unit="example", target_epsilon=5, target_delta=1e-3)
    >>> round(fedpeft_multiplier(code), 3)  # 2 (2 ln(1.25 / delta) / epsilon)^1/2: epsilon is inside of the root
    3.378
    >>> text = Privacy(mechanism="fedpeft-text", unit="example", target_epsilon=5, target_delta=1e-3)
    >>> round(fedpeft_multiplier(text), 3)  # 2 (2 ln(1.25 / delta))^1/2 / epsilon
    1.511

    Args:
        settings: with a `target_epsilon`.
    """
    epsilon, power = settings.target_epsilon or math.inf, 2 * math.log(1.25 / settings.target_delta)
    return 2 * math.sqrt(power / epsilon) if settings.mechanism == "fedpeft-code" else 2 * math.sqrt(power) / epsilon
