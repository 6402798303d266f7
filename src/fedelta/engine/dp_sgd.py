"""DP-SGD: gradients of single examples, clipped, summed, with noise.

    g = (sum over the batch of clip(gradient of the example, C) + N(0, (z C)^2)) / expected batch size

One example, added or removed, changes the sum by C at most. The batch is a Poisson sample of the client's examples, so
its size is random too, and the sum is divided by the expected size. An empty batch gives noise alone.

Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedelta.privacy.settings import Clipping, Mechanism


@dataclass(frozen=True)
class DpSgd:
    """How the gradient of a step is limited before noise is added.

    Args:
        clipping_norm: C, the largest norm of an example's gradient; for FedPEFT's mechanisms see `privacy/fedpeft.py`.
        clipping: over all tensors together, or for each group with C / sqrt(number of groups).
        mechanism: DP-SGD, or FedPEFT's noise in the gradient of ordinary batches.
    """

    clipping_norm: float
    clipping: Clipping = "flat"
    mechanism: Mechanism = "gaussian"
