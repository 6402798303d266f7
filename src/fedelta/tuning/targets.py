"""The choice of layers by kind, role or module name, as in `target_modules` of LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Literal, TypeVar

from torch import nn

from fedelta.errors import ModelError, listed
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.models.layers import is_linear, matrix_shape, oddity
from fedelta.tuning.base import untouched

T = TypeVar("T", int, float)


def unusual_layers(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers of a class derived from `Linear` or `Conv2d` that compute something else: path to what, in words."""
    kinds = (nn.Linear, nn.Conv2d)
    not_linear = {path: layer for path, layer in layers.items() if not is_linear(layer)}
    problems = {
        path: oddity(layer, kind) for path, layer in not_linear.items() for kind in kinds if isinstance(layer, kind)
    }
    return {path: problem for path, problem in problems.items() if problem is not None}


def refuse_shared_weights(backbone: Backbone, targets: Iterable[str]) -> None:
    """Refuses a target whose weight belongs to another layer too: merging would change both layers.

    Raises:
        ModelError: two layers share a weight.
    """
    layers = untouched(backbone.module)
    owners: dict[int, list[str]] = {}
    for path, (_, layer) in layers.items():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    for target in targets:
        paths = owners[id(layers[target][1].get_parameter("weight"))]
        if len(paths) > 1:
            raise ModelError(
                f"`{paths[0]}` and `{paths[1]}` of {type(backbone.module).__name__} share one weight, so a pair of one "
                "of them cannot be folded in.",
                hint="name other layers in `tuning.target_modules`, or use 'head'.",
            )


def layers_of_kind(kind: Literal["auto", "all-linear", "all-conv"], paths: list[str], backbone: Backbone) -> set[str]:
    """Those of `paths` that are query or value projections, linear layers of the blocks, or convolutions.

    Raises:
        ModelError: the model has no such layer.
    """
    anatomy, layers = backbone.anatomy, untouched(backbone.module)
    convolutions = {path for path in paths if isinstance(layers[path][1], nn.Conv2d)}
    if kind == "auto":
        chosen = {path for path in paths if anatomy.plays(path, "q") or anatomy.plays(path, "v")} or convolutions
    elif kind == "all-conv":
        chosen = convolutions
    else:
        linear = {path for path in paths if is_linear(layers[path][1])}
        chosen = {path for path in linear if not anatomy.blocks or anatomy.block_of(path) is not None}
    if chosen:
        return chosen
    if kind == "auto":
        names = ", ".join(sorted({path.rpartition(".")[2] for path in paths})) or "none"
        raise ModelError(
            f"`tuning.target_modules` is 'auto', but {type(backbone.module).__name__} has no attention whose "
            "projections are known, and no convolution that can have a pair.",
            hint=f"roles of this model: {', '.join(anatomy.known_roles) or 'none'}; module names: {names}; "
            '`"all-linear"` chooses every linear layer.',
        )
    other = "all-linear" if kind == "all-conv" else "all-conv"
    raise ModelError(
        f"`tuning.target_modules` is {kind!r}, but {type(backbone.module).__name__} has no such layer.",
        hint=f"use {other!r}, or name the layers.",
    )


def unreached(backbone: Backbone, targets: Iterable[str]) -> str | None:
    """A note that `targets` are not all matrices of a language model; None unless it has stacked ones.

    Such are the experts of a mixture: tensors [experts, I, O] of a module that is no layer, which can have no pair.
    """
    layers, stacked = untouched(backbone.module), dict[str, int]()
    for path, (_, layer) in layers.items():
        tensors = () if is_linear(layer) else layer.named_parameters(path, recurse=False)
        stacked |= {name: tensor.numel() for name, tensor in tensors if tensor.dim() == 3}
    if not stacked or backbone.vocabulary is None:
        return None
    reached = sum(math.prod(matrix_shape(layers[path][1])) for path in targets)
    share = reached / (reached + sum(stacked.values()))
    patterns = list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in stacked))
    return (
        f"`tuning.target_modules` is 'all-linear', but low-rank pairs reach {share:.0%} of the matrices of "
        f"{type(backbone.module).__name__} only: {listed(patterns)}, such as the experts of a mixture, are no layers "
        "and stay as they are."
    )


def describe_choice(backbone: Backbone, targets: list[str]) -> str:
    """A note on which layers were chosen in a family that fedelta does not describe; block numbers become *."""
    patterns = [re.sub(r"\.\d+(?=\.)", ".*", path) for path in targets]
    shown = ", ".join(f"`{pattern}`" for pattern in dict.fromkeys(patterns))
    reason = "were found by their structure" if backbone.anatomy.layers else "are convolutions, as it has no attention"
    return (
        f"the layers of {type(backbone.module).__name__} are not described in fedelta: the {len(targets)} with a "
        f"low-rank pair {reason}: {shown}. Name others in `tuning.target_modules`."
    )


def matches(path: str, entry: str, anatomy: Anatomy) -> bool:
    """Whether `entry` is the role of the layer at `path`, the last parts of its path, or with ^ its whole path."""
    if entry.startswith("^"):
        return path == entry[1:]
    return anatomy.plays(path, entry) if entry in anatomy.known_roles else f".{path}".endswith(f".{entry}")


def lookup(pattern: Mapping[str, T], path: str, anatomy: Anatomy, default: T) -> T:
    """The value of the first entry of `pattern` that matches `path`, or `default`."""
    return next((value for entry, value in pattern.items() if matches(path, entry, anatomy)), default)


def matching_layers(field: str, entries: Iterable[str], paths: list[str], backbone: Backbone) -> set[str]:
    """Those of `paths` that match one of `entries`, which come from the setting `tuning.FIELD`.

    Raises:
        ModelError: an entry matches no path; the message names the nearest entry that does.
    """
    anatomy, chosen = backbone.anatomy, set()
    for entry in entries:
        matching = [path for path in paths if matches(path, entry, anatomy)]
        if not matching:
            names = sorted({path.rpartition(".")[2] for path in paths})
            nearest = get_close_matches(entry, paths if "." in entry else [*anatomy.known_roles, *names], n=1)
            kind = "linear or convolutional" if field == "target_modules" else "tuned"
            raise ModelError(
                f"`tuning.{field}` entry {entry!r} matches no {kind} layer of {type(backbone.module).__name__}"
                + (f"; did you mean {nearest[0]!r}?" if nearest else "."),
                hint=f"roles of this model: {', '.join(anatomy.known_roles) or 'none'}; module names: "
                + ", ".join(names)
                + ("." if anatomy.known_roles else '; `"all-conv"` chooses every convolution.'),
            )
        chosen.update(matching)
    return chosen
