"""Federations for the strategies in windows: with clients that move as a test says, and with real ones.

Three layers: `a` with 1 scalar, `b` with 2, `c` with 4. Client i has 1 + 2 i examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tests.builders import evaluated, spec_of, start_of, tiny_data, tiny_engine
from torch import Tensor, tensor

from fedelta.codecs.channel import Channel
from fedelta.data.augmentation import Augmentation
from fedelta.data.clients import Clients
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings, Job, Trained
from fedelta.federation.base import Federation, Runtime
from fedelta.federation.client import Site
from fedelta.federation.records import Fault, Reply
from fedelta.params import Params, ParamSpec
from fedelta.strategies.base import LocalRule, RoundPlan, Strategy
from fedelta.tasks.base import Evaluation
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lora import Lora

SPEC = spec_of(a=(), b=(2,), c=(4,))
START = {"a": tensor(0.0), "b": torch.zeros(2), "c": torch.zeros(4)}
Moves = Callable[[int, int], Params]  # number of the round and client id to how far its tensors move


@dataclass
class Walking:
    """An engine whose clients move as they are told; it keeps every job, in order."""

    moves: Moves
    client: ClientSettings
    spec: ParamSpec = SPEC
    has_exits: bool = False
    inputs: object = None
    round: int = 0
    jobs: list[tuple[int, Job]] = field(default_factory=list)

    def train(self, jobs: Sequence[Job], lr: float, round: int) -> Iterator[Trained]:
        for job in jobs:
            self.jobs.append((self.round, job))
            move = self.moves(self.round, job.client_id)
            values = {name: value + move[name] for name, value in (job.anchor | job.local).items()}
            delta = {name: value - job.anchor[name] for name, value in values.items()}
            yield Trained(job.client_id, delta, {name: values[name] for name in job.kept}, 1.0, lr)


@dataclass
class Recording:
    """Loses the clients that it is told to; keeps plans and downloads.

    Args:
        site: of all clients.
        lost: number of the round and client id to whether the client is lost before it has trained.
        unheard: the same for replies that are lost on their way, when the client has trained.
    """

    site: Site
    lost: Callable[[int, int], bool] = lambda round, client_id: False
    unheard: Callable[[int, int], bool] = lambda round, client_id: False
    plans: list[RoundPlan] = field(default_factory=list)
    downloads: list[Mapping[int, bytes]] = field(default_factory=list)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> list[Reply]:
        self.plans.append(plan)
        self.downloads.append(payloads)
        if isinstance(self.site.engine, Walking):
            self.site.engine.round = plan.round
        away = [client_id for client_id in payloads if self.lost(plan.round, client_id)]
        reached = {client_id: payload for client_id, payload in payloads.items() if client_id not in away}
        replies = list(self.site.run(plan, reached))
        away += [reply.client_id for reply in replies if self.unheard(plan.round, reply.client_id)]
        gone = [Reply(client_id, 0, b"", fault=Fault("lost", "vanished")) for client_id in away]
        return gone + [reply for reply in replies if reply.client_id not in away]

    def accept(self, client_ids: Iterable[int]) -> None:
        self.site.accept(client_ids)


def running(
    strategy: Strategy, runtime: Runtime, site: Site, evaluate: Callable[[Params], Evaluation] | None = None
) -> Federation:
    return Federation(
        strategy=strategy, runtime=runtime, channel=site.channel, spec=site.engine.spec,
        clients=Clients.of(sorted(site.partition)), seed=site.seed,
        evaluate=evaluate or (lambda params: evaluated()),
        effective_steps=site.engine.client.effective_steps,
    )  # fmt: skip


def walking(
    strategy: Strategy,
    moves: Moves,
    num_clients: int = 2,
    lost: Callable[[int, int], bool] = lambda round, client_id: False,
) -> tuple[Federation, Recording, Walking]:
    """A federation of clients that move as told."""
    engine = Walking(moves, ClientSettings(local_steps=strategy.local_steps))
    sizes = [1 + 2 * client_id for client_id in range(num_clients)]
    partition = dict(enumerate(torch.arange(sum(sizes)).split(sizes)))
    site = Site(engine, partition, Channel(), seed=0, num_rounds=strategy.num_rounds)
    runtime = Recording(site, lost)
    return running(strategy, runtime, site), runtime, engine


def training(
    strategy: Strategy,
    *,
    method: TuningMethod | None = None,
    family: str = "vit",
    codec: str = "float32",
    lanes: int = 2,
    sizes: Sequence[int] = (8, 5, 11),
    rule: LocalRule | None = None,
    augmentation: Augmentation | None = None,
    lost: Callable[[int, int], bool] = lambda round, client_id: False,
    **client: object,
) -> tuple[Federation, Params, Recording]:
    """A federation of clients that really train, its start, and its runtime; LoRA with five groups by default."""
    settings = {"batch_size": 4, "lr": 0.05, "optimizer": Sgd(momentum=0.0), "local_steps": strategy.local_steps}
    engine, _ = tiny_engine(
        method or Lora(r=2), tiny_data(family, num_rows=sum(sizes)), family=family, lanes=lanes, rule=rule,
        augmentation=augmentation, client=ClientSettings(**(settings | client)),
    )  # fmt: skip
    partition = dict(enumerate(torch.arange(sum(sizes)).split(list(sizes))))
    site = Site(engine, partition, Channel(name=codec), 0, strategy.num_rounds, _own(engine.spec, start_of(engine)))
    runtime = Recording(site, lost)
    return running(strategy, runtime, site), start_of(engine), runtime


def _own(spec: ParamSpec, params: Mapping[str, Tensor]) -> Params:
    return {name: params[name] for name in spec.kept}
