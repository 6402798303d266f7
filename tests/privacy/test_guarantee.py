"""What each round releases, added up from round to round, and the round that may not begin."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedelta.privacy.accounting import Epsilons, epsilons
from fedelta.privacy.guarantee import Guarantee, Work
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import EVERYONE, PrivacyState, Release, grown

CLIENT = Privacy(unit="client", noise_multiplier=1.0, target_delta=1e-3)
EXAMPLE = Privacy(unit="example", noise_multiplier=2.0, target_delta=1e-3)
LOCAL = Privacy(unit="local", noise_multiplier=3.0, target_delta=1e-3)
STANDARD = Guarantee(CLIENT, 1.0, cohort_rate=8 / 64)


def after_rounds(guarantee: Guarantee, cohorts: Sequence[Collection[int]]) -> PrivacyState:
    state = PrivacyState()
    for round, cohort in enumerate(cohorts, 1):
        state = guarantee.after(state, round, cohort)
    return state


def test_a_round_releases_one_gaussian_about_every_client_whoever_was_in_the_cohort():
    # Full, empty, of any size: that it was sampled is what counts.
    spent = after_rounds(STANDARD, [{1, 2}, (), {5}, range(64)]).spent
    assert spent == {EVERYONE: {Release(1.0, 0.125): 4}}


def test_thirty_rounds_have_the_reference_epsilon():
    spent = after_rounds(STANDARD, [()] * 30).spent
    assert STANDARD.epsilons(spent) == pytest.approx(Epsilons(3.253941, 3.983596), abs=1e-3)


def test_cohorts_that_are_not_counted_on_have_no_amplification():
    fixed = Guarantee(CLIENT, 1.0)
    assert fixed.epsilons(after_rounds(fixed, [()] * 30).spent) == pytest.approx(Epsilons(31.136, 33.723), abs=1e-3)


def test_the_rounds_of_one_cohort_are_joined_before_sampling():
    # The fifth round is the second of the second window: (1 + 1 + 1)^-1/2 and (1 + 1)^-1/2.
    guarantee = Guarantee(CLIENT, 1.0, cohort_rate=0.125, cohort_rounds=3)
    releases = after_rounds(guarantee, [()] * 5).spent[EVERYONE]
    assert sorted(releases) == [pytest.approx((3**-0.5, 0.125)), pytest.approx((2**-0.5, 0.125))]
    assert set(releases.values()) == {1}


def test_a_window_of_one_round_is_no_window():
    cohorts = [()] * 4
    single = Guarantee(CLIENT, 1.0, cohort_rate=0.125, cohort_rounds=1)
    assert after_rounds(single, cohorts).spent == after_rounds(STANDARD, cohorts).spent


def test_joined_rounds_have_more_epsilon_than_rounds_with_cohorts_of_their_own():
    windows = Guarantee(CLIENT, 1.0, cohort_rate=0.125, cohort_rounds=3)
    joined, apart = (guarantee.epsilon(after_rounds(guarantee, [()] * 6).spent) for guarantee in (windows, STANDARD))
    assert joined is not None
    assert apart is not None
    assert joined > 1.5 * apart


def test_examples_are_counted_by_client_and_only_where_it_was_seen():
    guarantee = Guarantee(EXAMPLE, 2.0, work={1: Work(0.5, 4), 2: Work(0.25, 8), 3: Work(1.0, 1)})
    spent = after_rounds(guarantee, [{1, 2}, {2}, ()]).spent
    assert spent == {"1": {Release(2.0, 0.5): 4}, "2": {Release(2.0, 0.25): 16}}


def test_the_epsilon_of_a_run_is_that_of_its_least_protected_client():
    guarantee = Guarantee(EXAMPLE, 2.0, work={1: Work(0.5, 4), 2: Work(0.25, 8)})
    spent = after_rounds(guarantee, [{1, 2}, {2}, {2}]).spent
    single = [epsilons(releases, 1e-3) for releases in spent.values()]
    assert guarantee.epsilons(spent) == Epsilons(max(e.pld for e in single), max(e.rdp for e in single))


def test_a_local_upload_is_counted_with_half_the_noise():
    # Any delta may become any other one: they differ by 2 C, so noise of 3 C is 1.5 times that.
    guarantee = Guarantee(LOCAL, 3.0)
    assert after_rounds(guarantee, [{4}, {4, 7}]).spent == {"4": {Release(1.5): 2}, "7": {Release(1.5): 1}}
    # Two Gaussians with 1.5: 14.1 in the accountant's other convention would be for twice the noise.
    expected = epsilons({Release(1.5 / math.sqrt(2)): 1}, 1e-3)
    assert guarantee.epsilons(after_rounds(guarantee, [{4}, {4}]).spent) == pytest.approx(expected, rel=1e-9)


def test_the_round_that_would_exceed_the_limit_is_not_allowed():
    # Noise 1, a budget of 5: 68 rounds have 4.978, 69 have 5.018.
    guarantee = Guarantee(CLIENT.model_copy(update={"max_epsilon": 5.0}), 1.0, cohort_rate=0.125)
    assert guarantee.limit == 5.0
    assert guarantee.allows(after_rounds(guarantee, [()] * 68).spent)
    assert not guarantee.allows(after_rounds(guarantee, [()] * 69).spent)


def test_the_limit_holds_for_the_accountant_that_is_reported():
    by_rdp = CLIENT.model_copy(update={"max_epsilon": 5.0, "accountant": "rdp"})
    guarantee = Guarantee(by_rdp, 1.0, cohort_rate=0.125)
    spent = after_rounds(guarantee, [()] * 68).spent  # RDP 5.913
    assert guarantee.epsilon(spent) == pytest.approx(5.913, abs=1e-3)
    assert not guarantee.allows(spent)


def test_without_a_limit_every_round_is_allowed():
    assert STANDARD.limit is None
    assert STANDARD.allows({EVERYONE: {Release(0.1): 10_000}})


def test_noise_that_guarantees_nothing_has_no_epsilon():
    settings = Privacy(unit="example", mechanism="fedpeft-code", target_epsilon=5.0)
    guarantee = Guarantee(settings, 3.4, work={0: Work(0.5, 4)})
    spent = after_rounds(guarantee, [{0}]).spent
    assert guarantee.epsilons(spent) is None
    assert guarantee.epsilon(spent) is None
    assert guarantee.allows(spent)


def test_a_release_that_is_taken_back_leaves_nothing():
    release = Release(1.0, 0.5)
    before = {"1": {release: 2}}
    assert grown(before, {"1": (release, -2), "2": (release, 1)}) == {"1": {}, "2": {release: 1}}
    assert before == {"1": {release: 2}}


releases = st.dictionaries(
    st.builds(Release, st.floats(1e-3, 1e3), st.floats(1e-6, 1)), st.integers(1, 10**6), max_size=3
)
states = st.builds(
    PrivacyState,
    spent=st.dictionaries(st.sampled_from([EVERYONE, "0", "17", "3"]), releases),
    clipping_norm=st.none() | st.floats(1e-6, 1e6),
    releases_of_draw=st.lists(st.floats(1e-3, 1e3), max_size=4).map(tuple),
)


@given(states)
def test_a_state_survives_json(state: PrivacyState):
    assert PrivacyState.from_record(json.loads(json.dumps(state.as_record()))) == state


@given(
    st.lists(st.sets(st.integers(0, 3)), max_size=8), st.integers(0, 8), st.integers(1, 4), st.sampled_from([0, 1, 2])
)
def test_a_run_that_is_resumed_has_released_what_one_that_is_not_has(
    cohorts: list[set[int]], stop: int, cohort_rounds: int, unit: int
):
    work = {client_id: Work(1 / (client_id + 1), client_id + 1) for client_id in range(4)}
    settings = (CLIENT, EXAMPLE, LOCAL)[unit]
    guarantee = Guarantee(settings, 1.0, cohort_rate=0.5, cohort_rounds=cohort_rounds, work=work)
    state = PrivacyState.from_record(json.loads(json.dumps(after_rounds(guarantee, cohorts[:stop]).as_record())))
    for round, cohort in enumerate(cohorts[stop:], len(cohorts[:stop]) + 1):
        state = guarantee.after(state, round, cohort)
    assert state == after_rounds(guarantee, cohorts)


@given(st.lists(st.sets(st.integers(0, 3)), max_size=8))
def test_examples_of_all_rounds_are_those_of_each_round_added_up(cohorts: list[set[int]]):
    work = {client_id: Work(1 / (client_id + 1), client_id + 2) for client_id in range(4)}
    guarantee = Guarantee(EXAMPLE, 1.0, work=work)
    participations = {client_id: sum(client_id in cohort for cohort in cohorts) for client_id in work}
    expected = {
        str(client_id): {Release(1.0, work[client_id].rate): times * work[client_id].num_steps}
        for client_id, times in participations.items()
        if times
    }
    assert after_rounds(guarantee, cohorts).spent == expected
