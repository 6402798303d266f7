"""`fedelta audit`: trials with the mechanism of a finished run, held against what was accounted for.

Only the configuration, the promise and the counts in the run directory are read: neither data nor model, so that an
audit also works where a deployed run left only its server's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedelta.assembly.privacy import guarantee_of, planned_states
from fedelta.auditing.bounds import Measured, Trials, measured
from fedelta.auditing.clients import ClientTrials, watched
from fedelta.auditing.examples import ExampleTrials
from fedelta.auditing.locals import LocalTrials
from fedelta.auditing.model import model_for
from fedelta.auditing.reduced import Reduced, Releases, reduced
from fedelta.auditing.streams import Streams
from fedelta.config import WITHOUT_ADAPTER, Config, load_config
from fedelta.data.clients import Clients
from fedelta.durable import write_atomic
from fedelta.errors import InputError, RunError
from fedelta.privacy.accounting import epsilons
from fedelta.privacy.bounds import rdp_epsilon
from fedelta.privacy.central import Central
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.randomness import Seeded
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import EVERYONE, Release, Spent
from fedelta.record.checkpoint import Checkpoint, load
from fedelta.record.files import Record, read_json, to_json
from fedelta.record.partition import read_partition
from fedelta.record.promise import Promise, read_promise
from fedelta.record.rundir import AUDIT, PARTITION, PRIVACY, RunDirectory

FEWEST_TRIALS = 80
_MOST_ROUNDS, _MOST_STEPS, _MOST_UPLOADS = 12, 10, 4  # so that a trial takes about 30 ms


@dataclass(frozen=True)
class _Run:
    """What an audit reads of a run.

    Args:
        config: of the run.
        promise: what it guarantees.
        sizes: client number to its number of examples, as far as known, of all clients that can be in a cohort.
        spent: what it has released.
        num_rounds: that it has run.
        epsilon: what it reports; None where that is unknown.
    """

    config: Config
    promise: Promise
    sizes: Mapping[int, int]
    spent: Spent
    num_rounds: int
    epsilon: float | None


@dataclass(frozen=True)
class _Tried:
    """A mechanism that is tried.

    Args:
        trials: makes the trials.
        size: what the mechanism releases.
        in_words: what a trial is.
        notes: on what is left out.
    """

    trials: ClientTrials | ExampleTrials | LocalTrials
    size: Reduced
    in_words: str
    notes: tuple[str, ...] = ()


def audit(
    directory: str | Path,
    *,
    num_trials: int = 1600,
    confidence: float = 0.95,
    without_noise: bool = False,
    seed: int = 0,
) -> Record:
    """Measures a lower bound of the epsilon of a finished run's mechanism; writes `audit.json`.

    Args:
        directory: of the run.
        num_trials: half of them have a canary.
        confidence: probability with which the measured bound holds, in (0, 1).
        without_noise: switches the noise off, to see that the trials notice.
        seed: of the trials, which use none of the run's random numbers.

    Returns:
        What `audit.json` says of this audit; it keeps what an earlier audit with, or without, noise has found.

    Raises:
        RunError: `directory` is no run, or one that is not finished.
        InputError: the run has no privacy or guarantees nothing; too few trials; a confidence that is none.
    """
    if num_trials < FEWEST_TRIALS or not 0 < confidence < 1:
        raise InputError(
            f"{num_trials} trials at confidence {confidence:g}, expected at least {FEWEST_TRIALS} and a confidence "
            "between 0 and 1."
        )
    run = RunDirectory.open(Path(directory))
    audited = _read(run)
    tried = _tried(audited)
    streams = Streams(seed, is_secret=audited.promise.randomness == "secure", noise=0.0 if without_noise else 1.0)
    trials = tried.trials.trials(num_trials // 2, streams)
    record = _record(audited, tried, trials, confidence) | {"seed": seed, "noise": "off" if without_noise else "on"}
    key = "without_noise" if without_noise else "with_noise"
    with run.locked():
        before = read_json(run.path / AUDIT) if (run.path / AUDIT).exists() else {}
        write_atomic(run.path / AUDIT, to_json({**before, key: record}, indent=2) + "\n")
    return record


def _read(run: RunDirectory) -> _Run:
    config = load_config(run.config, WITHOUT_ADAPTER)
    promise = read_promise(run.path / PRIVACY)
    if promise is None:
        raise InputError(
            f"run {str(run.path)!r} has no privacy, so there is nothing to audit: `privacy.unit` is 'none'.",
            hint="set `privacy.unit` and `privacy.target_epsilon`, and run again.",
        )
    if not promise.is_kept:
        raise InputError(
            f"run {str(run.path)!r} guarantees nothing: `privacy.mechanism` is {promise.mechanism!r}.",
            hint="only a guarantee can be audited; run with `privacy.mechanism = 'gaussian'`.",
        )
    run.refuse_unfinished()
    checkpoint, epsilon = load(run.checkpoint), read_json(run.summary).get("epsilon")
    return _Run(config, promise, _sizes(run, checkpoint), checkpoint.privacy.spent, checkpoint.round, epsilon)


def _sizes(run: RunDirectory, checkpoint: Checkpoint) -> dict[int, int]:
    """Client number to its number of examples; 1 where that is not known, because the task has no classes."""
    partition = read_partition(run.path / PARTITION)
    if partition is None:
        raise RunError(f"run {str(run.path)!r} has no `{PARTITION}`, so its clients are not known.")
    counted = {client_id: sum(row) for client_id, row in partition.counts.items()}
    at_sites = {number: size for site in partition.sites.values() for number, size in site.items()}
    known = counted | at_sites | dict(checkpoint.claimed)
    return {client_id: max(1, known[client_id]) for client_id in counted}


def _tried(run: _Run) -> _Tried:
    if run.promise.unit == "client":
        return _clients(run)
    return _examples(run) if run.promise.unit == "example" else _locals(run)


def _clients(run: _Run) -> _Tried:
    model, notes = model_for(run.config.tuning)
    strategy, numbers = run.config.strategy, sorted(run.sizes)
    config = run.config.model_copy(update={"privacy": _with_noise(run)})

    def guarantee(num: int, num_rounds: int) -> Guarantee:
        result = guarantee_of(config, watched(strategy, num_rounds), dict.fromkeys(numbers[:num], 1))
        if result is None:
            raise ValueError("a run with a promise has a guarantee")
        return result

    def releases_of(num: int, num_rounds: int) -> Releases:
        plans = planned_states(guarantee(num, num_rounds), config, watched(strategy, num_rounds), numbers[:num])
        *_, last = plans
        return last.spent[EVERYONE]

    # A fixed cohort counts as if every client were in it; the turns of clients depend on their number.
    cohort, most = strategy.clients_per_round, len(numbers)
    num, fewest = {"fixed": (cohort, cohort), "poisson": (most, cohort)}.get(strategy.sampling, (most, most))
    size = reduced(releases_of, num, min(run.num_rounds, _MOST_ROUNDS), fewest=fewest, delta=run.promise.delta)
    final, clients = guarantee(size.num_units, size.times), Clients.of(numbers[: size.num_units])
    every = Clients.of(numbers)
    tiers = model.tiers(config.exits, every, config.seed)
    central = Central(final.settings, final.noise_multiplier, cohort, len(clients.numbers), Seeded(0), final.correlated)
    trials = ClientTrials(
        strategy=watched(strategy, size.times),
        channel=config.codec,
        spec=model.small_spec,
        clients=clients,
        central=central,
        rate=final.cohort_rate,
        tiers=None if tiers is None else tiers.only(clients.numbers),
    )
    words = (
        f"{_times(size.times, 'round')} of the run's {run.num_rounds} with {size.num_units} of its {most} clients, "
        f"about {cohort} per round; the canary is a client whose update is 32 times as long as it may be"
    )
    return _Tried(trials, size, words, notes)


def _examples(run: _Run) -> _Tried:
    model, notes = model_for(run.config.tuning)
    delta, batch_size = run.promise.delta, run.config.client.batch_size
    worst = max(run.spent, key=lambda client: rdp_epsilon(tuple(sorted(run.spent[client].items())), delta))
    releases = run.spent[worst]
    num_steps, num_rows = sum(releases.values()), run.sizes[int(worst)]
    # A batch of one row in the mean, from as many rows as give the same rate.
    rows = max(1, round(num_rows / batch_size))

    def releases_of(num: int, times: int) -> Releases:
        return {Release(run.promise.noise_multiplier, 1 / num): times}

    size = reduced(releases_of, rows, min(num_steps, _MOST_STEPS), fewest=1, delta=delta)
    trials = ExampleTrials(
        model, run.config.privacy, run.promise.noise_multiplier, size.num_units, batch_size=1, num_rounds=size.times
    )
    words = (
        f"{_times(size.times, 'step')} of the {num_steps} of client {worst}, which the run protects least, each with a "
        f"sample of 1 in {size.num_units} rows; the canary is a row whose gradient is far longer than it may be"
    )
    return _Tried(trials, size, words, notes)


def _locals(run: _Run) -> _Tried:
    model, notes = model_for(run.config.tuning)
    noise = run.promise.noise_multiplier
    num_uploads = max(sum(releases.values()) for releases in run.spent.values())

    def releases_of(_: int, times: int) -> Releases:
        return {Release(noise / 2): times}

    size = reduced(releases_of, 1, min(num_uploads, _MOST_UPLOADS), fewest=1, delta=run.promise.delta)
    trials = LocalTrials(model.small_spec, run.config.privacy, noise, size.times)
    words = (
        f"{_times(size.times, 'upload')} of the {num_uploads} of the client that sent most; the canaries are two "
        "clients whose updates are opposite and 32 times as long as they may be"
    )
    return _Tried(trials, size, words, notes)


def _with_noise(run: _Run) -> Privacy:
    """Section `[privacy]` with the noise that was calculated for the run."""
    return run.config.privacy.model_copy(
        update={"target_epsilon": None, "max_epsilon": None, "noise_multiplier": run.promise.noise_multiplier}
    )


def _times(num: int, what: str) -> str:
    return f"{num} {what}" if num == 1 else f"{num} {what}s"


def _record(run: _Run, tried: _Tried, trials: Trials, confidence: float) -> Record:
    delta, size = run.promise.delta, tried.size
    result = measured(trials, size.releases, delta, confidence)
    accounted = epsilons(size.releases, delta).pld
    return {
        "sentence": verdict(result, accounted, 2 * len(trials.present), confidence),
        "exceeds": result.exceeds,
        "privacy_unit": run.promise.unit,
        "delta": delta,
        "confidence": confidence,
        "num_trials": 2 * len(trials.present),
        "run_epsilon": run.epsilon,
        "tried": {
            "in_words": tried.in_words,
            "epsilon": accounted,
            "releases": [[release.noise_multiplier, release.rate, times] for release, times in size.releases.items()],
        },
        "measured": {
            "epsilon": result.epsilon,
            "epsilon_of_any_mechanism": result.epsilon_any,
            "epsilon_of_this_kind": result.epsilon_kind,
            "limits": [limits._asdict() for limits in result.limits],
        },
        "notes": list(tried.notes),
    }


def verdict(result: Measured, accounted: float, num_trials: int, confidence: float) -> str:
    """What an audit has found, for people."""
    somebody = f"In {num_trials:,} trials somebody who sees all that is released"
    if result.epsilon < 0.005:  # 0.00 in two digits
        return (
            f"{somebody} proved nothing (confidence {confidence:.0%}); epsilon {accounted:.2f} is accounted for. That "
            "is no proof of privacy: more trials can prove more."
        )
    proved = f"{somebody} proved an epsilon of at least {result.epsilon:.2f} (confidence {confidence:.0%})"
    if result.exceeds:
        return f"{proved}, more than the {accounted:.2f} that is accounted for: the noise is not what is claimed."
    return (
        f"{proved}, no more than the {accounted:.2f} that is accounted for. A low figure is no proof of privacy; a "
        "higher one than is accounted for would disprove it."
    )
