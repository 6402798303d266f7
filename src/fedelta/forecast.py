"""`fedelta privacy`: the noise of a configuration and its epsilon after every round, without training.

The rounds are those that the run plans. Clients that are lost in a round make the epsilon of a run smaller, never
larger, under the units that count them one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fedelta.assembly.model import work_of
from fedelta.assembly.privacy import guarantee_of, planned_states
from fedelta.assembly.server import check_cohort
from fedelta.assembly.site import read_data
from fedelta.config import Config, load_config
from fedelta.data.clients import Clients
from fedelta.errors import InputError
from fedelta.privacy.accounting import Epsilons, epsilons
from fedelta.privacy.bounds import merged, rdp_epsilon
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.state import Spent
from fedelta.record.files import Record
from fedelta.record.privacy import sentence
from fedelta.record.promise import Promise

_OFF_HINT = "for example `--set privacy.unit=client --set privacy.target_epsilon=5`."
_NUM_ROWS = 20  # of the table, unless all are asked for


@dataclass(frozen=True)
class Forecast:
    """What a run would guarantee.

    Args:
        promise: in the words of a run.
        facts: what the epsilon follows from, name to text.
        num_rounds: how many rounds the run would have.
        planned_rounds: how many it plans; more than `num_rounds` if its budget ends it.
        rounds: number of a round to the epsilon of all rounds up to it; a selection, the last round included. Empty if
            nothing is guaranteed.
        median: epsilon of the client in the middle, by RDP, after the last round; None where all clients have the same.
    """

    promise: Promise
    facts: Mapping[str, str]
    num_rounds: int
    planned_rounds: int
    rounds: Mapping[int, Epsilons]
    median: Epsilons | None = None

    @property
    def sentence(self) -> str:
        """What would be promised to whom, and by which noise."""
        last = self.rounds.get(self.num_rounds)
        if last is None:
            return sentence(self.promise, None, None)
        epsilon = last.pld if self.promise.accountant == "pld" else last.rdp
        return sentence(self.promise, epsilon if math.isfinite(epsilon) else None, last.rdp)

    def as_record(self) -> Record:
        """A dictionary that JSON can hold; infinite numbers are None."""
        rounds = [{"round": number, **_record_of(both)} for number, both in self.rounds.items()]
        return {
            **self.promise.as_record(),
            "sentence": self.sentence,
            "facts": dict(self.facts),
            "num_rounds": self.num_rounds,
            "planned_rounds": self.planned_rounds,
            "rounds": rounds,
            "median_client": None if self.median is None else _record_of(self.median),
        }


def forecast(path: Path, overrides: Sequence[str], *, all_rounds: bool = False) -> Forecast:
    """The forecast for a configuration; the data are read only if it depends on the number of a client's examples.

    Args:
        path: a TOML file.
        overrides: `section.key=value` strings.
        all_rounds: every round instead of some twenty.

    Raises:
        InputError: the configuration or its data cannot be used, or it has no privacy.
    """
    config = load_config(path, overrides)
    if not config.privacy.is_on:
        raise InputError("`privacy.unit` is 'none': nothing is protected.", hint=_OFF_HINT)
    sizes = _sizes(config)
    guarantee = guarantee_of(config, config.strategy, sizes)
    if guarantee is None:
        raise ValueError("privacy is on, but there is no guarantee")
    return _forecast(config, guarantee, sizes, all_rounds=all_rounds)


def _sizes(config: Config) -> dict[int, int]:
    """Client to its number of examples, for clients that can be in a cohort; 1 where that does not matter."""
    num_clients = config.partition.num_clients
    needs_names = bool(config.personalization.held_out)
    if config.privacy.unit == "example" or num_clients is None or needs_names:
        _, data = read_data(config, at_a_glance=True)
        sizes, num_held_out = {client: len(rows) for client, rows in data.partition.items()}, len(data.held_out)
    else:
        held_out = config.personalization.held_out_ids(Clients.of(range(num_clients), {}), config.seed)
        sizes, num_held_out = {client: 1 for client in range(num_clients) if client not in held_out}, len(held_out)
    check_cohort(config, len(sizes), num_held_out)
    return sizes


def opening(guarantee: Guarantee, num_rounds: int, *, is_deployed: bool = False) -> str:
    """What a run says of its privacy before round 1, in a few sentences.

    Args:
        guarantee: of the run.
        num_rounds: that it plans.
        is_deployed: whether its clients are at sites.
    """
    source = guarantee.settings.is_secure(is_deployed=is_deployed)
    planned = Forecast(
        Promise.of(guarantee, "secure" if source else "seeded"),
        facts={},
        num_rounds=num_rounds,
        planned_rounds=num_rounds,
        rounds={} if (both := guarantee.epsilons(guarantee.planned)) is None else {num_rounds: both},
    )
    is_within = guarantee.allows(guarantee.planned)
    limit = "" if is_within else f" (the run will end before, because they would exceed epsilon {guarantee.limit:g})"
    noise = f"with noise multiplier {guarantee.noise_multiplier:g}"
    return f"Privacy after all {num_rounds} rounds{limit}, {noise}. {planned.sentence}"


def _forecast(config: Config, guarantee: Guarantee, sizes: Mapping[int, int], *, all_rounds: bool) -> Forecast:
    planned_rounds = config.strategy.num_rounds

    def states() -> Iterator[Spent]:
        return (state.spent for state in planned_states(guarantee, config, config.strategy, sorted(sizes)))

    last = _last_round(guarantee, planned_rounds, lambda round: next(islice(states(), round - 1, None)))
    shown = _shown(last, _NUM_ROWS if not all_rounds else last)
    rounds, median = {}, None
    for round, spent in enumerate(islice(states(), last), 1):
        if round in shown and (both := guarantee.epsilons(spent)) is not None:
            rounds[round] = both
        if round == last and guarantee.settings.unit != "client" and rounds:
            median = _median(spent, guarantee.settings.target_delta)
    is_secure = guarantee.settings.is_secure(is_deployed=config.runtime.name == "flower")
    promise = Promise.of(guarantee, "secure" if is_secure else "seeded")
    return Forecast(promise, _facts(config, guarantee, sizes), last, planned_rounds, rounds, median)


def _last_round(guarantee: Guarantee, planned_rounds: int, spent_after: Callable[[int], Spent]) -> int:
    """The last round that the budget allows; 0 if it allows none."""
    if guarantee.limit is None or guarantee.allows(guarantee.planned):
        return planned_rounds
    allowed, refused = 0, planned_rounds
    while refused - allowed > 1:
        middle = (allowed + refused) // 2
        allowed, refused = (middle, refused) if guarantee.allows(spent_after(middle)) else (allowed, middle)
    return allowed


def _shown(num_rounds: int, num_rows: int) -> set[int]:
    """Some `num_rows` rounds, evenly spaced, the first and the last among them.

    >>> sorted(_shown(30, 5))
    [1, 6, 12, 18, 24, 30]
    """
    step = max(1, -(-num_rounds // num_rows))
    return {1, *range(step, num_rounds + 1, step), num_rounds} - {0} if num_rounds else set()


def _median(spent: Spent, delta: float) -> Epsilons:
    """The epsilon of the client in the middle; those without a release have none and come first."""
    by_rdp = sorted(spent.values(), key=lambda releases: rdp_epsilon(merged(tuple(sorted(releases.items()))), delta))
    return epsilons(by_rdp[len(by_rdp) // 2], delta)


def _facts(config: Config, guarantee: Guarantee, sizes: Mapping[int, int]) -> dict[str, str]:
    settings, noise = guarantee.settings, guarantee.noise_multiplier
    origin = f", calculated for epsilon {settings.target_epsilon:g}" if settings.target_epsilon else ""
    if guarantee.settings.is_reproduction:
        origin = f" by the formula of {settings.mechanism!r}"
    return {
        "rounds": f"{config.strategy.num_rounds}",
        "clients": _sampling(config, guarantee, len(sizes)),
        **_batches(config, guarantee, sizes),
        "clipping": f"{settings.clipping}, norm {settings.clipping_norm:g}",
        "noise multiplier": f"{noise:g}{origin}",
        "noise, standard deviation": _deviation(config, guarantee),
    }


def _sampling(config: Config, guarantee: Guarantee, num_clients: int) -> str:
    strategy, num = config.strategy, config.strategy.clients_per_round
    stay = f"; a cohort stays for {strategy.cohort_rounds} rounds" if strategy.cohort_rounds > 1 else ""
    if guarantee.settings.unit != "client":
        return f"{num} of {num_clients} a round{stay}; who they are counts as known"
    if strategy.sampling == "poisson":
        return (
            f"{num} of {num_clients} a round on average, by Poisson sampling of rate {guarantee.cohort_rate:.4g}{stay}"
        )
    if strategy.sampling == "cyclic":
        return f"{num} of {num_clients} a round, in turns{stay}"
    return f"{num} of {num_clients} a round, a fixed number: who they are counts as known{stay}"


def _batches(config: Config, guarantee: Guarantee, sizes: Mapping[int, int]) -> dict[str, str]:
    if not guarantee.work:
        return {}
    client, fewest, most = work_of(config), min(sizes.values()), max(sizes.values())
    rates = [min(1.0, client.batch_size / size) for size in (fewest, most)]
    steps = [client.num_steps(size) for size in (fewest, most)]
    return {
        "examples of a client": f"{fewest:,} to {most:,}",
        "batches": f"Poisson sampling of rate {rates[1]:.4g} to {rates[0]:.4g}",
        "steps of a client and round": f"{steps[0]} to {steps[1]}",
    }


def _deviation(config: Config, guarantee: Guarantee) -> str:
    """How large the noise is where it is added, and in what is made of it."""
    settings, num = guarantee.settings, config.strategy.clients_per_round
    whole = guarantee.noise_multiplier * settings.clipping_norm
    if settings.is_reproduction:
        return f"{whole:.4g} in the gradient of a batch"
    if settings.unit == "client":
        if guarantee.correlated is not None:  # with the noise that it takes back, from the round on that has all of it
            whole *= math.sqrt(guarantee.correlated.variance(config.strategy.num_rounds))
        return f"{whole:.4g} in the sum of a round, {whole / num:.4g} in its mean"
    if settings.unit == "local":
        return f"{whole:.4g} in an upload, {whole / math.sqrt(num):.4g} in the mean of {num}"
    return f"{whole:.4g} in the sum of a batch, {whole / config.client.batch_size:.4g} in its mean"


def _record_of(both: Epsilons) -> Record:
    return {
        "epsilon_pld": both.pld if math.isfinite(both.pld) else None,
        "epsilon_rdp": both.rdp if math.isfinite(both.rdp) else None,
    }
