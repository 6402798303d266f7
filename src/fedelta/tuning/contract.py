"""Checks the result of a tuning method's `apply`, so that errors name a plug-in."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Generator

from fedelta.errors import PluginError, listed
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.plugins import called
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lanes import Lanes

_HINT = "end `apply` with `return specification(backbone, tensors)`, by the paths of parameters in the edited model."


def applied(method: TuningMethod, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
    """The result of `method.apply`, checked to describe tensors of the edited model.

    Raises:
        ModelError: the method does not fit the model.
        PluginError: the result is not a specification of the model's tensors.
    """
    spec: object = method.apply(backbone, lanes, generator)
    if not isinstance(spec, ParamSpec):
        problem = f"`apply` returned {type(spec).__name__}, expected a `ParamSpec`"
        raise PluginError(f"{called(method)}: {problem}.", hint=_HINT)
    if problems := list(_problems(spec, backbone, lanes)):
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        problem = f"`apply` returned a specification that does not fit the edited model: {problems[0]}{more}"
        raise PluginError(f"{called(method)}: {problem}.", hint=_HINT)
    return spec


def _problems(spec: ParamSpec, backbone: Backbone, lanes: Lanes) -> Iterator[str]:
    if not spec.tensors:
        yield "it has no tensors"
    for name, tensor in spec.tensors.items():
        try:
            value = backbone.module.get_parameter(name)
        except AttributeError:
            similar = [path for path, _ in backbone.module.named_parameters() if path.endswith(name.rpartition(".")[2])]
            yield f"`{name}` is no parameter of it" + (f"; there is {listed(similar, 2)}" if similar else "")
            continue
        with_lanes = (lanes.num, *tensor.shape)
        if tuple(value.shape) not in (tuple(tensor.shape), with_lanes):
            yield f"`{name}` has shape {tuple(value.shape)} in it, expected {with_lanes} or {tuple(tensor.shape)}"
        elif tensor.trained and not value.requires_grad:
            yield f"`{name}` asks for no gradient"
