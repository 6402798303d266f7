"""A strategy that breaks a contract is told by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Self

import pytest
import torch
from tests.testing.broken import broken
from torch import Generator

from fedelta.params import Params, ParamSpec, add
from fedelta.strategies.base import CombinedUpdates, RoundPlan, Sampling, State, Steering, uniform
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.scaffold import Controls, Scaffold
from fedelta.testing import check


class Good(FedAvg):
    """FedAvg that counts its rounds."""

    def init(self, params: Params, spec: ParamSpec) -> State:
        return {"rounds": torch.zeros(len(spec.sizes))}

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        return add(params, combined.mean), {"rounds": state["rounds"] + 1}


Plan = Callable[[RoundPlan, ParamSpec], RoundPlan]
Update = Callable[[State, Params, RoundPlan, CombinedUpdates, Params, State], tuple[Params, State]]
_calls: list[int] = []


def planning(change: Plan) -> Good:
    """The strategy with its plans changed."""

    class Planned(Good):
        def plan(
            self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
        ) -> RoundPlan:
            return change(uniform(self.clients_per_round, round, client_ids, spec, generator), spec)

    return Planned()


def updating(change: Update) -> Good:
    """The strategy with what `update` gives changed: of state, params, plan, combined, and the new params and state."""

    class Updated(Good):
        def update(
            self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
        ) -> tuple[Params, State]:
            return change(state, params, plan, combined, *super().update(state, params, plan, combined, spec))

    return Updated()


def uploads(plan: RoundPlan, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> RoundPlan:
    return replace(plan, upload={client: change(names) for client, names in plan.upload.items()})


def stranger(plan: RoundPlan, spec: ParamSpec) -> RoundPlan:
    both = {99: spec.shared}
    return replace(plan, upload={**plan.upload, **both}, download={**plan.download, **both})


def drawn_globally(plan: RoundPlan, spec: ParamSpec) -> RoundPlan:
    torch.rand(1)
    return plan


def counted(plan: RoundPlan, spec: ParamSpec) -> RoundPlan:
    _calls.append(1)
    names = spec.shared[len(_calls) % 2 :]
    return uploads(plan, lambda _: names)


def in_place(state, params, plan, combined, later, new_state):
    params["first.weight"] += 1
    return later, new_state


def state_in_place(state, params, plan, combined, later, new_state):
    state["rounds"] += 1
    return later, new_state


def mean_in_place(state, params, plan, combined, later, new_state):
    next(iter(combined.mean.values())).mul_(2)
    return later, new_state


def doubles(state, params, plan, combined, later, new_state):
    return {name: tensor.double() for name, tensor in later.items()}, new_state


def fewer(state, params, plan, combined, later, new_state):
    return {name: tensor for name, tensor in later.items() if name != "third.scale"}, new_state


def flat(state, params, plan, combined, later, new_state):
    return later | {"first.weight": later["first.weight"].flatten()}, new_state


def infinite(state, params, plan, combined, later, new_state):
    return later | {"third.scale": later["third.scale"] / 0}, new_state


def forgets_state(state, params, plan, combined, later, new_state):
    return later, {}


def decays(state, params, plan, combined, later, new_state):
    return {name: 0.99 * tensor for name, tensor in later.items()}, new_state


def stays(state, params, plan, combined, later, new_state):
    return params, new_state


def by_id(state, params, plan, combined, later, new_state):
    return add(params, combined.mean, 1 + combined.client_ids[0]), new_state


def first_counts_double(state, params, plan, combined, later, new_state):
    first = combined.updates[0].delta
    return add(later, {name: tensor for name, tensor in first.items() if name in combined.mean}), new_state


def hidden(state, params, plan, combined, later, new_state):
    _calls.append(1)
    return add(params, combined.mean, 1 + 1e-3 * len(_calls)), new_state


def needs_all(state, params, plan, combined, later, new_state):
    asked = [name for name in plan.upload[plan.cohort[0]] if "running" not in name]
    return later | {name: params[name] + combined.mean[name].float() for name in asked}, new_state


def needs_everybody(state, params, plan, combined, later, new_state):
    assert combined.client_ids == plan.cohort
    return later, new_state


class Each(Good):
    reads: ClassVar = "each"

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        return first_counts_double(state, params, plan, combined, *super().update(state, params, plan, combined, spec))


class Everything(Good):
    reads: ClassVar = "everything"


class Silent(Good):
    logged: ClassVar = ("score",)


class Named(Good):
    def init(self, params: Params, spec: ParamSpec) -> State:
        return {"rounds": torch.zeros(len(spec.sizes)), "third.scale": torch.zeros(1)}

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        return add(params, combined.mean), state


class Numbers(Good):
    def init(self, params: Params, spec: ParamSpec) -> State:
        return {"rounds": 0}


class Longer(Good):
    def within(
        self, budget_bytes: float, spec: ParamSpec, num_clients: int, exchange_bytes: Callable[[tuple[str, ...]], int]
    ) -> Self:
        return self.model_copy(update={"num_rounds": 2 * self.num_rounds})


class Misshapen(Controls):
    def beside(self, received: Params, delta: Params, step_length: float) -> Params:
        return {name: tensor.flatten() for name, tensor in super().beside(received, delta, step_length).items()}


class Drifting(Controls):
    def remember(self, remembered: Params, sent: Params) -> Params:
        for name in remembered:
            remembered[name] += sent[name]
        return remembered


def steered(side: Steering) -> Scaffold:
    """SCAFFOLD with another client's side."""

    class Steered(Scaffold):
        steering: ClassVar[Steering] = side

    return Steered()


