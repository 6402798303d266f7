"""Contracts of tuning methods, tried on small models that the method fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import safetensors.torch
import torch
from torch import Tensor

from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec
from fedelta.testing.contract import BreachError, no_global_draws, require, require_same_bits, reread, same_bits
from fedelta.testing.small import small_inputs, small_model
from fedelta.testing.trials import (
    CHANGED,
    Applied,
    TuningTrial,
    drawn_values,
    put,
    trained_in_a_plain_loop,
    values_of,
)

_RTOL, _ATOL = 1e-4, 1e-6  # float32: about ten steps, with sums in another order


def apply_gives_a_specification_of_at_least_one_tensor(trial: TuningTrial) -> None:
    """A `ParamSpec`, as made by `specification`."""
    spec = trial.start.spec
    if not isinstance(spec, ParamSpec):
        raise BreachError(f"It gives {type(spec).__name__}; return what `specification` returns.")
    require(len(spec) > 0, "Nothing is tuned.")


def every_tensor_of_the_specification_is_a_parameter_with_or_without_a_lane_axis(trial: TuningTrial) -> None:
    """Of shape [lanes, *shape], or [*shape] for the model's own tensors in one lane."""
    backbone, lanes, spec = trial.start.backbone, trial.start.lanes, trial.start.spec
    parameters = dict(backbone.module.named_parameters())
    for name, tensor in spec.tensors.items():
        if name not in parameters:
            raise BreachError(f"The edited model has no parameter `{name}`.")
        shape = tuple(parameters[name].shape)
        fits = shape == (lanes.num, *tensor.shape) or (lanes.num == 1 and shape == tensor.shape)
        require(
            fits,
            f"`{name}` has the shape {shape} in a model with {lanes.num} lanes, "
            f"expected {(lanes.num, *tensor.shape)} as the specification says {tensor.shape}.",
        )


def what_asks_for_a_gradient_is_what_the_specification_trains(trial: TuningTrial) -> None:
    """All other parameters are frozen."""
    asking = {name for name, parameter in trial.start.backbone.module.named_parameters() if parameter.requires_grad}
    trained = {name for name, tensor in trial.start.spec.tensors.items() if tensor.trained}
    loose, frozen = sorted(asking - trained), sorted(trained - asking)
    require(not loose, f"{len(loose)} parameters are not frozen and not specified, first `{(loose or [''])[0]}`.")
    require(not frozen, f"{len(frozen)} tensors are specified and frozen, first `{(frozen or [''])[0]}`.")


def names_come_in_the_order_of_the_model(trial: TuningTrial) -> None:
    """It is the order on the wire, and has to be the same everywhere."""
    spec = trial.start.spec
    ordered = [name for name, _ in trial.start.backbone.module.named_parameters() if name in spec]
    require(list(spec) == ordered, f"They are {list(spec)}, expected {ordered}; `specification` sorts them.")


def a_group_is_named_after_the_layer_of_one_of_its_tensors(trial: TuningTrial) -> None:
    """The ledger and the page show groups as layers of the model."""
    for group, names in trial.start.spec.groups.items():
        require(any(name.startswith(group) for name in names), f"The group {group!r} holds {list(names)}.")


def the_specification_does_not_depend_on_the_number_of_lanes(trial: TuningTrial) -> None:
    """A site with one lane and a simulation with many exchange the same tensors."""
    alone = trial.applied(num_lanes=1).spec
    require(alone.tensors == trial.start.spec.tensors, f"With one lane it is {_shown(alone)}.")


def a_model_without_memory_has_the_same_specification(trial: TuningTrial) -> None:
    """`fedelta inspect` counts on the device "meta"."""
    counted = trial.applied(num_lanes=1, device="meta")
    require(counted.spec.tensors == trial.start.spec.tensors, f"There it is {_shown(counted.spec)}.")
    devices = {parameter.device.type for parameter in counted.backbone.module.parameters()}
    require(devices == {"meta"}, f"It makes parameters on {sorted(devices - {'meta'})}; use the device of a layer.")


def it_draws_from_the_generator_that_it_gets(trial: TuningTrial) -> None:
    """Equal seeds give equal bits, and no global generator is used."""
    with no_global_draws():
        again = trial.applied()
    values, expected = (values_of(applied) for applied in (again, trial.start))
    require_same_bits(values, expected, "Applied twice with the same generator, it starts with other values")


