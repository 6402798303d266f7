"""Trials of example-level privacy: clients with one example whose gradient is as large as it can be, or without it.

Every client of the trials has the same few rows: copies of one example, and in half of the clients the canary in place
of one of them. In each round it takes one plain step, so that its upload is one noisy sum of clipped gradients. What is
seen of an upload is its part in the direction of the canary's gradient that is orthogonal to the gradient of the
copies: neither they nor their number tells anything there. Sampling, gradients, clipping and noise are those of the
run; momentum, strategy and codec are left out, because they compute from noisy gradients.

The clipping norm is lowered until the canary's gradient exceeds it by far. The guarantee does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta.auditing.bounds import Trials
from fedelta.auditing.evidence import evidence
from fedelta.auditing.model import NUM_ROWS, SmallModel, client_settings
from fedelta.auditing.sites import scores, uploads
from fedelta.auditing.streams import Scaled, Streams
from fedelta.codecs.channel import Channel
from fedelta.engine.dp_sgd import DpSgd
from fedelta.federation.client import Site
from fedelta.params import Params, norm
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.randomness import Randomness, Seeded
from fedelta.privacy.settings import Privacy

_EXCESS = 8.0  # norm of the canary's gradient, in units of the clipping norm
_UNLIMITED = 1e12


@dataclass(frozen=True)
class ExampleTrials:
    """The clients of a run, for trials.

    Args:
        model: the small model.
        settings: section `[privacy]`.
        noise_multiplier: z, as it is claimed to be.
        num_rows: of each client.
        batch_size: expected number of rows in a batch.
        num_rounds: of a trial.
    """

    model: SmallModel
    settings: Privacy
    noise_multiplier: float
    num_rows: int
    batch_size: int
    num_rounds: int

    def trials(self, num: int, streams: Streams) -> Trials:
        """The scores of `num` trials with and as many without the canary."""
        canary, other, clipping_norm = self._rows()
        settings = self.settings.model_copy(update={"clipping_norm": clipping_norm})
        noiseless = self._gradients(settings)
        along, shift = _apart(noiseless[canary], noiseless[other])
        copies = torch.full((self.num_rows,), other)
        with_canary = torch.cat([torch.tensor([canary]), copies[1:]])
        partition = {trial: with_canary if trial >= num else copies for trial in range(2 * num)}
        site = self._site(settings, partition, streams.of("example"))
        factor = -self.batch_size / clipping_norm

        def evidence_of(delta: Params) -> float:
            seen = factor * float(_flat(delta) @ along)
            return evidence(seen, self.noise_multiplier, shift / clipping_norm)

        results = scores(site, self.num_rounds, self.model.start, evidence_of, self.batch_size / self.num_rows)
        return Trials(results[:num], results[num:])

    def _site(self, settings: Privacy, partition: Mapping[int, Tensor], randomness: Randomness) -> Site:
        """A site whose batches have `batch_size` rows, or one if a client has only one."""
        batch_size = 1 if len(partition[0]) == 1 else self.batch_size
        engine = self.model.engine(client_settings(batch_size), DpSgd(settings.clipping_norm, settings.clipping))
        privacy = SitePrivacy(settings, self.noise_multiplier, randomness)
        kept = {name: self.model.start[name] for name in self.model.spec.kept}
        return Site(engine, partition, Channel(), seed=0, num_rounds=1, start=kept, privacy=privacy)

    def _gradients(self, settings: Privacy) -> dict[int, Tensor]:
        """Row to its clipped gradient, flat."""
        partition = {row: torch.tensor([row]) for row in range(NUM_ROWS)}
        site = self._site(settings, partition, Scaled(Seeded(0), 0.0))
        sent = uploads(site, partition, 1, self.model.start)
        return {row: -_flat(delta) for row, delta in sent.items()}

    def _rows(self) -> tuple[int, int, float]:
        """The canary's row, that of the copies, and the clipping norm."""
        unlimited = self.settings.model_copy(update={"clipping_norm": _UNLIMITED})
        partition = {row: torch.tensor([row]) for row in range(NUM_ROWS)}
        deltas = uploads(self._site(unlimited, partition, Scaled(Seeded(0), 0.0)), partition, 1, self.model.start)
        reach = {row: self._reach(delta) for row, delta in deltas.items()}
        canary = max(reach, key=lambda row: reach[row])
        clipping_norm = min(self.settings.clipping_norm, reach[canary] / _EXCESS)
        clipped = self._gradients(self.settings.model_copy(update={"clipping_norm": clipping_norm}))
        other = max((row for row in clipped if row != canary), key=lambda row: _apart(clipped[canary], clipped[row])[1])
        return canary, other, clipping_norm

    def _reach(self, gradient: Params) -> float:
        """The largest clipping norm that clips the whole gradient."""
        if self.settings.clipping != "per-group":
            return norm(gradient)
        groups = self.model.spec.groups.values()
        norms = [norm({name: gradient[name] for name in names if name in gradient}) for names in groups]
        return min((length for length in norms if length), default=0.0) * math.sqrt(len(norms))


def _flat(tensors: Params) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def _apart(first: Tensor, second: Tensor) -> tuple[Tensor, float]:
    """The direction of the part of `first` that is orthogonal to `second`, and the length of this part."""
    length = float(second.norm())
    rest = first - second * (float(first @ second) / length**2) if length else first
    size = float(rest.norm())
    return rest / size if size else rest, size
