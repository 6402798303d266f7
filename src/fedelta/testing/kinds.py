"""The contracts of a value of each kind: the checks of its file, and short runs with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fedelta.catalog import CODECS, LOCAL_RULES, MEANS, PARTITIONERS, STRATEGIES, TASKS, TUNING_METHODS
from fedelta.codecs.channel import Channel
from fedelta.settings.registry import Registry
from fedelta.strategies.base import Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.testing import codecs, means, partitioners, rules, strategies, tasks, tuning
from fedelta.testing.contract import Contract, contracts_for
from fedelta.testing.federations import played, real_clients_train_with_it
from fedelta.testing.rounds import StrategyTrial
from fedelta.testing.trials import TuningTrial
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.full import Full
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel

_LORA: tuple[TuningMethod, str] = (Lora(r=2), "vit")
# A method with lanes, one with a single lane, and one with running statistics.
_TUNED: tuple[tuple[TuningMethod, str], ...] = (_LORA, (Full(), "vit"), (Parallel(), "small-resnet"))
# A short run with two windows of two rounds, and with the three clients that a robust mean needs.
_LONGEST = {"clients_per_round": 3, "num_rounds": 4}
_AVERAGED = FedAvg(clients_per_round=3, num_rounds=4)


# From the subject for messages, a value and the names of small models to contracts. Any: the value has the members of
# its protocol; the contracts check everything else.
Contracts = Callable[[str, Any, Sequence[str]], list[Contract]]


def _of_tuning(subject: str, method: Any, models: Sequence[str]) -> list[Contract]:
    trials = [TuningTrial(method, family) for family in models]
    contracts = contracts_for(subject, trials, (tuning.it_fits_one_of_the_small_models,))
    for trial in trials:
        of_model = contracts_for(f"{subject} on {trial.family}", trial, tuning.CHECKS)
        contracts += [replace(contract, check=partial(_if_it_fits, trial, contract.check)) for contract in of_model]
    return contracts


def _if_it_fits(trial: TuningTrial, check: Callable[[], None]) -> None:
    if trial.fits:
        check()


def _of_strategy(subject: str, strategy: Any, _models: Sequence[str]) -> list[Contract]:
    short = _shortened(strategy)
    return contracts_for(subject, StrategyTrial(short), strategies.CHECKS) + [
        _run(f"{subject} on {method.name!r}", short, (method, family)) for method, family in _TUNED
    ]


def _shortened(strategy: Any) -> Strategy:
    longest = _LONGEST | {"clients_per_round": max(_LONGEST["clients_per_round"], strategy.mean.min_values)}
    short: Strategy = strategy.model_copy(
        update={name: min(most, getattr(strategy, name)) for name, most in longest.items()}
    )
    return short


def _of_mean(subject: str, mean: Any, _models: Sequence[str]) -> list[Contract]:
    num_clients = min(5, max(_AVERAGED.clients_per_round, mean.min_values))
    strategy = _AVERAGED.model_copy(update={"mean": mean, "clients_per_round": num_clients})
    return contracts_for(subject, means.MeanTrial(mean), means.CHECKS) + [
        _run(f"{subject} on {method.name!r}", strategy, (method, family)) for method, family in _TUNED
    ]


def _of_codec(subject: str, codec: Any, _models: Sequence[str]) -> list[Contract]:
    channel = Channel.model_construct(down=codec, up=codec)
    run = _run(subject, _AVERAGED, _LORA, channel=channel)
    return [*contracts_for(subject, codecs.CodecTrial(codec), codecs.CHECKS), run]


def _of_rule(subject: str, rule: Any, _models: Sequence[str]) -> list[Contract]:
    run = _run(subject, _AVERAGED, _LORA, rule=rule)
    return [*contracts_for(subject, rules.RuleTrial(rule), rules.CHECKS), run]


def _of_task(subject: str, task: Any, _models: Sequence[str]) -> list[Contract]:
    return contracts_for(subject, tasks.TaskTrial(task), tasks.CHECKS)


def _of_partitioner(subject: str, partition: Any, _models: Sequence[str]) -> list[Contract]:
    return contracts_for(subject, partitioners.PartitionTrial(partition), partitioners.CHECKS)


def _run(subject: str, strategy: Strategy, tuned: tuple[TuningMethod, str], **others: Any) -> Contract:
    """The contract of a short federation; `others` are arguments of `played`."""
    return contracts_for(subject, partial(played, strategy, *tuned, **others), (real_clients_train_with_it,))[0]


CONTRACTS: Mapping[Registry, Contracts] = {
    TUNING_METHODS: _of_tuning,
    STRATEGIES: _of_strategy,
    MEANS: _of_mean,
    LOCAL_RULES: _of_rule,
    CODECS: _of_codec,
    TASKS: _of_task,
    PARTITIONERS: _of_partitioner,
}
