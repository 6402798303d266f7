"""Trials of the local model: clients whose deltas are as far apart as two deltas can be.

Half of the clients have a delta in some direction, far longer than the clipping norm, and half of them its opposite:
clipped, they are 2 C apart. What is seen is each upload's part in that direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from fedelta.auditing.bounds import Trials
from fedelta.auditing.directions import part, random_direction
from fedelta.auditing.evidence import evidence
from fedelta.auditing.model import client_settings
from fedelta.auditing.sites import scores
from fedelta.auditing.streams import Streams
from fedelta.codecs.channel import Channel
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.work import ClientSettings, Job, Trained
from fedelta.federation.client import Site
from fedelta.params import Params, ParamSpec
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.settings import Privacy
from fedelta.tuning.lanes import Lanes

_EXCESS = 32.0  # norm of a delta, in units of C


@dataclass(frozen=True)
class Extreme:
    """Takes the place of an engine, and gives every client a delta that does not depend on data.

    Args:
        spec: what is tuned.
        delta: of the clients from `first_present` on; that of the others is its opposite.
        first_present: number of a client.
        lanes: for the site.
        client: for the site.
        inputs: None, because no data are read.
        has_exits: False, because no model is run.
    """

    spec: ParamSpec
    delta: Params
    first_present: int
    lanes: Lanes
    client: ClientSettings
    inputs: None = None
    has_exits: bool = False

    def train(self, jobs: Sequence[Job], lr: float, round: int = 1) -> Iterator[Trained]:
        """See `LaneEngine.train`."""
        for job in jobs:
            sign = 1.0 if job.client_id >= self.first_present else -1.0
            delta = {name: sign * tensor for name, tensor in self.delta.items()}
            yield Trained(job.client_id, delta, {}, None, lr)


@dataclass(frozen=True)
class LocalTrials:
    """The clients of a run, for trials.

    Args:
        spec: what is tuned.
        settings: section `[privacy]`.
        noise_multiplier: z, as it is claimed to be.
        num_rounds: of a trial.
    """

    spec: ParamSpec
    settings: Privacy
    noise_multiplier: float
    num_rounds: int

    def trials(self, num: int, streams: Streams) -> Trials:
        """The scores of `num` trials of either kind."""
        along = random_direction(self.spec, self.spec.shared)
        clipping_norm = self.settings.clipping_norm
        delta = {name: (_EXCESS * clipping_norm * tensor).float() for name, tensor in along.items()}
        # A site reads of its engine what `Extreme` has, if it does not divide its clients into packs.
        engine = cast(LaneEngine, Extreme(self.spec, delta, num, Lanes(1), client_settings()))
        privacy = SitePrivacy(self.settings, self.noise_multiplier, streams.of("local"))
        partition = {trial: torch.tensor([0]) for trial in range(2 * num)}
        start = {name: torch.zeros(tensor.shape) for name, tensor in self.spec.tensors.items()}
        kept = {name: start[name] for name in self.spec.kept}
        site = Site(engine, partition, Channel(), seed=0, num_rounds=1, start=kept, privacy=privacy)

        def evidence_of(sent: Params) -> float:
            seen = part(sent, along) / clipping_norm
            # From -1 to 1, with noise z: as from 0 to 1 with noise z / 2.
            return evidence((seen + 1) / 2, self.noise_multiplier / 2)

        results = scores(site, self.num_rounds, start, evidence_of, rate=1.0)
        return Trials(results[:num], results[num:])