def every_lane_starts_with_the_same_values(trial: TuningTrial) -> None:
    """Clients start from the server's tensors in any lane."""
    for name, value in values_of(trial.start).items():
        if value.shape != trial.start.spec.tensors[name].shape:
            require(bool((value == value[:1]).all()), f"The lanes of `{name}` start with different values.")


def the_model_starts_with_the_answers_that_it_had(trial: TuningTrial) -> None:
    """In every lane, if the method has `starts_as_base`."""
    if not trial.method.starts_as_base:
        return
    inputs = small_inputs(trial.family, 2 * trial.start.lanes.num).tensors
    problem = "It says `starts_as_base`, but answers change when it is applied"
    with torch.no_grad():
        tuned, base = trial.start.backbone.logits(dict(inputs)), small_model(trial.family).logits(dict(inputs))
    _require_close(tuned, base, problem, rtol=1e-4, atol=1e-5)


def clients_can_train_in_lanes_without_mixing(trial: TuningTrial) -> None:
    """Otherwise the engine would train one client after the other."""
    require(not trial.trainer.notes, "; ".join(trial.trainer.notes))


def lanes_give_what_a_plain_loop_gives_client_after_client(trial: TuningTrial) -> None:
    """The plain loop uses torch's SGD on a model with one lane."""
    plain = trained_in_a_plain_loop(trial)
    for client, delta in trial.deltas.items():
        for name, tensor in delta.items():
            problem = f"The delta of client {client} for `{name}` differs between lanes and a plain loop"
            _require_close(tensor, plain[client][name].reshape(tensor.shape), problem)
        moved = max(float(tensor.abs().max()) for tensor in delta.values())
        require(moved > 1e-3, f"Training moves nothing of client {client}.")


def the_order_of_clients_does_not_matter(trial: TuningTrial) -> None:
    """Up to rounding, because they share lanes with other clients."""
    deltas, backward = trial.deltas, trial.trained(trial.trainer, backward=True)
    for client, delta in deltas.items():
        for name, tensor in delta.items():
            problem = f"The delta of client {client} for `{name}` depends on the order of clients"
            _require_close(backward[client][name], tensor, problem)


def a_used_engine_gives_the_same_bits_as_a_fresh_one(trial: TuningTrial) -> None:
    """Earlier rounds must leave nothing in the model."""
    expected = trial.deltas
    again = trial.trained(trial.trainer)
    for client, delta in expected.items():
        require_same_bits(again[client], delta, f"Trained once more, client {client} has another delta")


def the_data_of_one_client_leave_no_trace_in_another(trial: TuningTrial) -> None:
    """If one client has other data, all others get the same bits."""
    deltas = trial.deltas
    changed = trial.trained(trial.trainer, changed=True)
    for client, delta in deltas.items():
        if client == CHANGED:
            same = all(same_bits(changed[client][name], tensor) for name, tensor in delta.items())
            require(not same, f"Client {client} has the same delta with other data.")
        else:
            require_same_bits(changed[client], delta, f"With other data of client {CHANGED}, client {client} differs")


def training_changes_nothing_but_what_is_specified(trial: TuningTrial) -> None:
    """Frozen parameters and buffers do not change."""
    trial.deltas  # noqa: B018  trained here
    before, after = (_frozen(applied) for applied in (trial.start, trial.model))
    require_same_bits(after, before, "Training changes what is not tuned")


def in_half_precision_a_step_goes_nearly_the_same_way(trial: TuningTrial) -> None:
    """The delta of one step of one client has nearly the direction of that in float32."""
    steps = []
    for dtype in ("float32", "bfloat16"):
        client = ClientSettings(local_steps=1, batch_size=9, optimizer=Sgd(momentum=0.0))
        engine = trial.engine(trial.applied(num_lanes=1), client, dtype)
        delta = trial.trained(engine, (9,))[0]
        steps.append(torch.cat([tensor.flatten() for tensor in delta.values()]))
        loss = engine.evaluator.evaluate(engine.bank.read(0), trial.data).measures["loss_nats"]
        require(0 < loss < float("inf"), f"In {dtype} the loss of an evaluation is {loss}.")
    cosine = float(torch.nn.functional.cosine_similarity(steps[0], steps[1], dim=0))
    require(cosine > 0.98, f"Between float32 and bfloat16 autocast the cosine is {cosine:.3f}, expected above 0.98.")


