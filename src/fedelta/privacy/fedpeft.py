"""The noise of FedPEFT's authors, for comparison. It guarantees nothing.

The paper means to clip the gradient of each step to C and to add Gaussian noise of the classic mechanism for one
release. It is no differential privacy of a run, for three reasons: the clipped gradient is that of a batch, in which
one example can change everything (nothing limits a single example, and batches are not sampled); epsilon is that of
one step, and the steps are never added up; and the classic formula holds for epsilon below 1 only.

| mechanism | clips | deviation of the noise, s = 2 C |
|---|---|---|
| `fedpeft-text`, as intended | each tensor of the batch's gradient to C | s sqrt(2 ln(1.25 / delta)) / epsilon |
| `fedpeft-code`, as released | nothing: it clips the gradient of the gradient, which there is none of | s sqrt(2 ln(1.25 / delta) / epsilon) |

Source: Sun et al. 2022 (FedPEFT, arXiv 2210.01708) and its code; Dwork and Roth 2014, Theorem A.1 for the formula.
"""  # noqa: E501 a table

from __future__ import annotations

import math

from fedelta.privacy.settings import Privacy


def deviation(settings: Privacy) -> float:
    """The standard deviation of the noise in every scalar of a batch's gradient.

    >>> released = Privacy(
    ...     unit="example", mechanism="fedpeft-code", target_epsilon=5.0, target_delta=1e-3, clipping_norm=1.0
    ... )
    >>> round(deviation(released), 3), round(deviation(released.model_copy(update={"mechanism": "fedpeft-text"})), 3)
    (3.378, 1.511)

    Raises:
        ValueError: there is no `target_epsilon`, or the mechanism is another one.
    """
    epsilon, sensitivity = settings.target_epsilon, 2 * settings.clipping_norm
    if epsilon is None or settings.mechanism == "gaussian":
        raise ValueError(f"mechanism {settings.mechanism!r} with epsilon {epsilon} is none of FedPEFT's")
    square = 2 * math.log(1.25 / settings.target_delta)
    if settings.mechanism == "fedpeft-code":
        return sensitivity * math.sqrt(square / epsilon)
    return sensitivity * math.sqrt(square) / epsilon
