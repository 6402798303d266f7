"""Finds attention, MLPs and blocks by structure, in models whose family is not in the table of anatomies.

An *attention* is a module inside a repeated list that has a query, a key and a value projection as direct children, or
one projection for all three. A *block* is a member of a list of modules of one class, each of which contains exactly
one attention and one MLP of two layers with matching sizes. Queries and keys can be told apart only by name;
everything else is read from modules and shapes. A part that is not the same in every block, or that fits in two ways,
is left out.

The names are those of transformers. For every family in PEFT's table of default targets the result is the same as in
that table (tests/models/test_discovery.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from fedelta.models.layers import is_linear, is_plain, matrix_shape

# Query, key and value. A projection that gives keys and values plays both roles.
_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_head", "k_head", "v_head"),
    ("q", "k", "v"),
    ("Wq", "Wk", "Wv"),
    ("projection_query", "projection_key", "projection_value"),
    ("queries", "keys_values", "keys_values"),
    # Latent attention: the layers from the narrow space to the heads.
    ("q_b_proj", "kv_b_proj", "kv_b_proj"),
    ("q_gate_proj", "kv_b_proj", "kv_b_proj"),
)
_FUSED = ("query_key_value", "queries_keys_values", "c_attn", "qkv", "qkv_proj", "Wqkv")
# The layer inside a module that combines a projection with its norm.
_WRAPPED = ("linear", "convolution")
# The output projection of an attention: beside the other projections, or in a module beside the attention.
_OUT = ("o_proj", "out_proj", "dense", "out_lin", "post_proj", "o", "c_proj", "proj", "Wo")
# First and last layer of an MLP, as paths inside the block.
_MLPS = (
    ("mlp.up_proj", "mlp.down_proj"),
    ("mlp.gate_up_proj", "mlp.down_proj"),
    ("mlp.fc1", "mlp.fc2"),
    ("mlp.c_fc", "mlp.c_proj"),
    ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ("mlp.fc_in", "mlp.fc_out"),
    ("mlp.dense1", "mlp.dense2"),
    ("mlp.Wi", "mlp.Wo"),
    ("intermediate.dense", "output.dense"),
    ("fc1", "fc2"),
    ("ffn.lin1", "ffn.lin2"),
    ("ffn.up_proj", "ffn.down_proj"),
    ("ffn.0", "ffn.2"),
    ("ffn.linear_1", "ffn.linear_2"),
    ("ffn", "ffn_output"),
)


@dataclass(frozen=True)
class Discovery:
    """The parts of a model found by structure.

    Args:
        blocks: path of the list of blocks, with `*` for the number of a stage; "" if there is no or more than one list.
        roles: role to the path of its layer inside every block.
        layers: role to the paths of all its layers, in the order of the model; for roles of attention this includes
            layers outside `blocks`.
    """

    blocks: str
    roles: Mapping[str, str]
    layers: Mapping[str, tuple[str, ...]]


def discover(module: nn.Module) -> Discovery:
    """The attention and the blocks of `module`."""
    modules = dict(_of_its_input(module))
    attentions = {path: roles for path in modules if _is_repeated(path) and (roles := _projections(path, modules))}
    layers: dict[str, list[str]] = {}
    for roles in attentions.values():
        for role, path in roles.items():
            layers.setdefault(role, []).append(path)
    blocks = _blocks(modules, attentions)
    patterns = {_pattern(path.rpartition(".")[0]) for path in blocks}
    # A decoder with cross-attention has two attentions per block. The blocks must account for all attentions.
    is_whole = len(blocks) == len(attentions)
    common = _common([_inside(block, roles, modules) for block, roles in blocks.items()])
    paths_of = {role: tuple(dict.fromkeys(paths)) for role, paths in layers.items()}
    if len(patterns) != 1 or not is_whole or "fc2" not in common:
        return Discovery("", {}, paths_of)
    paths_of |= {role: tuple(f"{block}.{common[role]}" for block in blocks) for role in ("fc1", "fc2")}
    return Discovery(patterns.pop(), common, paths_of)


def takes_other_input(part: nn.Module, whole: nn.Module) -> bool:
    """Whether `part` processes another kind of input than `whole`, such as the image tower of a text classifier."""
    return {_input_of(part), _input_of(whole)} == {"input_ids", "pixel_values"}


def _input_of(part: nn.Module) -> str | None:
    """The name of a network's main input; some image towers state it only through their configuration."""
    name: str | None = getattr(part, "main_input_name", None)
    is_tower = "vision" in str(getattr(getattr(part, "config", None), "model_type", ""))
    return "pixel_values" if name is not None and is_tower else name


