"""The privacy of a run, worked out before round 1: whom its rounds touch, and how much noise they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fedelta.assembly.model import work_of
from fedelta.config import Config
from fedelta.errors import ConfigError
from fedelta.federation.base import in_turns
from fedelta.plugins import provider_of
from fedelta.privacy.accounting import calibrated
from fedelta.privacy.correlated import Correlated, fitted
from fedelta.privacy.fedpeft import deviation
from fedelta.privacy.guarantee import Guarantee, Work
from fedelta.privacy.state import PrivacyState
from fedelta.seeds import stream
from fedelta.strategies.base import Strategy, drawn

_UNREACHABLE = "`privacy.target_epsilon` is {:g}, which no noise reaches with `privacy.target_delta` = {:g}"


def guarantee_of(config: Config, strategy: Strategy, sizes: Mapping[int, int]) -> Guarantee | None:
    """What the run guarantees, with its noise; None without privacy.

    With `privacy.target_epsilon` the noise is the least with which all planned rounds together stay within it.

    Args:
        config: of the run.
        strategy: section `[strategy]`, as adapted to a byte budget.
        sizes: client number to its number of examples, for all clients that can be in a cohort.

    Raises:
        ConfigError: no noise is strong enough.
    """
    settings = config.privacy
    if not settings.is_on:
        return None
    guarantee = _with_noise_one(config, strategy, sizes)
    if settings.is_reproduction:
        return replace(guarantee, noise_multiplier=deviation(settings) / settings.clipping_norm)
    if settings.noise_multiplier is not None:
        return replace(guarantee, noise_multiplier=settings.noise_multiplier)
    *_, planned = planned_states(guarantee, config, strategy, sorted(sizes))
    target = settings.target_epsilon or math.inf
    noise = calibrated(planned.spent.values(), settings.target_delta, target, settings.accountant)
    if noise == math.inf:
        raise ConfigError(
            [_UNREACHABLE.format(target, settings.target_delta)],
            hint="allow a larger epsilon or delta, or run fewer rounds.",
        )
    return replace(guarantee, noise_multiplier=noise)


def planned_states(
    guarantee: Guarantee, config: Config, strategy: Strategy, client_ids: Sequence[int]
) -> Iterator[PrivacyState]:
    """What has been released after each planned round, if no client is lost.

    Args:
        guarantee: says what a round releases.
        config: of the run.
        strategy: as for `guarantee_of`.
        client_ids: all clients that can be in a cohort, ascending.
    """
    state = PrivacyState()
    for round, cohort in enumerate(_cohorts(config, strategy, client_ids), 1):
        state = guarantee.after(state, round, cohort)
        yield state


def _with_noise_one(config: Config, strategy: Strategy, sizes: Mapping[int, int]) -> Guarantee:
    """The guarantee, with a noise multiplier of 1."""
    settings, num_clients = config.privacy, len(sizes)
    client, work = work_of(config), {}
    if settings.unit == "example":
        for number, size in sizes.items():
            work[number] = Work(min(1.0, client.batch_size / size), client.num_steps(size))
    is_amplified = settings.unit == "client" and strategy.sampling == "poisson"
    return Guarantee(
        settings,
        noise_multiplier=1.0,
        cohort_rate=strategy.clients_per_round / num_clients if is_amplified else 1.0,
        cohort_rounds=strategy.cohort_rounds,
        work=work,
        correlated=_correlated(config, strategy, num_clients),
    )


def _correlated(config: Config, strategy: Strategy, num_clients: int) -> Correlated | None:
    if config.privacy.mechanism != "banded":
        return None
    return fitted(config.privacy.bands, strategy.num_rounds, num_clients, strategy.clients_per_round)


def _cohorts(config: Config, strategy: Strategy, client_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """The cohort of each planned round.

    Cohorts follow from the seed, so these are those of the run. (Secret cohorts do not, but under the unit that has
    them the cohort does not matter.) What the strategy of a plug-in plans is not known: every client in every round.
    """
    is_known = provider_of(strategy) is None
    in_order = in_turns(config.seed, client_ids) if strategy.sampling == "cyclic" else client_ids
    for round in range(1, strategy.num_rounds + 1):
        number = -(-round // strategy.cohort_rounds)
        first_round = (number - 1) * strategy.cohort_rounds + 1
        generator = stream(config.seed, "cohort", first_round)
        yield (
            drawn(strategy.clients_per_round, number, in_order, generator, strategy.sampling)
            if is_known
            else client_ids
        )
