"""Properties of the strategies in windows, whatever their lengths are: nothing is forgotten, and budgets are kept."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.windows import Windows, place
from fedelta.testing.rounds import SPEC, StrategyTrial

ROUNDS = st.fixed_dictionaries({
    "phi": st.integers(1, 6), "num_rounds": st.integers(1, 13), "clients_per_round": st.integers(2, 4),
    "tau": st.integers(1, 3),
})  # fmt: skip


def sharing(rounds: dict[str, int], fraction: float) -> FedLamaAuto:
    """With a share between the least that there can be and everything."""
    least = -(-rounds["num_rounds"] // rounds["phi"]) / rounds["num_rounds"]
    return FedLamaAuto(**rounds, share=least + fraction * (1 - least))


STRATEGIES = st.one_of(
    st.builds(lambda rounds, end: FedLama(**rounds, crossing=end), ROUNDS, st.sampled_from(["included", "excluded"])),
    st.builds(sharing, ROUNDS, st.floats(0, 1)),
    st.builds(lambda rounds, most: FedLamaAuto(**rounds, tolerance=most), ROUNDS, st.floats(0.01, 2)),
)
SIZES = torch.tensor(list(SPEC.sizes.values()))


@settings(max_examples=25)
@given(strategy=STRATEGIES, lost=st.sets(st.sampled_from((2, 3, 5, 7, 11, 13)), max_size=2))
def test_every_group_comes_up_in_every_window_and_everything_at_its_end(strategy: Windows, lost: set[int]):
    in_window: set[str] = set()
    for played in StrategyTrial(strategy).play(lost=lost if strategy.clients_per_round > 2 else ()):
        at, (_, before) = place(strategy, played.plan.round), played.before
        [names] = set(played.plan.upload.values())  # the same for all, so that every mean is over the same clients
        groups = {SPEC.tensors[name].group for name in names}
        due = [at.position % interval == 0 or at.is_last for interval in before["interval_rounds"].tolist()]
        assert groups == {group for group, is_due in zip(SPEC.sizes, due, strict=True) if is_due}
        assert set(names) == set(SPEC.shared_of(groups))  # a group travels as a whole, its statistics too
        in_window |= set(names)
        if at.is_last:
            assert in_window == set(SPEC.shared)
            in_window = set()
    assert not in_window  # the run ends with a window


@settings(max_examples=25)
@given(strategy=STRATEGIES)
def test_intervals_divide_the_window_and_counts_are_of_what_came_up(strategy: Windows):
    counts = dict.fromkeys(SPEC.sizes, 0)
    for played in StrategyTrial(strategy).play():
        (_, state), sent = played.after, {name for update in played.combined.updates for name in update.delta}
        for group in {SPEC.tensors[name].group for name in sent}:
            counts[group] += 1
        assert all(strategy.phi % interval == 0 for interval in state["interval_rounds"].tolist())
        assert state["num_syncs"].tolist() == list(counts.values())
    if isinstance(strategy, FedLamaAuto) and strategy.share is not None:
        spent = torch.tensor(list(counts.values())) @ SIZES
        assert float(spent) <= strategy.share * strategy.num_rounds * float(SIZES.sum()) * (1 + 1e-9)


@settings(max_examples=15)
@given(strategy=STRATEGIES)
def test_a_client_of_the_cohort_gets_what_it_has_not_seen(strategy: Windows):
    # Of each client of a window, the round in which it last saw each tensor; a new cohort has seen nothing.
    seen: dict[int, dict[str, int]] = {}
    changed = dict.fromkeys(SPEC.shared, 0)
    for played in StrategyTrial(strategy).play():
        if place(strategy, played.plan.round).position == 1:
            seen = {}
        for client, names in played.plan.download.items():
            known = seen.setdefault(client, {})
            stale = {name for name in SPEC.shared if changed[name] > known.get(name, -1)}
            assert stale <= set(names)
            known.update(dict.fromkeys(SPEC.shared, played.plan.round - 1))
        [up] = set(played.plan.upload.values())
        changed |= dict.fromkeys(up, played.plan.round)