class Nosy(Good):
    """Takes a longer step if more clients are there."""

    private: ClassVar[bool] = True

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        return add(params, combined.mean, 1 + len(plan.cohort)), {"rounds": state["rounds"] + 1}


class Favouring(Good):
    """Says that it draws a Poisson sample, and asks the same clients in every round."""

    private: ClassVar[bool] = True
    sampling: Sampling = "poisson"

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        names_of = dict.fromkeys(client_ids[:3], spec.shared)
        return RoundPlan(round, names_of, names_of, len(client_ids), due=spec.shared)


class Undue(Nosy):
    """Does not say what is due."""

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        plan = uniform(self.clients_per_round, round, client_ids, spec, generator, sampling=self.sampling)
        return replace(plan, due=None)

    private: ClassVar[bool] = True


COHORT = "a plan asks as many distinct clients as the strategy says"
TRAVELS = "only what is shared travels in the order of the specification"
FOLLOWS = "a plan follows from its state and its stream"
INPUTS = "update changes none of its inputs"
KEEPS = "update keeps names shapes and types"
STATE = "the state has names of its own and holds what is logged"
KNOWS = "a private strategy knows only the noisy mean"
REMEMBER = "what clients remember fits the specification"


@pytest.mark.parametrize(
    ("strategy", "sentence", "problem"),
    [
        (planning(stranger), COHORT, "names the clients [99], and there is no such client"),
        (planning(lambda plan, spec: replace(plan, upload={}, download={})), COHORT, "expected 3 clients"),
        (planning(lambda plan, spec: replace(plan, download={})), COHORT, "are in one direction only"),
        (planning(lambda plan, spec: replace(plan, round=1)), COHORT, "The plan of round 2 says (round, num_clients)"),
        (planning(lambda plan, spec: uploads(plan, lambda _: spec.names)), TRAVELS, "to send or get"),
        (planning(lambda plan, spec: uploads(plan, lambda names: names[::-1])), TRAVELS, "expected ('first.weight'"),
        (
            planning(lambda plan, spec: uploads(plan, lambda names: names[1:])),
            "every shared tensor comes up at some time", "no client is asked for ['first.weight']",
        ),
        (
            planning(lambda plan, spec: replace(plan, download=dict.fromkeys(plan.upload, spec.shared[1:]))),
            "a new client gets all that it needs to start", "does not get ['first.weight']",
        ),
        (planning(drawn_globally), FOLLOWS, "draws from the global generator of torch"),
        (planning(counted), FOLLOWS, "is another"),
        (updating(in_place), INPUTS, "changes the params that it gets: `first.weight` differs"),
        (updating(state_in_place), INPUTS, "changes the state that it gets: `rounds` differs"),
        (updating(mean_in_place), INPUTS, "changes the mean"),
        (updating(doubles), KEEPS, "`first.weight` is (torch.float64"),
        (updating(fewer), KEEPS, "the params are"),
        (updating(flat), KEEPS, "expected (torch.float32, (3, 4))"),
        (updating(infinite), KEEPS, "`third.scale` is not finite"),
        (updating(forgets_state), KEEPS, "the state has gained or lost ['rounds']"),
        (updating(decays), "statistics and what stays with clients are left alone", "`norm.running_mean` was changed"),
        (updating(decays), "clients that do not move leave the server where it is", "no client moves, and the server"),
        (updating(stays), "the server moves when clients do", "stay where they were"),
        (updating(by_id), "ids of clients do not matter", "depends on which client sent what"),
        (Each(), "ids of clients do not matter", "depends on which client sent what"),
        (updating(hidden), "a state survives a checkpoint", "gives other bits"),
        (updating(needs_all), "a tensor that too few clients sent is no error", "ends with KeyError: 'first.weight'"),
        (updating(needs_everybody), "a client that is lost is no error", "ends with AssertionError"),
        (Everything(), "nothing that comes up is looked at unless it is said", "`reads` is 'everything'"),
        (Silent(), STATE, "`logged` names 'score', and the state holds ['rounds']"),
        (Named(), STATE, "`third.scale` of the state has the name of a tensor of the model"),
        (Numbers(), "a state survives a checkpoint", "AttributeError"),
        (Longer(), "a budget gives a strategy that keeps to its rounds", "expected (<class"),
        (Nosy(), KNOWS, "In round 1 the params depend on who is in the cohort"),
        (Undue(), KNOWS, "The plan of round 1 does not say what is `due`"),
        (Favouring(), "a private strategy asks the clients that are drawn", "The cohort is (2, 3, 5), expected"),
        (steered(Misshapen()), REMEMBER, "`beside` gives `control/first.weight` the shape (12,), expected (3, 4)"),
        (steered(Drifting()), REMEMBER, "`remember` changes what it gets"),
    ],
)  # fmt: skip
def test_a_broken_strategy_breaks_its_contract(strategy: Good, sentence: str, problem: str):
    assert problem in broken(strategy, only=sentence)[sentence]


def test_a_strategy_that_keeps_every_contract_passes():
    check(Good())