def _of_its_input(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules` without the parts that take another kind of input."""
    others = [path for path, part in module.named_modules() if takes_other_input(part, module)]
    for path, part in module.named_modules():
        if not any(f"{path}.".startswith(f"{other}.") for other in others):
            yield path, part


def _is_repeated(path: str) -> bool:
    return any(part.isdigit() for part in path.split("."))


def _projections(path: str, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Role to path of the projections of the attention at `path`; empty if it is no attention or is ambiguous."""
    places = {name: place for name, child in modules[path].named_children() if (place := _place(name, child))}
    candidates = [dict(zip("qkv", names, strict=True)) for names in _SEPARATE if places.keys() >= set(names)]
    candidates += [dict.fromkeys("qkv", name) for name in _FUSED if name in places]
    if len(candidates) != 1:
        return {}
    roles = {role: f"{path}.{places[name]}" for role, name in candidates[0].items()}
    parent = path.rpartition(".")[0]
    out = [f"{path}.{places[name]}" for name in _OUT if name in places]
    out += [outer for outer in (f"{parent}.output.dense", f"{parent}.output") if _is_linear_at(outer, modules)]
    return roles | ({"o": out[0]} if out else {})


def _place(name: str, child: nn.Module) -> str:
    """Path of a projection's layer inside its attention; "" if it is not a layer that LoRA can be added to."""
    if is_linear(child):
        return name
    inner = [key for key, layer in child.named_children() if key in _WRAPPED and (is_linear(layer) or _is_1x1(layer))]
    return f"{name}.{inner[0]}" if len(inner) == 1 else ""


def _is_1x1(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and is_plain(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.groups == 1
    )


def _is_linear_at(path: str, modules: Mapping[str, nn.Module]) -> bool:
    return path in modules and is_linear(modules[path])


def _blocks(
    modules: Mapping[str, nn.Module], attentions: Mapping[str, Mapping[str, str]]
) -> dict[str, Mapping[str, str]]:
    """Path of each block to the role and path of its attention's projections."""
    lists = {}
    for path, layer in modules.items():
        children = [f"{path}.{name}".lstrip(".") for name, _ in layer.named_children()]
        if not isinstance(layer, nn.ModuleList | nn.Sequential) or not set(children) <= modules.keys():
            continue
        inside = [[attention for attention in attentions if attention.startswith(f"{child}.")] for child in children]
        is_uniform = len({type(modules[child]) for child in children}) == 1
        if is_uniform and all(len(paths) == 1 for paths in inside):
            lists[path] = dict(zip(children, (attentions[attention] for (attention,) in inside), strict=True))
    # If a list of stages has one block per stage, the lists inside the stages count.
    innermost = [path for path in lists if not any(other.startswith(f"{path}.") for other in lists)]
    return {block: roles for path in innermost for block, roles in lists[path].items()}


def _inside(block: str, roles: Mapping[str, str], modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Role to path inside the block, for its attention and its MLP."""
    inside = {role: path.removeprefix(f"{block}.") for role, path in roles.items()}
    pairs = [pair for pair in _MLPS if _is_mlp(*(modules.get(f"{block}.{path}") for path in pair))]
    return inside | (dict(zip(("fc1", "fc2"), pairs[0], strict=True)) if len(pairs) == 1 else {})


def _is_mlp(first: nn.Module | None, last: nn.Module | None) -> bool:
    """Whether two layers form an MLP: equal input and output width, and equal inner width or, with a gate, twice it."""
    if first is None or last is None or not (is_linear(first) and is_linear(last)):
        return False
    (inner, width), (out_width, in_width) = matrix_shape(first), matrix_shape(last)
    return width == out_width and inner in (in_width, 2 * in_width)


def _common(blocks: list[dict[str, str]]) -> dict[str, str]:
    """The roles that have the same path in all blocks."""
    first = blocks[0] if blocks else {}
    return {role: path for role, path in first.items() if all(block.get(role) == path for block in blocks)}


def _pattern(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)
