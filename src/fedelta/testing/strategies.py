"""Contracts of strategies, tried in the rounds of `rounds.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedelta.params import Params, ParamSpec, is_finite
from fedelta.record.checkpoint import Checkpoint, decode, encode
from fedelta.seeds import stream
from fedelta.strategies.base import Noised, State, Strategy, is_private
from fedelta.strategies.base import drawn as cohort_of
from fedelta.testing.contract import BreachError, copied, no_global_draws, require, require_same_bits, reread
from fedelta.testing.means import drawn
from fedelta.testing.rounds import CLIENTS, SPEC, Played, StrategyTrial


def a_plan_asks_as_many_distinct_clients_as_the_strategy_says(trial: StrategyTrial) -> None:
    """All of them exist, and each has a download and an upload."""
    is_poisson, size = trial.strategy.sampling == "poisson", min(trial.strategy.clients_per_round, len(CLIENTS))
    for number, played in enumerate(trial.rounds, start=1):
        plan = played.plan
        strangers = sorted({*plan.upload, *plan.download}.difference(CLIENTS))
        require(
            not strangers, f"The plan of round {number} names the clients {strangers}, and there is no such client."
        )
        one_sided = sorted(plan.upload.keys() ^ plan.download.keys())
        require(not one_sided, f"In round {number} the clients {one_sided} are in one direction only.")
        require(
            is_poisson or len(plan.cohort) == size,
            f"The cohort of round {number} is {plan.cohort}, expected {size} clients.",
        )
        counts = (plan.round, plan.num_clients)
        require(counts == (number, len(CLIENTS)), f"The plan of round {number} says (round, num_clients) = {counts}.")


def only_what_is_shared_travels_in_the_order_of_the_specification(trial: StrategyTrial) -> None:
    """In both directions, including the strategy's additional tensors."""
    for played in trial.rounds:
        for direction in (played.plan.download, played.plan.upload):
            for client, names in direction.items():
                expected = tuple(name for name in trial.wire.shared if name in names)
                problem = f"In round {played.plan.round} client {client} is to send or get {names}"
                require(isinstance(names, tuple) and names == expected, f"{problem}, expected {expected}.")


def every_shared_tensor_comes_up_at_some_time(trial: StrategyTrial) -> None:
    """Within a run; the server would never change a tensor that is not uploaded."""
    sent = {name for played in trial.rounds for names in played.plan.upload.values() for name in names}
    missing = [name for name in SPEC.shared if name not in sent]
    require(not missing, f"In {trial.strategy.num_rounds} rounds no client is asked for {missing}.")


def a_new_client_gets_all_that_it_needs_to_start(trial: StrategyTrial) -> None:
    """A client that was not in the previous cohort has only the tensors that never travel."""
    known: set[int] = set()
    for played in trial.rounds:
        for client in set(played.plan.cohort) - known:
            missing = [name for name in SPEC.shared if name not in played.plan.download.get(client, ())]
            require(not missing, f"In round {played.plan.round} client {client}, which is new, does not get {missing}.")
        known = set(played.plan.cohort)


def a_plan_follows_from_its_state_and_its_stream(trial: StrategyTrial) -> None:
    """Planning twice gives equal plans, the state does not change, and no global generator is used."""
    for played in trial.rounds:
        _, state = played.before
        before = copied(state)
        with no_global_draws():
            plans = [
                trial.strategy.plan(
                    state, played.plan.round, CLIENTS, SPEC, stream(0, "cohort", played.plan.round)
                )
                for _ in range(2)
            ]  # fmt: skip
        require(plans[0] == plans[1] == played.plan, f"Planned again, round {played.plan.round} is another.")
        require_same_bits(state, before, f"Planning round {played.plan.round} changes the state")


