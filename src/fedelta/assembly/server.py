"""Builds the server's side: strategy, initial params, and the list of clients. The server sees no data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from fedelta.aggregation.low_rank import paths_of
from fedelta.assembly.model import work_of
from fedelta.assembly.sizes import Sizes, ranks_of_method
from fedelta.config import Config
from fedelta.data.clients import Clients
from fedelta.errors import ConfigError
from fedelta.federation.base import Federation, Runtime
from fedelta.federation.contract import started
from fedelta.federation.pairs import pairs_of
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec
from fedelta.plugins import provider_of
from fedelta.privacy.central import Central
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.randomness import Randomness
from fedelta.strategies.base import ALL_ROWS, Strategy
from fedelta.tasks.base import Evaluation
from fedelta.tuning.combined import Combined
from fedelta.tuning.lora import Lora

logger = logging.getLogger("fedelta")

# The first upload of a client has no residual, and the last one's is lost: with fewer, hardly any is ever sent.
_TIMES_WITH_FEEDBACK = 2


def build_server(
    config: Config,
    spec: ParamSpec,
    params: Params,
    clients: Clients,
    *,
    runtime: Runtime,
    evaluate: Callable[[Params], Evaluation | None] | None = None,
    tiers: Tiers | None = None,
    num_held_out: int = 0,
) -> Federation:
    """Returns the arguments of `federate`; needs neither data nor the weights of the backbone.

    Args:
        config: of the run.
        spec: the tensors that are tuned.
        params: before round 1.
        clients: those that may take part in a round.
        runtime: runs the clients.
        evaluate: measures params; None if the server cannot.
        tiers: depth of each client (`tiers_of`).
        num_held_out: number of further clients, which take part in no round.

    Raises:
        ConfigError: the strategy needs more clients or a larger byte budget, or does not fit the groups.
    """
    check_cohort(config, len(clients.numbers), num_held_out)
    _check_statistics(config, spec)
    budget = config.byte_budget_mib
    strategy = strategy_of(config, spec, len(clients.numbers))
    started(strategy, params, spec)  # raises if the strategy does not fit the groups
    pairs = pairs_of(config.aggregation, config.tuning, spec, strategy.cohort_rounds)
    federation = Federation(
        strategy=strategy,
        runtime=runtime,
        channel=config.codec,
        spec=spec,
        clients=clients,
        seed=config.seed,
        evaluate=evaluate,
        effective_steps=work_of(config).effective_steps,
        evaluate_every=config.evaluate_every,
        byte_budget=None if budget is None else int(budget * 2**20),
        tiers=tiers,
        pairs=None if pairs is None else replace(pairs, ranks=ranks_of(config, spec, clients, tiers)),
        has_plugin=any(provider_of(method) is not None for method in (strategy, strategy.mean)),
    )
    _warn(federation, config.tuning.name)
    _check_mean(federation)
    return federation


def ranks_of(config: Config, spec: ParamSpec, clients: Clients, tiers: Tiers | None) -> dict[int, int]:
    """The rank of each client's pairs; empty if it is that of the server for all."""
    tuning = config.tuning
    for method in tuning.methods if isinstance(tuning, Combined) else (tuning,):
        if isinstance(method, Lora) and method.rank_by_client is not None:
            depths = None if tiers is None else tiers.depths
            most = max(spec.tensors[f"{path}.lora_A"].shape[0] for path in paths_of(spec))
            return method.rank_by_client.of(clients, most, config.seed, depths)
    return {}


def _warn(federation: Federation, tuning_name: str) -> None:
    """Warns of a strategy that has nothing to gain, and of error feedback that does nothing."""
    _warn_of_rare_clients(federation)
    if federation.strategy.layerwise and len(federation.spec.sizes) == 1:
        logger.warning(
            "strategy %r has nothing to gain: tuning method %r has only one group that could travel less often, %r.",
            federation.strategy.name,
            tuning_name,
            next(iter(federation.spec.sizes)),
        )


