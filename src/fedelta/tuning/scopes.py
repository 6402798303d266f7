"""Parts of what is tuned that a client may train alone, told apart by the modules that hold them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fedelta.catalog import Scope
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.tuning.accumulator import History
from fedelta.tuning.exits import exit_blocks


def scopes_of(backbone: Backbone, spec: ParamSpec) -> dict[Scope, frozenset[str]]:
    """Names of the tensors of each scope; a scope without any is left out.

    `all` is everything; `adapters` what is inside of the model, without the accumulator and without any head, its own
    or one of an exit; `token` the accumulator's token.

    Args:
        backbone: with the tuning method applied.
        spec: what that returned.
    """
    answering = {id(parameter) for parameter in _answering(backbone)}
    tokens = {id(layer.token) for layer in backbone.module.modules() if isinstance(layer, History)}
    identities = {name: id(backbone.module.get_parameter(name)) for name in spec}
    found: dict[Scope, frozenset[str]] = {
        "all": frozenset(identities),
        "adapters": frozenset(name for name, identity in identities.items() if identity not in answering),
        "token": frozenset(name for name, identity in identities.items() if identity in tokens),
    }
    return {scope: names for scope, names in found.items() if names}


def _answering(backbone: Backbone) -> Iterator[nn.Parameter]:
    """What turns features into answers."""
    for root in backbone.anatomy.head:
        yield from backbone.module.get_submodule(root).parameters()
    for block in exit_blocks(backbone.module):
        inside = {id(parameter) for parameter in block.base.parameters()}
        yield from (parameter for parameter in block.parameters() if id(parameter) not in inside)
