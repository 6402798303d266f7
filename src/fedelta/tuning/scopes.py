"""Scopes: parts of the tuned tensors that a client can train alone, found by the modules that hold them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fedelta.catalog import Scope
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.tuning.accumulator import TokenHistory
from fedelta.tuning.exits import exit_blocks


def scopes_of(backbone: Backbone, spec: ParamSpec) -> dict[Scope, frozenset[str]]:
    """The names of the tensors of each scope; scopes without tensors are left out.

    `all` is every tuned tensor; `adapters` are those inside the model, without the accumulator and all heads; `token`
    is the accumulator's token.

    Args:
        backbone: the model with the tuning method applied.
        spec: what is tuned.
    """
    answering = {id(parameter) for parameter in _answering(backbone)}
    tokens = {id(layer.token) for layer in backbone.module.modules() if isinstance(layer, TokenHistory)}
    identities = {name: id(backbone.module.get_parameter(name)) for name in spec}
    scopes: dict[Scope, frozenset[str]] = {
        "all": frozenset(identities),
        "adapters": frozenset(name for name, identity in identities.items() if identity not in answering),
        "token": frozenset(name for name, identity in identities.items() if identity in tokens),
    }
    return {scope: names for scope, names in scopes.items() if names}


def _answering(backbone: Backbone) -> Iterator[nn.Parameter]:
    """The parameters of the model's head and of what exits have added after the blocks."""
    for root in backbone.anatomy.head:
        yield from backbone.module.get_submodule(root).parameters()
    for block in exit_blocks(backbone.module):
        inside = {id(parameter) for parameter in block.base.parameters()}
        yield from (parameter for parameter in block.parameters() if id(parameter) not in inside)