def update_changes_none_of_its_inputs(trial: StrategyTrial) -> None:
    """State, params, the mean and the single updates."""
    for played in trial.rounds:
        params, state = (copied(tensors) for tensors in played.before)
        mean = copied(played.combined.mean)
        deltas = [copied(update.delta) for update in played.combined.updates]
        again = _once_more(trial.strategy, played, params, state)
        problem = f"The update of round {played.plan.round} changes"
        require_same_bits(params, copied(played.before[0]), f"{problem} the params that it gets")
        require_same_bits(state, copied(played.before[1]), f"{problem} the state that it gets")
        require_same_bits(played.combined.mean, mean, f"{problem} the mean")
        for update, delta in zip(played.combined.updates, deltas, strict=True):
            require_same_bits(update.delta, delta, f"{problem} the update of client {update.client_id}")
        require_same_bits(again[0], played.after[0], f"Made again, the update of round {played.plan.round} is another")


def _once_more(strategy: Strategy, played: Played, params: Params, state: State) -> tuple[Params, State]:
    with no_global_draws():
        return strategy.update(state, params, played.plan, played.combined, SPEC)


def update_keeps_names_shapes_and_types(trial: StrategyTrial) -> None:
    """For the params; the state keeps its names, and all numbers stay finite."""
    for played in trial.rounds:
        (params, state), (later, new_state) = played.before, played.after
        problem = f"After round {played.plan.round}"
        require(list(later) == list(params), f"{problem} the params are {list(later)}, expected {list(params)}.")
        for name, tensor in later.items():
            kind, expected = _kind(tensor), _kind(params[name])
            require(kind == expected, f"{problem} `{name}` is {kind}, expected {expected}.")
            require(is_finite(tensor), f"{problem} `{name}` is not finite.")
        gone = sorted(state.keys() ^ new_state.keys())
        require(not gone, f"{problem} the state has gained or lost {gone}.")


