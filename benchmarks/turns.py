"""The noise that reaches an epsilon with fixed cohorts, turns and Poisson cohorts: the table of docs/privacy.md.

    .venv/bin/python benchmarks/turns.py

Prints the root mean square of the noise in the server params over all rounds, in units of C / clients_per_round, within
a minute.
"""

from __future__ import annotations

import logging

from fedelta.assembly.privacy import guarantee_of
from fedelta.config import parse_config
from fedelta.privacy.correlated import Correlated

# Clients, clients per round, rounds, delta.
FEDERATIONS = ((64, 8, 50, 1e-3), (3400, 100, 1500, 1e-5))
EPSILONS = (1.0, 2.0, 5.0, 10.0)
WAYS = (("fixed", "gaussian"), ("cyclic", "gaussian"), ("cyclic", "banded"), ("poisson", "gaussian"))


def main() -> None:
    """Prints the table."""
    logging.disable()
    print("|", " | ".join(("", "epsilon", *(f"{sampling}, {mechanism}" for sampling, mechanism in WAYS))), "|")
    print("|---" * (2 + len(WAYS)) + "|")
    for federation in FEDERATIONS:
        num_clients, per_round, num_rounds, delta = federation
        name = f"{per_round} of {num_clients}, {num_rounds} rounds, delta {delta:g}"
        for epsilon in EPSILONS:
            errors = (f"{error(federation, epsilon, *way):.3g}" for way in WAYS)
            print("|", " | ".join((name, f"{epsilon:g}", *errors)), "|", flush=True)


def error(federation: tuple[int, int, int, float], epsilon: float, sampling: str, mechanism: str) -> float:
    """The root mean square of the noise in the sums of all rounds so far, in units of C."""
    num_clients, per_round, num_rounds, delta = federation
    config = parse_config(
        {
            "model": {"source": "bundled:vit-micro"},
            "data": {"source": "digits"},
            "partition": {"name": "iid", "num_clients": num_clients},
            "strategy": {"clients_per_round": per_round, "num_rounds": num_rounds, "sampling": sampling},
            "privacy": {"unit": "client", "target_epsilon": epsilon, "target_delta": delta, "mechanism": mechanism},
        }
    )
    guarantee = guarantee_of(config, config.strategy, dict.fromkeys(range(num_clients), 1))
    assert guarantee is not None
    correlated = guarantee.correlated or Correlated((1.0,), num_clients, per_round)
    return guarantee.noise_multiplier * correlated.error(num_rounds)


if __name__ == "__main__":
    main()
