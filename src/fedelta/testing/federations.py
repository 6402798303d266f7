"""A complete federation on a small model, with real clients and payloads, for a few rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch

from fedelta.aggregation.low_rank import Apart, LowRank, prepared
from fedelta.codecs.channel import Channel
from fedelta.data.clients import Clients
from fedelta.engine.exits import ExitSettings
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.federation.base import Federation, Standing
from fedelta.federation.client import Site
from fedelta.federation.pairs import Pairs
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.params import is_finite, select
from fedelta.seeds import stream
from fedelta.strategies.base import LocalRule, Strategy
from fedelta.strategies.local import Plain
from fedelta.tasks.base import Evaluation
from fedelta.testing.contract import BreachError, require
from fedelta.testing.small import small_data, small_model
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lanes import Lanes

_ROWS = (5, 6, 4, 5, 4)  # of each client


def played(
    strategy: Strategy,
    method: TuningMethod,
    family: str,
    *,
    channel: Channel = Channel(),  # noqa: B008  a frozen value
    rule: LocalRule = Plain(),  # noqa: B008  likewise
    aggregation: LowRank = Apart(),  # noqa: B008  likewise
    ranks: Mapping[int, int] = MappingProxyType({}),
) -> tuple[Federation, Standing, list[RoundOutcome]]:
    """A federation of five clients, its initial params, and its rounds.

    Args:
        strategy: of the run.
        method: the tuning method.
        family: a key of `SMALL_MODELS`.
        channel: the codecs of both directions.
        rule: the local rule.
        aggregation: how the low-rank pairs of the method are combined.
        ranks: client id to its rank; empty if all have that of the method.
    """
    backbone, lanes = small_model(family), Lanes(min(3, method.max_lanes or 3))
    spec = prepared(aggregation, backbone.module, method.apply(backbone, lanes, stream(0, "tuning")))
    is_plain = isinstance(aggregation, Apart) and not ranks
    pairs = None if is_plain else Pairs(aggregation, spec, strategy.cohort_rounds)
    client = ClientSettings(batch_size=4, lr=0.05, optimizer=Sgd(), local_steps=strategy.local_steps)
    # All exits, so that every head is trained.
    engine = LaneEngine(
        backbone, spec, lanes, small_data(family), client=client, rule=rule, exits=ExitSettings(train="sum")
    )
    start = engine.bank.read(0)
    partition = dict(enumerate(torch.arange(sum(_ROWS)).split(list(_ROWS))))
    site = Site(
        engine, partition, channel, seed=0, num_rounds=strategy.num_rounds, start=select(start, spec.kept),
        given=select(start, spec.given), steering=strategy.steering, pairs=pairs,
    )  # fmt: skip
    federation = Federation(
        strategy=strategy, runtime=site, channel=channel, spec=spec, clients=Clients.of(sorted(partition)), seed=0,
        evaluate=lambda _: Evaluation({"accuracy": 0.0, "loss_nats": 0.0}),
        effective_steps=client.effective_steps, pairs=None if pairs is None else replace(pairs, ranks=ranks),
    )  # fmt: skip
    standing = Standing(start, strategy.init(start, spec))
    return federation, standing, list(federate(federation, standing))


def real_clients_train_with_it(play: Callable[[], tuple[Federation, Standing, list[RoundOutcome]]]) -> None:
    """Every reply is accepted, and every shared tensor changes and stays finite."""
    federation, standing, outcomes = play()
    for outcome in outcomes:
        reasons = [rejection.reason for rejection in outcome.rejections]
        require(not reasons, f"In round {outcome.round} replies were refused: {reasons[:1]}.")
    end = outcomes[-1].params
    broken = [name for name, tensor in end.items() if not is_finite(tensor)]
    require(not broken, f"After {len(outcomes)} rounds {broken} are not finite.")
    still = [name for name in federation.spec.shared if torch.equal(standing.params[name], end[name])]
    # A softmax does not change if a bias is added to all keys of a query, so the gradient of this bias is zero.
    if stuck := [name for name in still if not ("k_proj" in name and name.endswith("bias"))]:
        raise BreachError(f"After {len(outcomes)} rounds {stuck} are where they were.")