def _kind(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def statistics_and_what_stays_with_clients_are_left_alone(trial: StrategyTrial) -> None:
    """The round loop averages statistics itself."""
    for name in (*SPEC.statistics, *SPEC.kept):
        tensor = trial.last.after[0].get(name)
        same = tensor is not None and torch.equal(tensor, trial.params[name])
        require(same, f"`{name}` was changed, which no update holds.")


def clients_that_do_not_move_leave_the_server_where_it_is(trial: StrategyTrial) -> None:
    """Bit by bit, from the first round on."""
    for played in trial.play(still=True):
        problem = f"In round {played.plan.round} no client moves, and the server does"
        require_same_bits(played.after[0], played.before[0], problem)


def the_server_moves_when_clients_do(trial: StrategyTrial) -> None:
    """Every trained and shared tensor changes during the run."""
    end = trial.last.after[0]
    trained = [name for name in SPEC.shared if SPEC.tensors[name].trained]
    still = [name for name in trained if torch.equal(end[name], trial.params[name])]
    require(not still, f"All clients move in all rounds, and {still} stay where they were.")


def ids_of_clients_do_not_matter(trial: StrategyTrial) -> None:
    """Up to rounding, the params are the same if clients have other ids and exchange data within a cohort."""
    for played, renamed in zip(trial.rounds, trial.play(renamed=True), strict=True):
        for name, tensor in played.after[0].items():
            same = torch.allclose(tensor, renamed.after[0][name], rtol=1e-5, atol=1e-6)
            require(same, f"In round {played.plan.round} `{name}` depends on which client sent what.")


def a_state_survives_a_checkpoint(trial: StrategyTrial) -> None:
    """A strategy and a state that were read from files continue with the same bits."""
    rounds = list(trial.rounds)
    middle = max(1, len(rounds) // 2)
    params, state = rounds[middle - 1].after
    saved = decode(encode(Checkpoint(middle, params, state, {}, "")))
    require_same_bits(saved.state, copied(state), "The state comes back from a checkpoint as another")
    later_rounds = list(trial.play(reread(trial.strategy), (saved.params, saved.state), first=middle + 1))
    for played, resumed in zip(rounds[middle:], later_rounds, strict=True):
        require(
            resumed.plan == played.plan, f"Resumed after round {middle}, round {played.plan.round} has another plan."
        )
        for tensors, expected in zip(resumed.after, played.after, strict=True):
            problem = f"Resumed after round {middle}, round {played.plan.round} gives other bits"
            require_same_bits(tensors, copied(expected), problem)


def the_state_has_names_of_its_own_and_holds_what_is_logged(trial: StrategyTrial) -> None:
    """Its names differ from those of the model's tensors; logged tensors have one number per group."""
    _, state = trial.last.after
    for name, value in state.items():
        require(isinstance(value, Tensor), f"`{name}` of the state is {type(value).__name__}, expected a tensor.")
        require(name not in SPEC, f"`{name}` of the state has the name of a tensor of the model.")
    for name in trial.strategy.logged:
        require(name in state, f"`logged` names {name!r}, and the state holds {sorted(state)}.")
        shape, groups = tuple(state[name].shape), len(SPEC.sizes)
        require(shape == (groups,), f"`{name}` is logged and has the shape {shape}, expected a number for each group.")


def a_client_that_is_lost_is_no_error(trial: StrategyTrial) -> None:
    """One client of each cohort never replies, if the mean allows it."""
    fewest = max(trial.strategy.min_replies, trial.strategy.mean.min_values)
    if trial.strategy.clients_per_round <= fewest:
        return
    state = trial.strategy.init(copied(trial.params), SPEC)
    plan = trial.strategy.plan(state, 1, CLIENTS, SPEC, stream(0, "cohort", 1))
    for played in trial.play(lost={plan.cohort[0]}):
        broken = [name for name, tensor in played.after[0].items() if not is_finite(tensor)]
        require(not broken, f"With a client lost in round {played.plan.round}, {broken} are not finite.")


def a_tensor_that_too_few_clients_sent_is_no_error(trial: StrategyTrial) -> None:
    """It is absent from the mean, as with robust means and weak devices (`[exits]`)."""
    for played in trial.rounds:
        (params, state), sent = played.before, list(played.combined.mean)
        if not sent:
            continue
        mean = {name: tensor for name, tensor in played.combined.mean.items() if name != sent[0]}
        without = replace(played.combined, mean=mean)
        later, _ = trial.strategy.update(state, params, played.plan, without, SPEC)
        require(list(later) == list(params), f"Without `{sent[0]}` in the mean the params are {list(later)}.")


def what_clients_remember_fits_the_specification(trial: StrategyTrial) -> None:
    """For strategies with a client's side (`Steering`)."""
    steering = trial.strategy.steering
    if steering is None:
        return
    names = trial.wire.names
    require(names[: len(SPEC)] == SPEC.names, f"`extend` gives {list(names)}, expected the specification in front.")
    beside = names[len(SPEC) :]
    untrained = all(not trial.wire.tensors[name].trained for name in beside)
    require(untrained, "What travels beside the model is marked as trained, and no gradient reaches it.")
    remembered, received = steering.start(SPEC), drawn(trial.wire, trial.wire.shared, "download")
    before = copied(remembered)
    trained = {name for name in SPEC.shared if SPEC.tensors[name].trained}
    offset = steering.offset(received, remembered)
    _require_shapes("offset", offset, SPEC, trained)
    delta = drawn(SPEC, SPEC.shared, "delta")
    sent = steering.beside(received, delta, 0.1)
    _require_shapes("beside", sent, trial.wire, set(beside))
    require(sent.keys() == set(beside), f"`beside` gives {sorted(sent)}, expected {sorted(beside)}.")
    later = steering.remember(remembered, sent)
    require(later.keys() == remembered.keys(), f"`remember` gives {sorted(later)}, expected {sorted(remembered)}.")
    require_same_bits(remembered, before, "`remember` changes what it gets")


def _require_shapes(what: str, tensors: Mapping[str, Tensor], spec: ParamSpec, allowed: Collection[str]) -> None:
    for name, tensor in tensors.items():
        require(name in allowed, f"`{what}` gives `{name}`, expected some of {sorted(allowed)}.")
        shape, expected = tuple(tensor.shape), spec.tensors[name].shape
        require(shape == expected, f"`{what}` gives `{name}` the shape {shape}, expected {expected}.")


def a_budget_gives_a_strategy_that_keeps_to_its_rounds(trial: StrategyTrial) -> None:
    """`within` with a generous budget changes neither the length of the run nor the size of cohorts."""
    planned = trial.strategy.within(1e12, SPEC, len(CLIENTS), lambda names: 100 + len(names))
    lengths = (type(planned), planned.num_rounds, planned.clients_per_round)
    expected = (type(trial.strategy), trial.strategy.num_rounds, trial.strategy.clients_per_round)
    if lengths != expected:
        raise BreachError(f"`within` gives (type, num_rounds, clients_per_round) = {lengths}, expected {expected}.")


def nothing_that_comes_up_is_looked_at_unless_it_is_said(trial: StrategyTrial) -> None:
    """`reads` is "sum" or "each"; with "sum" the strategy gets no single updates."""
    strategy = trial.strategy
    require(strategy.reads in ("sum", "each"), f"`reads` is {strategy.reads!r}, expected 'sum' or 'each'.")
    refused = strategy.reads == "each" and strategy.mean.only_sums
    require(not refused, "It reads each update, and its own mean gives only sums.")


def a_private_strategy_knows_only_the_noisy_mean(trial: StrategyTrial) -> None:
    """If it says that it is `private`, params and what is due next do not depend on who was there or replied."""
    strategy = trial.strategy
    if not is_private(strategy):
        return
    for played in trial.rounds:
        round, mean = played.plan.round, played.combined.mean
        require(played.plan.due is not None, f"The plan of round {round} does not say what is `due`.")
        groups = dict.fromkeys((SPEC.tensors[name].group for name in mean if name in SPEC), 1.0)
        noised = Noised(dict.fromkeys(mean, 0.0), groups if played.plan.asks_squares else {})
        of_some = replace(played.combined, updates=(), noised=noised)
        of_nobody = replace(of_some, client_ids=())
        empty = replace(played.plan, download={}, upload={})
        (params, state), (others, other_state) = (
            strategy.update(copied(played.before[1]), copied(played.before[0]), plan, combined, SPEC)
            for plan, combined in ((played.plan, of_some), (empty, of_nobody))
        )
        require_same_bits(params, copied(others), f"In round {round} the params depend on who is in the cohort")
        due, other_due = (
            strategy.plan(later, round + 1, CLIENTS, SPEC, stream(0, "cohort", round + 1)).due
            for later in (state, other_state)
        )
        require(due == other_due, f"What is due after round {round} depends on who is in the cohort.")


def a_private_strategy_asks_the_clients_that_are_drawn(trial: StrategyTrial) -> None:
    """With `sampling` = "poisson", those that `fedelta.strategies.base.drawn` gives for the generator of the plan."""
    strategy = trial.strategy
    if not is_private(strategy) or strategy.sampling != "poisson":
        return
    state = strategy.init(copied(trial.params), SPEC)
    for number in range(5):
        plan = strategy.plan(state, 1, CLIENTS, SPEC, stream(number))
        expected = tuple(cohort_of(strategy.clients_per_round, 1, CLIENTS, stream(number), "poisson"))
        require(plan.cohort == expected, f"The cohort is {plan.cohort}, expected {expected}, which `drawn` gives.")


CHECKS: tuple[Callable[[StrategyTrial], None], ...] = (
    nothing_that_comes_up_is_looked_at_unless_it_is_said,
    a_plan_asks_as_many_distinct_clients_as_the_strategy_says,
    only_what_is_shared_travels_in_the_order_of_the_specification,
    every_shared_tensor_comes_up_at_some_time,
    a_new_client_gets_all_that_it_needs_to_start,
    a_plan_follows_from_its_state_and_its_stream,
    update_changes_none_of_its_inputs,
    update_keeps_names_shapes_and_types,
    statistics_and_what_stays_with_clients_are_left_alone,
    clients_that_do_not_move_leave_the_server_where_it_is,
    the_server_moves_when_clients_do,
    ids_of_clients_do_not_matter,
    the_state_has_names_of_its_own_and_holds_what_is_logged,
    a_state_survives_a_checkpoint,
    a_client_that_is_lost_is_no_error,
    a_tensor_that_too_few_clients_sent_is_no_error,
    what_clients_remember_fits_the_specification,
    a_budget_gives_a_strategy_that_keeps_to_its_rounds,
    a_private_strategy_knows_only_the_noisy_mean,
    a_private_strategy_asks_the_clients_that_are_drawn,
)
