"""The round loop with client-level privacy: cohorts, what counts, what is withheld, and the end of a budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import ClassVar

import pytest
import torch
from scipy.stats import chi2
from tests.builders import assert_same_bits, evaluated
from tests.federation.private import (
    NUM_CLIENTS,
    PRIVATE,
    SPEC,
    Wild,
    begun,
    next_of,
    private,
    strategy_of,
)

from fedelta.aggregation.means import Uniform, Weighted
from fedelta.aggregation.robust import Median
from fedelta.errors import ConfigError, PluginError, RoundError
from fedelta.federation.base import Federation
from fedelta.federation.records import Reply
from fedelta.federation.rounds import federate
from fedelta.params import Params, ParamSpec, TensorSpec, add
from fedelta.privacy.randomness import Randomness, Secret, Seeded
from fedelta.privacy.shown import shown_epsilon
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, drawn
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fednova import FedNova

SECRET = Secret(bytes(range(32)))


@dataclass
class Answering:
    """A runtime with these replies."""

    replies: Sequence[Reply]

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Sequence[Reply]:
        return self.replies

    def accept(self, client_ids: Iterable[int]) -> None: ...


def answering(federation: Federation, *replies: Reply) -> Federation:
    return replace(federation, runtime=Answering(replies))


def everyone(**other: object) -> Federation:
    """A round of all eight clients."""
    return private(strategy_of("fedavg", "fixed", num_rounds=1, clients_per_round=8), **other)


# Which rounds count.


@pytest.mark.parametrize("name", PRIVATE)
def test_a_cohort_that_is_wholly_lost_gives_noise_and_is_paid_for(name: str):
    strategy = strategy_of(name, num_rounds=4)
    federation = private(strategy, randomness=Seeded(2), lost=range(NUM_CLIENTS), is_counted=True)
    start, outcomes = begun(federation), list(federate(federation, begun(federation)))
    assert [outcome.num_examples for outcome in outcomes] == [0] * 4
    for name in SPEC.shared:
        assert not torch.equal(outcomes[-1].params[name], start.params[name])
    epsilons = [outcome.epsilons.pld for outcome in outcomes]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] > 0
    assert {rejection.cause for outcome in outcomes for rejection in outcome.rejections} == {"dropped out"}


@pytest.mark.parametrize("name", PRIVATE)
def test_cohorts_of_any_size_nobody_too_are_run_and_paid_for(name: str):
    # Each client with 1/8: of 12 cohorts some are empty.
    federation = private(strategy_of(name, num_rounds=12, clients_per_round=1), randomness=Seeded(0))
    outcomes = list(federate(replace(federation, evaluate=lambda _: evaluated(1.0)), begun(federation)))
    sizes = {len(outcome.cohort) for outcome in outcomes}
    assert 0 in sizes
    assert max(sizes) > 1
    assert all(outcome.evaluation is not None for outcome in outcomes)
    assert [len(plan.cohort) for plan in federation.runtime.plans] == [len(outcome.cohort) for outcome in outcomes]


def test_an_empty_cohort_of_a_run_without_client_level_privacy_changes_nothing():
    strategy = strategy_of("fedavg", num_rounds=12, clients_per_round=1)
    federation = replace(private(strategy), central=None, privacy=None)
    runtime = Answering([])
    standing = begun(federation)
    for outcome in federate(replace(federation, runtime=runtime, seed=0), standing):
        if not outcome.cohort:
            assert_same_bits(outcome.params, standing.params)
            assert outcome.rejections == ()
            assert outcome.num_examples == 0
            return
        standing = next_of(outcome)
    pytest.fail("no cohort was empty")


def test_min_replies_does_not_make_a_round_void():
    strategy = strategy_of("fedavg", "fixed", num_rounds=1).model_copy(update={"min_replies": 4})
    federation = private(strategy, lost=range(1, NUM_CLIENTS))
    [outcome] = federate(federation, begun(federation))
    assert federation.min_replies == 0
    assert not [rejection for rejection in outcome.rejections if rejection.cause == "void round"]


def test_a_run_in_which_no_reply_is_usable_ends_with_their_reasons():
    bad = [Reply(client_id, 1, b"no payload") for client_id in range(NUM_CLIENTS)]
    federation = answering(everyone(), *bad)
    with pytest.raises(RoundError, match="round 1: 0 of 8 replies are usable"):
        list(federate(federation, begun(federation)))


# What is withheld, and what a client cannot do.


def test_no_loss_and_no_norm_leaves_a_round_and_none_has_to_be_sent():
    [outcome] = federate(everyone(), begun(everyone()))
    assert (outcome.train_loss, outcome.delta_norm) == (None, None)
    assert not outcome.rejections


def test_a_loss_that_is_sent_all_the_same_is_not_read():
    replies = Wild(SPEC).run(RoundPlan(1, {}, {0: SPEC.shared}, 8, due=SPEC.shared), {0: b""})
    with_loss = [replace(reply, metrics={"train_loss": math.nan}) for reply in replies]
    federation = answering(everyone(), *with_loss)
    [outcome] = federate(federation, begun(federation))
    assert outcome.train_loss is None
    assert [rejection.client_id for rejection in outcome.rejections] == [1, 2, 3, 4, 5, 6, 7]


def test_the_norm_of_deltas_is_known_where_they_are_private_already():
    federation = replace(everyone(), central=None)
    replies = [replace(reply, metrics={}) for reply in Wild(SPEC).run(
        RoundPlan(1, {}, dict.fromkeys(range(8), SPEC.shared), 8), dict.fromkeys(range(8), b""))]  # fmt: skip
    [outcome] = federate(answering(federation, *replies), begun(federation))
    assert outcome.train_loss is None
    assert outcome.delta_norm is not None
    assert not outcome.rejections


@pytest.mark.parametrize("scale", [1e30, 3e38, 1e-45])
def test_one_hostile_client_moves_the_server_no_further_than_the_clipping_norm(scale: float):
    # Everybody else sends zero: the params move by 1 / 8 at most.
    federation = everyone()
    federation.runtime.scales = (0.0, scale, *[0.0] * 6)
    start = begun(federation)
    [outcome] = federate(federation, start)
    moved = torch.cat([(outcome.params[name] - start.params[name]).flatten() for name in SPEC.shared]).double().norm()
    assert moved <= 1 / 8 + 1e-6
    assert outcome.params["own"] is start.params["own"]


def test_weights_are_uniform_whatever_a_client_claims():
    def mean_with(num_examples: int) -> Params:
        replies = Wild(SPEC, scales=(0.1,)).run(
            RoundPlan(1, {}, dict.fromkeys(range(8), SPEC.shared), 8), dict.fromkeys(range(8), b""))  # fmt: skip
        federation = answering(everyone(), *(replace(reply, num_examples=num_examples) for reply in replies))
        [outcome] = federate(federation, begun(federation))
        return outcome.params

    assert_same_bits(mean_with(1), mean_with(2**40))


def test_the_order_of_replies_does_not_matter():
    @dataclass
    class Backwards(Wild):
        def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
            yield from reversed(list(super().run(plan, payloads)))

    federation = everyone(randomness=Seeded(1), clipping="adaptive", count_noise=4.0)
    [forth] = federate(federation, begun(federation))
    [back] = federate(replace(federation, runtime=Backwards(SPEC)), begun(federation))
    assert_same_bits(forth.params, back.params)
    assert forth.privacy == back.privacy


# Noise, in the params.


@pytest.mark.parametrize("randomness", [Seeded(4), SECRET], ids=["seeded", "secret"])
def test_noise_in_the_params_has_the_stated_deviation_on_every_tensor(randomness: Randomness):
    spec = ParamSpec({name: TensorSpec((1000,), name) for name in ("a", "b")})
    federation = replace(private(strategy_of("fedavg", num_rounds=3), randomness=randomness, z=1.5, clipping_norm=2.0),
        spec=spec, runtime=Wild(spec, lost=frozenset(range(NUM_CLIENTS))))  # fmt: skip
    standing = replace(begun(federation), params={name: torch.zeros(1000) for name in spec})
    for outcome in federate(federation, standing):
        for name in spec:
            # z C / m = 1.5 * 2 / 4
            standard = (outcome.params[name] - standing.params[name]).double() / 0.75
            assert chi2.ppf(1e-5, 1000) < float(standard.square().sum()) < chi2.ppf(1 - 1e-5, 1000)
        standing = next_of(outcome)


def test_a_round_that_is_run_again_from_its_standing_has_the_same_bits():
    federation = private(strategy_of("fedlama"), randomness=SECRET, clipping="adaptive", count_noise=4.0)
    standing = begun(federation)
    for outcome in federate(federation, standing):
        [again] = islice(federate(federation, standing), 1)
        assert_same_bits(outcome.params, again.params)
        assert outcome.privacy == again.privacy
        standing = next_of(outcome)


# Cohorts.


@pytest.mark.parametrize("randomness", [Seeded(4), SECRET], ids=["seeded", "secret"])
def test_poisson_cohorts_have_every_client_with_the_same_probability_independently(randomness: Randomness):
    # 400 rounds of 8 clients with probability 1/2: 100 for each pair, and 0 to 8 a round.
    strategy = strategy_of("fedavg", num_rounds=400)
    federation = private(strategy, randomness=randomness)
    draws = [
        strategy.plan({}, round, range(NUM_CLIENTS), SPEC, federation.draws(round)).cohort for round in range(1, 401)
    ]
    present = torch.zeros(400, NUM_CLIENTS, dtype=torch.float64)
    for row, cohort in zip(present, draws, strict=True):
        row[list(cohort)] = 1
    assert float(((present.sum(0) - 200) / 10).abs().max()) < 4
    together = present.T @ present
    assert float(((together - 100) / 75**0.5).fill_diagonal_(0).abs().max()) < 4
    sizes = present.sum(1)
    assert abs(float(sizes.var()) - 2) < 0.7


def test_secret_cohorts_are_not_those_of_the_seed():
    strategy = strategy_of("fedavg", num_rounds=8)
    seeded, secret = (
        [outcome.cohort for outcome in federate(federation, begun(federation))]
        for federation in (private(strategy, randomness=Seeded(0)), private(strategy, randomness=SECRET))
    )
    assert seeded != secret
    assert seeded == [
        tuple(drawn(4, round, range(NUM_CLIENTS), private(strategy, randomness=Seeded(0)).draws(round), "poisson"))
        for round in range(1, 9)
    ]


def test_a_cohort_of_a_window_stays_and_is_joined_in_the_account():
    # At least one group stays at interval 1, so that every round releases something.
    strategy = strategy_of("fedlama", num_rounds=4).model_copy(update={"crossing": "excluded"})
    federation = private(strategy, randomness=SECRET, is_counted=True)
    outcomes = list(federate(federation, begun(federation)))
    first, second = outcomes[:2], outcomes[2:]
    assert first[0].cohort == first[1].cohort != second[0].cohort == second[1].cohort
    [(after_one, _)] = outcomes[0].privacy.spent[""].items()
    [(after_two, times)] = outcomes[1].privacy.spent[""].items()
    assert after_one.noise_multiplier == 1.0
    assert (after_two.noise_multiplier, times) == (pytest.approx(0.5**0.5), 1)
    assert outcomes[3].privacy.spent[""] == {after_two: 2}


def test_a_round_in_which_no_tensor_is_due_counts_too_because_earlier_results_decide_when_that_is():
    # Half of the traffic: nothing comes up in the first round of a window.
    strategy = strategy_of("fedlama-auto", num_rounds=4).model_copy(update={"share": 0.5})
    federation = private(strategy, randomness=SECRET, is_counted=True)
    outcomes = list(federate(federation, begun(federation)))
    assert [sum(plan.due != () for plan in federation.runtime.plans[: round + 1]) for round in range(4)] == [0, 1, 1, 2]
    assert [len(outcome.privacy.releases_of_draw) for outcome in outcomes] == [1, 2, 1, 2]
    [release] = outcomes[-1].privacy.spent[""]  # as if both rounds of a window had released tensors
    assert release.noise_multiplier == pytest.approx(0.5**0.5)


@dataclass(frozen=True)
class _Biased:
    """A plan with another cohort than the one that was drawn."""

    inner: FedAvg
    private: ClassVar[bool] = True
    due: tuple[str, ...] | None = SPEC.shared
    cohort: tuple[int, ...] = (0, 1, 2, 3)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def plan(self, *_: object) -> RoundPlan:
        names_of = dict.fromkeys(self.cohort, SPEC.shared)
        return RoundPlan(1, names_of, names_of, NUM_CLIENTS, due=self.due)


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (_Biased(strategy_of("fedavg")), r"asks the clients \[0, 1, 2, 3\], expected \[.*\], the Poisson sample of"),
        (_Biased(strategy_of("fedavg", "fixed"), due=None), "lacks `due`, which `privacy.unit = 'client'` needs"),
        (_Biased(strategy_of("fedavg", "fixed"), due=("third.scale",)), "asks for the tensor 'first.bias', which is"),
    ],
    ids=["another cohort", "nothing due", "more than is due"],
)
def test_a_plan_that_is_not_what_is_accounted_for_is_refused(strategy: object, problem: str):
    federation = replace(private(strategy_of("fedavg")), strategy=strategy)
    with pytest.raises(PluginError, match=problem):
        list(federate(federation, begun(private(strategy_of("fedavg")))))


# Clipping that adapts.


def test_the_clipping_norm_of_a_round_is_recorded_and_goes_on_in_the_state():
    federation = private(strategy_of("fedavg"), clipping="adaptive", count_noise=4.0, clipping_norm=3.0)
    outcomes = list(federate(federation, begun(federation)))
    assert outcomes[0].clipping_norm == 3.0
    for outcome, later in pairwise(outcomes):
        assert later.clipping_norm == outcome.privacy.clipping_norm
    assert len({outcome.clipping_norm for outcome in outcomes}) > 2
    [resumed] = islice(federate(federation, next_of(outcomes[2])), 1)
    assert resumed.clipping_norm == outcomes[3].clipping_norm
    assert_same_bits(resumed.params, outcomes[3].params)


def test_the_clipping_norm_comes_close_to_the_median_of_the_norms():
    # Norms around 0.2 * sqrt(21); C starts at 30 and moves by up to 10 % a round.
    federation = private(strategy_of("fedavg", num_rounds=80, clients_per_round=8), randomness=Seeded(0),
        clipping="adaptive", count_noise=1.0, clipping_norm=30.0)  # fmt: skip
    federation.runtime.scales = (0.1, 0.15, 0.2, 0.2, 0.2, 0.2, 0.25, 0.3)
    *_, last = federate(federation, begun(federation))
    assert 0.6 < last.clipping_norm / (0.2 * 21**0.5) < 1.6


# The budget.


def test_the_round_that_would_break_the_budget_is_not_begun_and_the_one_before_is_evaluated(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.WARNING, "fedelta")
    federation = private(strategy_of("fedavg", num_rounds=50), is_counted=True, max_epsilon=6.0)
    federation = replace(federation, evaluate_every=50, evaluate=lambda _: evaluated(1.0))
    outcomes = list(federate(federation, begun(federation)))
    guarantee = federation.privacy
    last = outcomes[-1]
    assert 0 < last.round < 50
    assert last.epsilons.pld <= 6.0
    after = guarantee.epsilon(guarantee.after(last.privacy, last.round + 1, ()).spent)
    assert after > 6.0
    assert [outcome.evaluation is not None for outcome in outcomes] == [False] * (last.round - 1) + [True]
    [message] = [record.getMessage() for record in caplog.records]
    assert message == (
        f"the privacy budget ends the run after round {last.round} of 50: epsilon is "
        f"{shown_epsilon(last.epsilons.pld)} of at most 6, and round {last.round + 1} would make it "
        f"{shown_epsilon(after)}."
    )
    # Nothing is left for a resumed run.
    assert list(federate(federation, next_of(last))) == []


def test_a_budget_that_suffices_ends_nothing(caplog: pytest.LogCaptureFixture):
    federation = private(strategy_of("fedavg", num_rounds=3), is_counted=True, max_epsilon=100.0)
    assert len(list(federate(federation, begun(federation)))) == 3
    assert not caplog.records


# What cannot be private.


def problems_of(federation: Federation, **changed: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        replace(federation, **changed)
    assert caught.value.hint is not None
    return caught.value.problems


@pytest.mark.parametrize("mean", [Weighted(), Median()])
def test_means_other_than_the_uniform_one_are_refused(mean: object):
    strategy = strategy_of("fedavg").model_copy(update={"mean": mean})
    [problem] = problems_of(private(strategy_of("fedavg")), strategy=strategy)
    assert problem.startswith(f"`strategy.mean.name` is {mean.name!r}, expected 'uniform' with `privacy.unit")


def test_a_strategy_that_does_not_say_that_it_is_private_is_refused():
    problems = problems_of(private(strategy_of("fedavg")), strategy=FedNova())
    assert problems[0].startswith("`strategy.name` is 'fednova', which does not say that it is private (`private`)")


def test_a_strategy_that_only_inherits_that_it_is_private_is_refused():
    class Nosy(FedAvg):
        def update(
            self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
        ) -> tuple[Params, State]:
            return add(params, combined.mean, len(plan.cohort)), state

    class Renamed(FedAvg):
        """Has FedAvg's methods, and what FedAvg says of them."""

    nosy, renamed = (kind(sampling="poisson", mean=Uniform()) for kind in (Nosy, Renamed))
    [problem] = problems_of(private(strategy_of("fedavg")), strategy=nosy)
    assert "does not say that it is private" in problem
    assert replace(private(strategy_of("fedavg")), strategy=renamed).central is not None


def test_statistics_that_travel_and_a_byte_budget_are_refused():
    spec = ParamSpec({**SPEC.tensors, "bn.running_mean": TensorSpec((3,), "first", trained=False)})
    [problem] = problems_of(private(strategy_of("fedavg")), spec=spec)
    assert problem.startswith("1 running statistics of batch norms travel, first `bn.running_mean`")
    [problem] = problems_of(private(strategy_of("fedavg")), byte_budget=1000)
    assert problem.startswith("`byte_budget_mib` ends a run when so many bytes have travelled, which tells how many")
