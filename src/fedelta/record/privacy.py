"""What the records of a run say about its privacy: epsilon by round, and sentences for people.

Each record of `rounds.jsonl` has the epsilon of all rounds so far; `summary.json` has it with all that belongs to
it. A figure that is unknown is None and says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedelta.federation.records import RoundOutcome
from fedelta.privacy.settings import Privacy
from fedelta.privacy.shown import shown_epsilon
from fedelta.record.files import Record, read_json
from fedelta.record.promise import WITHOUT_GUARANTEE, Promise
from fedelta.record.rundir import RunDirectory

NO_GUARANTEE = "no guarantee"
# In `summary.json`: the sentence that a run ends with whose next round would have exceeded its epsilon.
STOPPED = "stopped"
_PROTECTED = {
    "example": "any one example of any one client (added or removed)",
    "client": "any one client with all of its data (added or removed)",
    "local": "all data of any one client (replaced by any other data)",
}
_TRUST = {
    "example": "Clients add the noise before they send anything, so neither the server nor other clients are trusted.",
    "client": "The server sees every update and is trusted to clip it and to add the noise.",
    "local": "Clients add the noise before they send anything, so neither the server nor other clients are trusted.",
}
_NOISE = {
    "seeded": "The noise comes from the seed of the run, for tests and simulations: whoever knows the seed can remove "
    "it, and then nothing is protected.",
    "secure": "The noise comes from secret keys.",
}
# Texts that do not depend on a run: what the guarantee holds for, and what it does not.
COVERED = {
    "example": "every upload of every client, and so the parameters of every round, the adapter and every measure of "
    "them on the server's test data",
    "client": "the parameters of every round, the adapter, and every measure of them on test data of nobody who is "
    "protected",
    "local": "every upload of every client, and so the parameters of every round, the adapter and every measure of "
    "them on the server's test data",
}
NOT_COVERED = {
    "example": "how many examples a client has, which counts as public; in which rounds it took part; and "
    "several examples that belong together, such as all of one patient, as one",
    "client": "the run directory with its report, which tells who was in which cohort, how many examples clients have "
    "and how much they sent, and belongs to the server; and clients that belong together, as one",
    "local": "how many examples a client has and in which rounds it took part",
}


def privacy_of_round(outcome: RoundOutcome, promise: Promise) -> Record:
    """What a record of `rounds.jsonl` says about privacy.

    Args:
        outcome: of the round.
        promise: of the run.

    Returns:
        `epsilon` of all rounds so far, by the accountant that the run goes by, `epsilon_rdp` and `clipping_norm`. An
        epsilon is None where nothing is guaranteed or where it is infinite.
    """
    both = outcome.epsilons if promise.is_kept else None
    return {
        "epsilon": reported(outcome, promise),
        "epsilon_rdp": None if both is None else _finite(both.rdp),
        "clipping_norm": promise.clipping_norm if outcome.clipping_norm is None else outcome.clipping_norm,
    }


def reported(outcome: RoundOutcome, terms: Promise | Privacy) -> float | None:
    """The epsilon that a round reports, by the accountant that the run goes by; None where there is none."""
    both = outcome.epsilons
    if both is None or terms.mechanism in WITHOUT_GUARANTEE:
        return None
    return _finite(both.pld if terms.accountant == "pld" else both.rdp)


def privacy_of_run(records: Sequence[Record], promise: Promise) -> Record:
    """What `summary.json` says about privacy, after the rounds in `records`."""
    last = records[-1] if records else {}
    epsilon = last.get("epsilon")
    why = "" if epsilon is not None else why_unknown(promise)
    return {
        "privacy_unit": promise.unit,
        "epsilon": epsilon,
        **({"epsilon_note": why} if why else {}),
        "epsilon_rdp": last.get("epsilon_rdp"),
        "delta": promise.delta,
        "noise_multiplier": promise.noise_multiplier,
        "clipping_norm": last.get("clipping_norm", promise.clipping_norm),
        "privacy_mechanism": promise.mechanism,
        "privacy_randomness": promise.randomness,
        "privacy": sentence(promise, epsilon, last.get("epsilon_rdp")),
    }


def stopped_by(run: RunDirectory) -> str:
    """The sentence with which the privacy budget ended a finished run; empty if it did not.

    Raises:
        RunError: its summary cannot be read.
    """
    return str(read_json(run.summary).get(STOPPED, "")) if run.summary.exists() else ""


def sentence(promise: Promise, epsilon: float | None, epsilon_rdp: float | None) -> str:
    """What is promised to whom, how strongly, and by which noise, in a few sentences."""
    if not promise.is_kept:
        return f"{why_unknown(promise)} {_NOISE[promise.randomness]}"
    strength = f"epsilon {shown_epsilon(epsilon)} at delta {promise.delta:g}"
    beside = (
        f" ({shown_epsilon(epsilon_rdp)} by RDP)" if promise.accountant == "pld" and epsilon_rdp is not None else ""
    )
    known = (
        f"{strength}{beside}" if epsilon is not None else f"{why_unknown(promise).removesuffix('.').lower()}{beside}"
    )
    return f"Protected: {_PROTECTED[promise.unit]}, with {known}. {_TRUST[promise.unit]} {_NOISE[promise.randomness]}"


def why_unknown(promise: Promise) -> str:
    """Why a run has no epsilon, as a sentence."""
    if not promise.is_kept:
        return (
            f'{NO_GUARANTEE.capitalize()}: "{promise.mechanism}" reproduces the noise of FedPEFT\'s authors, which '
            "bounds nothing."
        )
    return f"No finite epsilon at delta {promise.delta:g}."


def is_void(record: Record, promise: Promise | None) -> bool:
    """Whether a round did not count, for too few replies.

    Under privacy for clients every round counts, even without replies: it adds noise, and whether anybody was in the
    cohort stays unknown.
    """
    return record.get("num_examples") == 0 and not (promise is not None and promise.unit == "client")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