def _warn_of_rare_clients(federation: Federation) -> None:
    """Warns where a residual is, in the mean, left at a client that does not come back."""
    strategy, num_clients = federation.strategy, len(federation.clients.numbers)
    times = min(1.0, strategy.clients_per_round / num_clients) * strategy.num_rounds
    if federation.channel.feeds_back and times < _TIMES_WITH_FEEDBACK:
        logger.warning(
            "a client takes part in %.2g of %d rounds in the mean: most of what codec %r leaves out of an upload is "
            "never sent, although `codec.error_feedback` is on.",
            times,
            strategy.num_rounds,
            federation.channel.up.name,
        )


def _check_mean(federation: Federation) -> None:
    """Raises if some tensors have fewer clients than the mean needs; warns if it needs more than `min_replies`."""
    mean, least, tiers = federation.aggregation, federation.aggregation.min_values, federation.tiers
    num_holders = (
        {}
        if tiers is None
        else {name: sum(tiers.owns(client_id, name) for client_id in tiers.depths) for name in federation.spec}
    )
    if few := [name for name, number in num_holders.items() if 0 < number < least]:
        problem = (
            f"`strategy.mean.name` is {mean.name!r}, which needs {least} values of a tensor, but {len(few)} tensors "
            f"are held by fewer clients, first `{few[0]}` by {num_holders[few[0]]}"
        )
        raise ConfigError([problem], hint="let more clients run as deep (`[exits]`), or choose another mean.")
    if least > federation.strategy.min_replies:
        logger.warning(
            "the mean %r needs %d replies: a round with fewer does not count, although `strategy.min_replies` is %d%s.",
            mean.name,
            least,
            federation.strategy.min_replies,
            ", and a tensor that fewer clients of a round hold stays as it is" if tiers else "",
        )


def _check_statistics(config: Config, spec: ParamSpec) -> None:
    """Raises if running statistics would travel in a private run: noise in them would make them useless."""
    if config.privacy.is_on and (statistics := spec.statistics):
        problem = (
            f"`privacy.unit` is {config.privacy.unit!r}, but {len(statistics)} running statistics of batch norms "
            f"travel, first `{statistics[0]}`: each tells about the data of its client, and no noise is made for them"
        )
        hint = 'set `model.batch_norm` to "local" or "group", or choose a tuning method that trains no norm.'
        raise ConfigError([problem], hint=hint)


def check_cohort(config: Config, num_clients: int, num_held_out: int) -> None:
    """Raises if a cohort is larger than the federation."""
    cohort = config.strategy.clients_per_round
    if cohort > num_clients:
        beside = f" beside the {num_held_out} that are held out" if num_held_out else ""
        raise ConfigError(
            [f"`strategy.clients_per_round` is {cohort}, but the data have {num_clients} clients{beside}"],
            hint="lower it, or divide the data among more clients (`[partition]`).",
        )


def strategy_of(config: Config, spec: ParamSpec, num_clients: int) -> Strategy:
    """The strategy of the run, adapted to the byte budget if there is one."""
    if config.byte_budget_mib is None:
        return config.strategy

    sizes, rank = Sizes(config, config.tuning, spec), max(ranks_of_method(config.tuning), default=ALL_ROWS)

    def exchange_bytes(names: tuple[str, ...]) -> int:
        """The most that an exchange of these tensors takes."""
        return sizes.download_bytes(names, rank, at_most=True) + len(sizes.upload(rank, names)[0])

    return config.strategy.within(config.byte_budget_mib * 2**20, spec, num_clients, exchange_bytes)


def protecting(federation: Federation, guarantee: Guarantee | None, randomness: Randomness) -> Federation:
    """`federation` with what its server does for a guarantee: it counts, and for clients it adds the noise.

    Args:
        federation: without privacy.
        guarantee: None: no privacy.
        randomness: of the server; draws noise and cohorts for client-level privacy.

    Raises:
        ConfigError: strategy, mean or tensors do not fit client-level privacy.
    """
    if guarantee is None or guarantee.settings.unit != "client":
        return replace(federation, privacy=guarantee)
    central = Central(
        guarantee.settings,
        guarantee.noise_multiplier,
        expected_clients=federation.strategy.clients_per_round,
        num_clients=len(federation.clients.numbers),
        randomness=randomness,
        correlated=guarantee.correlated,
    )
    return replace(federation, privacy=guarantee, central=central)