def the_merged_model_answers_as_lane_zero(trial: TuningTrial) -> None:
    """It has its original names again if, and only if, the method has `merges`."""
    applied, inputs = trial.applied(), small_inputs(trial.family, 4).tensors
    put(applied, drawn_values(applied))
    tuned = _answers(applied, inputs)
    trial.method.merge(applied.backbone)
    merged, base = _answers(applied, inputs), small_model(trial.family)
    _require_close(merged, tuned, "The merged model gives other answers", rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        difference = float((merged - base.logits(dict(inputs))).abs().max())
    require(difference > 1e-2, "With other values of what is tuned the model answers as without the method.")
    is_itself = _shapes(applied.backbone) == _shapes(base)
    problem = "the model does not get its own names and shapes back" if trial.method.merges else "it does"
    require(is_itself == trial.method.merges, f"It says `merges = {trial.method.merges}`, but {problem}.")


def what_was_saved_gives_the_same_answers_when_it_is_loaded(trial: TuningTrial) -> None:
    """An adapter holds only settings and tuned tensors, so no other random value may matter."""
    applied, inputs = trial.applied(num_lanes=1), small_inputs(trial.family, 4).tensors
    values = drawn_values(applied)
    put(applied, values)
    loaded = safetensors.torch.load(safetensors.torch.save({name: values[name].contiguous() for name in applied.spec}))
    again = TuningTrial(reread(trial.method), trial.family).applied(num_lanes=1, seed=1)
    require(again.spec.tensors == applied.spec.tensors, f"Read back, it tunes {_shown(again.spec)}.")
    put(again, loaded)
    _require_close(_answers(again, inputs), _answers(applied, inputs), "The loaded model gives other answers")


# Without and with training; training takes most of the time.
UNTRAINED = (
    apply_gives_a_specification_of_at_least_one_tensor,
    every_tensor_of_the_specification_is_a_parameter_with_or_without_a_lane_axis,
    what_asks_for_a_gradient_is_what_the_specification_trains,
    names_come_in_the_order_of_the_model,
    a_group_is_named_after_the_layer_of_one_of_its_tensors,
    the_specification_does_not_depend_on_the_number_of_lanes,
    a_model_without_memory_has_the_same_specification,
    it_draws_from_the_generator_that_it_gets,
    every_lane_starts_with_the_same_values,
    the_model_starts_with_the_answers_that_it_had,
    the_merged_model_answers_as_lane_zero,
    what_was_saved_gives_the_same_answers_when_it_is_loaded,
)
TRAINED = (
    clients_can_train_in_lanes_without_mixing,
    lanes_give_what_a_plain_loop_gives_client_after_client,
    the_order_of_clients_does_not_matter,
    a_used_engine_gives_the_same_bits_as_a_fresh_one,
    the_data_of_one_client_leave_no_trace_in_another,
    training_changes_nothing_but_what_is_specified,
    in_half_precision_a_step_goes_nearly_the_same_way,
)
CHECKS = (*UNTRAINED, *TRAINED)


def it_fits_one_of_the_small_models(trials: Sequence[TuningTrial]) -> None:
    """Otherwise no contract would be tried."""
    families = [trial.family for trial in trials]
    require(any(trial.fits for trial in trials), f"It refuses all of {families}; name a model that it is made for.")


def _answers(applied: Applied, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's outputs in lane 0."""
    applied.lanes.active = 1
    with torch.no_grad():
        return applied.backbone.logits(dict(inputs))


def _frozen(applied: Applied) -> Params:
    """The frozen tensors by name; not from the state dictionary, in which a shared module has several names."""
    module = applied.backbone.module
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if name not in applied.spec}


def _shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in backbone.module.state_dict().items()}


def _shown(spec: ParamSpec) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in spec.tensors.items()}


def _require_close(values: Tensor, expected: Tensor, problem: str, *, rtol: float = _RTOL, atol: float = _ATOL) -> None:
    if values.shape != expected.shape:
        raise BreachError(f"{problem}: the shape is {tuple(values.shape)}, expected {tuple(expected.shape)}.")
    if not torch.allclose(values, expected, rtol=rtol, atol=atol):
        difference = float((values - expected).abs().max())
        raise BreachError(f"{problem}, by up to {difference:.1e} of {float(expected.abs().max()):.1e}.")
