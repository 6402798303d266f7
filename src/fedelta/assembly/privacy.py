"""The privacy of a run, worked out before round 1: whom its rounds touch, and how much noise they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fedelta.assembly.model import work_of
from fedelta.config import Config
from fedelta.errors import ConfigError
from fedelta.plugins import provider_of
from fedelta.privacy.accounting import calibrated
from fedelta.privacy.fedpeft import fedpeft_multiplier
from fedelta.privacy.guarantee import Guarantee, Work
from fedelta.privacy.state import PrivacyState
from fedelta.seeds import stream
from fedelta.strategies.base import Strategy, drawn

_NO_STRENGTH = "`privacy.unit` is {!r}, but neither `privacy.target_epsilon` nor `privacy.noise_multiplier` is given"
_STRENGTH_HINT = "give the epsilon that the run may reach, `privacy.target_epsilon`."
_UNREACHABLE = "`privacy.target_epsilon` is {:g}, which no noise reaches with `privacy.target_delta` = {:g}"
_UNREACHABLE_HINT = "allow a larger epsilon or delta, or run fewer rounds."


def guarantee_of(config: Config, strategy: Strategy, sizes: Mapping[int, int]) -> Guarantee | None:
    """What the run guarantees, with its noise; None without privacy.

    With `privacy.target_epsilon` the noise is the least with which all planned rounds together stay within it.

    Args:
        config: of the run.
        strategy: section `[strategy]`, as adapted to a byte budget.
        sizes: client number to its number of examples, for all clients that can be in a cohort.

    Raises:
        ConfigError: the sizes contradict the guarantee, or no noise is strong enough.
    """
    settings = config.privacy
    if not settings.is_on:
        return None
    is_amplified = settings.unit == "client" and strategy.sampling == "poisson"
    client = work_of(config)
    work = {number: Work(min(1.0, client.batch_size / size), client.num_steps(size)) for number, size in sizes.items()}
    unscaled = Guarantee(
        settings,
        noise_multiplier=1.0,
        cohort_rate=strategy.clients_per_round / len(sizes) if is_amplified else 1.0,
        cohort_rounds=strategy.cohort_rounds,
        work=work if settings.unit == "example" else {},
    )
    if settings.noise_multiplier is not None:
        return replace(unscaled, noise_multiplier=settings.noise_multiplier)
    if settings.target_epsilon is None:
        raise ConfigError([_NO_STRENGTH.format(settings.unit)], hint=_STRENGTH_HINT)
    if settings.is_reproduction:
        return replace(unscaled, noise_multiplier=fedpeft_multiplier(settings))
    planned = PrivacyState()
    for round, cohort in enumerate(cohorts_of(config, strategy, sorted(sizes)), 1):
        planned = unscaled.after(planned, round, cohort)
    noise = calibrated(planned.spent.values(), settings.target_delta, settings.target_epsilon, settings.accountant)
    if noise == math.inf:
        raise ConfigError([_UNREACHABLE.format(settings.target_epsilon, settings.target_delta)], hint=_UNREACHABLE_HINT)
    return replace(unscaled, noise_multiplier=noise)


def cohorts_of(config: Config, strategy: Strategy, client_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """For each planned round, the clients whose uploads may be seen in it.

    Cohorts follow from the seed, so they are those of the run, except that some of their clients may be lost. What the
    strategy of a plug-in plans is unknown: there it is every client in every round.
    """
    for round in range(1, strategy.num_rounds + 1):
        if provider_of(strategy) is not None:
            yield client_ids
            continue
        first_round = round - (round - 1) % strategy.cohort_rounds
        generator = stream(config.seed, "cohort", first_round)
        yield drawn(strategy.clients_per_round, client_ids, generator, strategy.sampling)
