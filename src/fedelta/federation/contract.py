"""Checks the results of a plug-in's strategy or mean in each round, so that errors name the plug-in.

The contract tests check the built-in ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor

from fedelta.errors import PluginError
from fedelta.federation.base import Federation
from fedelta.params import Params, ParamSpec, is_finite
from fedelta.plugins import called, wrong_result
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, Strategy, drawn


def started(strategy: Strategy, params: Params, spec: ParamSpec) -> State:
    """`Strategy.init`.

    Raises:
        PluginError: it gives something else than tensors by name.
    """
    state: object = strategy.init(params, spec)
    if not isinstance(state, dict):
        raise wrong_result(strategy, "init", type(state).__name__, "tensors by name, `{}` for none")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise wrong_result(strategy, "init", f"{type(tensor).__name__} as {name!r}", "tensors by name")
    return state


def check_plan(federation: Federation, plan: object, state: State, round: int) -> None:
    """Raises unless a plan names clients of the federation and tensors of the specification or the state.

    Raises:
        PluginError: the plan is invalid.
    """
    if not isinstance(plan, RoundPlan):
        raise _broken(federation.strategy, round, "plan", [f"is {type(plan).__name__}, expected a `RoundPlan`"])
    known_names = {**dict.fromkeys(federation.wire), **state}
    clients, may_be_empty = federation.clients.numbers, federation.strategy.sampling == "poisson"
    if problems := list(_plan_problems(plan, round, clients, known_names, may_be_empty=may_be_empty)):
        raise _broken(federation.strategy, round, "plan", problems)


def check_private_plan(federation: Federation, plan: RoundPlan) -> None:
    """Raises unless a plan has what client-level privacy counts on: the cohort that was drawn, and what is due.

    Raises:
        PluginError: a strategy that says that it samples clients by "poisson", or that they take turns, asks others;
            the plan does not say what is due; or a client is to send something else.
    """
    strategy, round = federation.strategy, plan.round
    if plan.due is None:
        raise _broken(strategy, round, "plan", ["lacks `due`, which `privacy.unit = 'client'` needs"])
    if foreign := sorted({name for names in plan.upload.values() for name in names}.difference(plan.due)):
        raise _broken(strategy, round, "plan", [f"asks for the tensor {foreign[0]!r}, which is not in `due`"])
    if strategy.sampling == "fixed":
        return
    number = (round - 1) // strategy.cohort_rounds + 1
    draws = federation.draws((number - 1) * strategy.cohort_rounds + 1)
    expected = drawn(strategy.clients_per_round, number, federation.in_order, draws, strategy.sampling)
    if list(plan.cohort) != expected:
        of = "the Poisson sample of `generator`" if strategy.sampling == "poisson" else "whose turn it is (`turn`)"
        problem = f"asks the clients {list(plan.cohort)}, expected {expected}, {of}"
        raise _broken(strategy, round, "plan", [problem])


def check_mean(federation: Federation, mean: object, names: frozenset[str], round: int) -> None:
    """Raises unless the result of a mean's `finish` is finite tensors with names and shapes of the specification.

    Args:
        federation: with the mean.
        mean: result of `finish`.
        names: tensors that enough clients sent; each of them has a mean.
        round: number of the round, for the message.

    Raises:
        PluginError: the result is invalid.
    """
    if not isinstance(mean, Mapping):
        raise _broken(federation.aggregation, round, "finish", [f"is {type(mean).__name__}, expected tensors by name"])
    for name, tensor in mean.items():
        expected = federation.wire.tensors[name].shape if name in federation.wire else None
        if expected is None or not isinstance(tensor, Tensor) or tuple(tensor.shape) != expected:
            problem = f"has {_told(tensor)} as `{name}`, expected {expected or 'no tensor of that name'}"
            raise _broken(federation.aggregation, round, "finish", [problem])
        if not is_finite(tensor):
            problem = f"holds NaN or infinity in `{name}`, although all deltas are finite"
            raise _broken(federation.aggregation, round, "finish", [problem])
    if missing := sorted(names - mean.keys()):
        problem = f"lacks {len(missing)} of {len(names)} tensors that clients sent, first `{missing[0]}`"
        raise _broken(federation.aggregation, round, "finish", [problem])


def check_update(
    federation: Federation, before: tuple[State, Params], result: object, combined: CombinedUpdates, round: int
) -> None:
    """Raises unless an update keeps the names, shapes and types of the params and the names of the state.

    Args:
        federation: with the strategy.
        before: state and params before the update.
        result: of `Strategy.update`.
        combined: input of the update.
        round: number of the round, for the message.

    Raises:
        PluginError: the update does not, or is not finite although all deltas are.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Mapping) for part in result)):
        problem = f"is {type(result).__name__}, expected `(params, state)`"
        raise _broken(federation.strategy, round, "update", [problem])
    (state, params), (after, later) = before, result
    problems = [*_name_problems("params", params, after), *_name_problems("state", state, later)]
    problems += _tensor_problems(params, after)
    if not problems and all(map(is_finite, combined.mean.values())):
        infinite = [name for name, tensor in {**later, **after}.items() if not is_finite(tensor)]
        problems += [f"holds NaN or infinity in `{infinite[0]}`, although all deltas are finite"] if infinite else []
    if problems:
        raise _broken(federation.strategy, round, "update", problems)


def _broken(method: object, round: int, function: str, problems: Sequence[str]) -> PluginError:
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return PluginError(f"round {round}, {called(method)}: what `{function}` returned {problems[0]}{more}.")


def _plan_problems(
    plan: RoundPlan, round: int, clients: Collection[int], known: Mapping[str, object], *, may_be_empty: bool
) -> Iterator[str]:
    if plan.round != round:
        yield f"is for round {plan.round}, expected round {round}"
    if plan.upload.keys() != plan.download.keys() or not (plan.upload or may_be_empty):
        yield f"asks clients {sorted(plan.upload)} and sends to {sorted(plan.download)}, expected the same and not none"
    if foreign := sorted(plan.upload.keys() - set(clients)):
        yield f"asks client {foreign[0]}, expected clients of the federation"
    for names in {*plan.upload.values(), *plan.download.values(), plan.due or ()}:
        if unknown := [name for name in names if name not in known]:
            yield f"names the tensor {unknown[0]!r}, expected names of the specification or of the state"


def _name_problems(what: str, before: Params, after: Mapping[str, object]) -> Iterator[str]:
    if missing := [name for name in before if name not in after]:
        yield f"lacks `{missing[0]}` of the {what}"
    if foreign := [name for name in after if name not in before]:
        yield f"has `{foreign[0]}` in the {what}, which was not there before"
    for name, value in after.items():
        if not isinstance(value, Tensor):
            yield f"has {_told(value)} as `{name}` of the {what}, expected a tensor"


def _tensor_problems(before: Params, after: Mapping[str, object]) -> Iterator[str]:
    for name, tensor in before.items():
        result = after.get(name, tensor)
        if isinstance(result, Tensor) and (result.shape, result.dtype) != (tensor.shape, tensor.dtype):
            yield f"has {_told(result)} as `{name}` of the params, expected {_told(tensor)}"


def _told(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__
