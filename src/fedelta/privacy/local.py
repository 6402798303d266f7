"""What a site does so that whatever it sends is private already.

`unit = "example"` is done in local training (engine/dp_sgd.py). With `unit = "local"` a client sends

    clip(delta, C) + N(0, (z C)^2 I)

over all tensors of an upload together. Everything after that is computed from it: the control variate of SCAFFOLD, the
residual of a codec, the payload. So whatever the data and the download were, what arrives is private.

Sensitivity: two data sets give two clipped deltas, each of norm C at most, so that they differ by 2 C at most. The
noise has z C = (z / 2) 2 C, and an upload is accounted as a Gaussian mechanism with the multiplier z / 2. With clipping
per group each of the G groups of an upload contributes at most C / sqrt(G), and all together C again.

Source: McMahan et al. 2018 (arXiv 1710.06963) for clipping; the local model of Kasiviswanathan et al. 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedelta.params import Params, ParamSpec, digest_of
from fedelta.privacy import fedpeft
from fedelta.privacy.clipping import clipped, clipped_by_group
from fedelta.privacy.randomness import Randomness
from fedelta.privacy.settings import Privacy


@dataclass(frozen=True)
class SitePrivacy:
    """The privacy of a site's clients.

    Args:
        settings: section `[privacy]`, with a unit.
        noise_multiplier: z, given or calculated for the target.
        randomness: where the site takes noise and batches from.
        occasions: client number to a digest of all that its training starts from. A server that asks for the same round
            twice, but not for the same, must not get two answers with the same noise.
    """

    settings: Privacy
    noise_multiplier: float
    randomness: Randomness
    occasions: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether clients add noise to what they send."""
        return self.settings.unit == "local"

    def streams(self, client_id: int) -> Randomness:
        """The randomness of a client's work."""
        occasion = self.occasions.get(client_id)
        return self.randomness if occasion is None else self.randomness.below(occasion)

    @property
    def step_deviation(self) -> float:
        """The standard deviation of the noise in a step under `unit = "example"`.

        It is in the sum of the clipped gradients of a batch, z C; for FedPEFT's mechanisms in the batch's gradient.
        """
        if self.settings.mechanism == "gaussian":
            return self.noise_multiplier * self.settings.clipping_norm
        return fedpeft.deviation(self.settings)

    def step_noise(self, round: int, client_id: int) -> Callable[[int, Tensor], Tensor]:
        """The noise of a client's steps in `round`: a function of the step, from 0, and of what noise is added to.

        The numbers have the deviation `step_deviation`, float64 on the CPU.
        """
        streams = self.streams(client_id)

        def noise(step: int, exact: Tensor) -> Tensor:
            what = _secret_digest(streams, {"": exact})
            return streams.normal(exact.numel(), "noise", round, client_id, step, *what).mul_(self.step_deviation)

        return noise

    def randomised(self, delta: Params, spec: ParamSpec, round: int, client_id: int) -> Params:
        """What a client sends instead of `delta`, float32; see the module docstring.

        A delta that is not finite counts as zero: that it is not would be told about the data.

        Args:
            delta: all tensors of the upload.
            spec: knows their groups.
            round: number of the round.
            client_id: number of the client.
        """
        limit = self.settings.clipping_norm
        if self.settings.clipping == "per-group":
            num_groups = len({spec.tensors[name].group for name in delta})
            limited = clipped_by_group(delta, spec, limit / math.sqrt(max(1, num_groups)))
        else:
            limited = clipped(delta, limit)
        streams = self.streams(client_id)
        what = _secret_digest(streams, limited)
        sizes = [tensor.numel() for tensor in limited.values()]
        noise = streams.normal(sum(sizes), "noise", round, client_id, *what).mul_(self.noise_multiplier * limit)
        parts = zip(limited.items(), noise.split(sizes), strict=True)
        return {name: (tensor + part.reshape(tensor.shape)).to(torch.float32) for (name, tensor), part in parts}


def _secret_digest(streams: Randomness, exact: Params) -> list[str]:
    """What names the secret noise of `exact` beside round and client; nothing for seeded noise.

    Two values must not get the same secret noise, whatever may have made them differ: data that have changed in place,
    or another machine.
    """
    return [digest_of(exact)] if streams.is_secure else []
