"""Section `[stability]`: simulated clients that cannot be reached, vanish, or are too slow.

Which clients are lost in a round, and how fast each client is, are drawn from streams of the seed, so every run has the
same. Time is simulated and not spent. A lost client is not trained, so instability makes a simulation no slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from pydantic import Field, model_validator

from fedelta.engine.work import ClientSettings
from fedelta.federation.base import Runtime
from fedelta.federation.records import Fault, Reply
from fedelta.seeds import stream
from fedelta.settings import Settings
from fedelta.strategies.base import RoundPlan


class Stability(Settings):
    """How unreliable the clients of a simulation are; by default all are reliable.

    Args:
        dropout_fraction: probability that a client of the cohort cannot be reached in a round; nothing is sent to it.
        vanish_fraction: probability that a client that was reached does not reply; its download was sent.
        examples_per_second: training speed of the median client; None: training takes no simulated time. Dialogues
            count by their tokens: one as long as the mean of all clients' is one example.
        speed_spread: standard deviation of the logarithm of the clients' speeds; a client's speed is constant.
        megabits_per_second: speed of every client's link. Uploads are assumed to be as long as downloads. None:
            transfers take no simulated time.
        deadline_seconds: replies that take longer are lost, so no round lasts longer; None for no deadline.
    """

    dropout_fraction: float = Field(default=0.0, ge=0, lt=1)
    vanish_fraction: float = Field(default=0.0, ge=0, lt=1)
    examples_per_second: float | None = Field(default=None, gt=0)
    speed_spread: float = Field(default=0.5, ge=0)  # our choice: one of six clients is slower than 0.6 of the median
    megabits_per_second: float | None = Field(default=None, gt=0)
    deadline_seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _a_deadline_needs_time(self) -> Stability:
        if self.deadline_seconds is not None and not self.keeps_time:
            raise ValueError("`deadline_seconds` needs `examples_per_second` or `megabits_per_second`, or both")
        return self

    @property
    def keeps_time(self) -> bool:
        """Whether time is simulated."""
        return self.examples_per_second is not None or self.megabits_per_second is not None


@dataclass(frozen=True)
class Unstable:
    """A runtime that wraps another one and loses some of its clients.

    Args:
        runtime: runs the clients that are not lost.
        stability: how often clients are lost, and how long they take.
        client: settings of local training, for the work per round.
        num_examples: client id to the number of its training examples.
        seed: of the run.
        workloads: client id to the work of one of its examples, in units of an average example in the whole model; 1
            for a client that is not listed.
    """

    runtime: Runtime
    stability: Stability
    client: ClientSettings
    num_examples: Mapping[int, int]
    seed: int
    workloads: Mapping[int, float] = field(default_factory=dict)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        """See `Runtime.run`; a lost client gives a reply with a fault."""
        reached: dict[int, bytes] = {}
        for client_id, payload in payloads.items():
            lost = self._lost(plan.round, client_id, len(payload))
            if lost is None:
                reached[client_id] = payload
            else:
                yield lost
        for reply in self.runtime.run(plan, reached):
            if self.stability.keeps_time and reply.client_id in reached:
                seconds = self.seconds(reply.client_id, len(reached[reply.client_id]))
                yield replace(reply, simulated_seconds=seconds)
            else:
                yield reply

    def accept(self, client_ids: Iterable[int]) -> None:
        """See `Runtime.accept`."""
        self.runtime.accept(client_ids)

    def snapshot(self, folder: Path, round: int) -> str:
        """See `Runtime.snapshot`."""
        return self.runtime.snapshot(folder, round)

    def restore(self, folder: Path, mark: str) -> None:
        """See `Runtime.restore`."""
        self.runtime.restore(folder, mark)

    def seconds(self, client_id: int, payload_bytes: int) -> float:
        """The simulated seconds of a client's round: download, training and upload."""
        settings, total = self.stability, 0.0
        if settings.examples_per_second is not None:
            deviation = float(torch.randn((), generator=stream(self.seed, "speed", client_id)))
            speed = settings.examples_per_second * math.exp(settings.speed_spread * deviation)
            work = self.client.num_processed(self.num_examples[client_id]) * self.workloads.get(client_id, 1.0)
            total += work / speed
        if settings.megabits_per_second is not None:
            total += 2 * payload_bytes * 8 / (settings.megabits_per_second * 1e6)
        return total

    def _lost(self, round: int, client_id: int, payload_bytes: int) -> Reply | None:
        """The reply of a client that is lost in this round; None for one that is not."""
        settings, deadline = self.stability, self.stability.deadline_seconds
        drop, vanish = torch.rand(2, generator=stream(self.seed, "stability", round, client_id)).tolist()
        if drop < settings.dropout_fraction:
            return Reply(client_id, 0, b"", fault=Fault("could not be reached", "dropped out", reached=False))
        if vanish < settings.vanish_fraction:
            # The server cannot know that the client is gone and waits until the deadline, if there is one.
            fault = Fault("was reached but did not reply", "vanished")
            return Reply(client_id, 0, b"", fault=fault, simulated_seconds=deadline)
        if deadline is None or (seconds := self.seconds(client_id, payload_bytes)) <= deadline:
            return None
        fault = Fault(f"would have taken {seconds:.1f} s, the deadline is {deadline:g} s", "too late")
        return Reply(client_id, 0, b"", fault=fault, simulated_seconds=deadline)
