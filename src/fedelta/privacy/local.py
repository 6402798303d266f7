"""What a site does so that whatever it sends is private already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fedelta.privacy import fedpeft
from fedelta.privacy.randomness import Randomness
from fedelta.privacy.settings import Privacy


@dataclass(frozen=True)
class SitePrivacy:
    """The privacy of a site's clients.

    Args:
        settings: section `[privacy]`, with a unit.
        noise_multiplier: z, given or calculated for the target.
        randomness: where the site takes noise and batches from.
    """

    settings: Privacy
    noise_multiplier: float
    randomness: Randomness

    @property
    def step_deviation(self) -> float:
        """The standard deviation of the noise in a step under `unit = "example"`.

        It is in the sum of the clipped gradients of a batch, z C; for FedPEFT's mechanisms in the batch's gradient.
        """
        if self.settings.mechanism == "gaussian":
            return self.noise_multiplier * self.settings.clipping_norm
        return fedpeft.deviation(self.settings)

    def step_noise(self, round: int, client_id: int) -> Callable[[int, int], Tensor]:
        """The noise of a client's steps in `round`: a function of the step, from 0, and of how many numbers it needs.

        The numbers have the deviation `step_deviation`, float64 on the CPU.
        """

        def noise(step: int, num: int) -> Tensor:
            return self.randomness.normal(num, "noise", round, client_id, step).mul_(self.step_deviation)

        return noise
