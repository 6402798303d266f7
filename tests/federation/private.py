"""Small federations with client-level privacy, whose clients send anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tests.contracts.test_strategies import STRATEGIES
from tests.privacy.silent import Silent

from fedelta.aggregation.means import Uniform
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import encode
from fedelta.data.clients import Clients
from fedelta.federation.base import Federation, Standing
from fedelta.federation.records import Fault, Reply, RoundOutcome
from fedelta.federation.tiers import Tiers
from fedelta.params import ParamSpec, TensorSpec
from fedelta.privacy.accounting import Epsilons
from fedelta.privacy.central import Central
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.randomness import Randomness
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import PrivacyState, Spent
from fedelta.seeds import derive, stream
from fedelta.strategies.base import RoundPlan, Sampling, Strategy
from fedelta.strategies.cohort import Rounds
from fedelta.strategies.fedlama_auto import FedLamaAuto

SPEC = ParamSpec({
    "first.weight": TensorSpec((3, 4), "first"),
    "first.bias": TensorSpec((3,), "first"),
    "own": TensorSpec((2,), "second", shared=False),
    "second.weight": TensorSpec((5,), "second"),
    "third.scale": TensorSpec((), "third"),
})  # fmt: skip
NUM_CLIENTS = 8
# Half of the clients hold the first two groups only.
TIERS = Tiers(
    {client_id: 1 + client_id % 2 for client_id in range(NUM_CLIENTS)},
    {1: frozenset({"first.weight", "first.bias", "own", "second.weight"}), 2: frozenset(SPEC)},
)
_LARGEST = torch.finfo(torch.float32).max
PRIVATE = tuple(name for name, strategy in STRATEGIES.items() if strategy.private)


@dataclass
class Wild:
    """A runtime whose clients send random tensors from tiny to huge, and half a million examples.

    Args:
        spec: of all tensors that can travel.
        channel: the codecs.
        lost: clients that do not reply.
        scales: sizes of the deltas; client i has the one at i modulo their number.
    """

    spec: ParamSpec
    channel: Channel = Channel()  # noqa: RUF009 a frozen value
    lost: frozenset[int] = frozenset()
    scales: tuple[float, ...] = (1e-30, 0.02, 1.0, 30.0, 1e30)
    plans: list[RoundPlan] = field(default_factory=list)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        self.plans.append(plan)
        for client_id in plan.cohort:
            if client_id in self.lost:
                yield Reply(client_id, 0, b"", fault=Fault("lost", "dropped out"))
                continue
            # What is sent depends on what was received, as in training.
            draws = stream(derive(0, repr(payloads[client_id])), client_id, plan.round)
            scale = self.scales[client_id % len(self.scales)]
            delta = {
                name: (scale * torch.randn(self.spec.tensors[name].shape, generator=draws)).clamp(-_LARGEST, _LARGEST)
                for name in plan.upload[client_id]
            }
            payload, _ = encode(delta, self.spec, self.channel.up)
            yield Reply(client_id, 500_000 + client_id, payload)

    def accept(self, client_ids: Iterable[int]) -> None: ...

    def snapshot(self, folder: Path, round: int) -> str:
        raise NotImplementedError

    def restore(self, folder: Path, mark: str) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Uncounted:
    """A guarantee that counts nothing, for tests that are not about epsilon: its rounds take no time."""

    limit: None = None

    def after(self, state: PrivacyState, round: int, client_ids: object) -> PrivacyState:
        return state

    def epsilons(self, spent: Spent) -> Epsilons:
        return Epsilons(0.0, 0.0)


def strategy_of(
    name: str, sampling: Sampling = "poisson", *, num_rounds: int = 5, clients_per_round: int = 4
) -> Strategy:
    """A built-in strategy with uniform weights and without a budget of its own."""
    strategy = STRATEGIES[name]
    assert isinstance(strategy, Rounds)
    changed: dict[str, object] = {
        "sampling": sampling, "num_rounds": num_rounds, "clients_per_round": clients_per_round
    }  # fmt: skip
    if "mean" in type(strategy).model_fields:
        changed["mean"] = Uniform()
    if isinstance(strategy, FedLamaAuto):
        changed["share"] = 0.8
    return strategy.model_copy(update=changed)


def private(
    strategy: Strategy,
    *,
    randomness: Randomness | None = None,
    lost: Collection[int] = (),
    tiers: Tiers | None = None,
    channel: Channel = Channel(),  # noqa: B008 a frozen value
    z: float = 1.0,
    is_counted: bool = False,
    **privacy: object,
) -> Federation:
    """Eight clients, and a server that has client-level privacy; without noise unless there is `randomness`."""
    settings = Privacy(unit="client", noise_multiplier=z, target_delta=1e-3, **privacy)
    wire = SPEC if strategy.steering is None else strategy.steering.extend(SPEC)
    rate = strategy.clients_per_round / NUM_CLIENTS if strategy.sampling == "poisson" else 1.0
    return Federation(
        strategy=strategy,
        runtime=Wild(wire, channel, frozenset(lost)),
        channel=channel,
        spec=SPEC,
        clients=Clients.of(range(NUM_CLIENTS)),
        seed=0,
        evaluate=None,
        effective_steps=float,
        tiers=tiers,
        privacy=Guarantee(settings, z, rate, strategy.cohort_rounds) if is_counted else Uncounted(),  # type: ignore[arg-type]
        central=Central(settings, z, strategy.clients_per_round, NUM_CLIENTS, randomness or Silent()),
    )


def without(federation: Federation, client_id: int) -> Federation:
    """The same federation, in which this client never replies."""
    runtime = federation.runtime
    assert isinstance(runtime, Wild)
    return replace(federation, runtime=replace(runtime, lost=runtime.lost | {client_id}, plans=[]))


def begun(federation: Federation) -> Standing:
    """Before round 1."""
    params = {name: torch.randn(tensor.shape, generator=stream(1, name)) for name, tensor in SPEC.tensors.items()}
    return Standing(params, federation.strategy.init(params, SPEC))


def next_of(outcome: RoundOutcome) -> Standing:
    """What the round after it starts from."""
    return Standing(outcome.params, outcome.state, outcome.round, 0, outcome.claimed, outcome.privacy)
