"""The privacy of a run, worked out before round 1: whom its rounds touch, and how much noise they need."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fedelta.assembly.model import work_of
from fedelta.config import Config
from fedelta.errors import ConfigError
from fedelta.federation.base import in_turns
from fedelta.plugins import provider_of
from fedelta.privacy.accounting import MOST_NOISE, calibrated, scaled
from fedelta.privacy.correlated import Correlated, fitted
from fedelta.privacy.fedpeft import deviation
from fedelta.privacy.guarantee import Guarantee, Work
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import PrivacyState, Spent
from fedelta.seeds import stream
from fedelta.strategies.base import Strategy, drawn

logger = logging.getLogger("fedelta")

# From here on the rounding errors of many rounds may be as large as delta.
_SMALL_DELTA = 1e-9


def guarantee_of(config: Config, strategy: Strategy, sizes: Mapping[int, int]) -> Guarantee | None:
    """What the run guarantees, with its noise; None without privacy.

    With `privacy.target_epsilon` the noise is the least with which all planned rounds together stay within it.

    Args:
        config: of the run.
        strategy: section `[strategy]`, as adapted to a byte budget.
        sizes: client number to its number of examples, for all clients that can be in a cohort.

    Raises:
        ConfigError: no noise is strong enough, or delta is too small for the accountant.
    """
    settings = config.privacy
    if not settings.is_on:
        return None
    guarantee = _with_noise_one(config, strategy, sizes)
    *_, planned = planned_states(guarantee, config, strategy, sorted(sizes))
    noise = _noise(settings, planned.spent)
    spent = {who: scaled(releases, noise) for who, releases in planned.spent.items()}
    guarantee = replace(guarantee, noise_multiplier=noise, planned=spent)
    _check_delta(guarantee, sizes)
    return guarantee


def _noise(settings: Privacy, planned: Spent) -> float:
    """The noise multiplier of a run that would release `planned` with a multiplier of 1."""
    if settings.is_reproduction:
        return deviation(settings) / settings.clipping_norm
    if settings.noise_multiplier is not None:
        return settings.noise_multiplier
    target, delta = settings.target_epsilon or math.inf, settings.target_delta
    noise = calibrated(planned.values(), delta, target, settings.accountant)
    if noise < math.inf:
        return noise
    problem = (
        f"`privacy.target_epsilon` is {target:g} at `privacy.target_delta` = {delta:g}, which no noise multiplier "
        f"below {MOST_NOISE:g} reaches by `privacy.accountant` = {settings.accountant!r}"
    )
    raise ConfigError([problem], hint="allow a larger epsilon or delta, or run fewer rounds.")


def _check_delta(guarantee: Guarantee, sizes: Mapping[int, int]) -> None:
    """Raises if delta is too small for the accountant; warns if it is so large that it guarantees little."""
    settings = guarantee.settings
    if settings.target_delta < _SMALL_DELTA and guarantee.epsilon(guarantee.planned) == math.inf:
        problem = (
            f"`privacy.target_delta` is {settings.target_delta:g}, for which `privacy.accountant` = "
            f"{settings.accountant!r} has no finite epsilon"
        )
        raise ConfigError([problem], hint='set `privacy.accountant` to "rdp", or allow a larger delta.')
    if settings.is_reproduction:
        return
    population = min(sizes.values()) if settings.unit == "example" else len(sizes)
    if settings.target_delta >= 1 / population:
        of_what = "examples of the smallest client" if settings.unit == "example" else "clients"
        logger.warning(
            "`privacy.target_delta` is %g, not below 1 / %d, the number of %s: a mechanism that publishes all that one "
            "of them has would satisfy it; set it to %g or less.",
            settings.target_delta,
            population,
            of_what,
            float(f"{0.1 / population:.0e}"),
        )


def warn_of_measures(config: Config, *, has_own_norms: bool = False, at_sites: bool = False) -> None:
    """Warns of measures that no noise covers.

    Args:
        config: of the run.
        has_own_norms: whether clients keep tensors that never travel, with which they are measured.
        at_sites: whether sites measure on data of theirs.
    """
    if not config.privacy.is_on:
        return
    uncovered = {
        "`data.evaluate_on` is 'validation', so that rows of clients are measured on": config.data.evaluate_on
        == "validation",
        "models are measured with tensors that clients keep, such as their norms": has_own_norms,
        "`[deployment]` lets sites measure on data of theirs": at_sites,
    }
    for what, applies in uncovered.items():
        if applies:
            logger.warning("%s: no noise covers these measures, whoever gets them.", what)


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
            work[number] = Work(client.sampling_rate(size), client.num_steps(size))
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
    """The turns of clients and their noise; None where the turns are not counted on."""
    settings = config.privacy
    if settings.unit != "client" or strategy.sampling != "cyclic" or strategy.cohort_rounds > 1:
        return None
    bands = settings.bands if settings.mechanism == "banded" else 1
    return fitted(bands, strategy.num_rounds, num_clients, strategy.clients_per_round)


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
