"""Converts between fedelta's tensor names and settings and the Hugging Face PEFT layout.

Reading needs no model and no re-implementation of PEFT's rules for selecting modules: the keys in the file are full
paths of the modules with a pair, and the shapes give the ranks. Only alpha follows PEFT's rule
(`peft.utils.other.get_pattern_key`), because no tensor shows it.

`peft` is not imported: it would load all of transformers for a few JSON keys.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

import regex
from pydantic import ValidationError
from torch import Tensor

from fedelta.catalog import COMBINATIONS, TUNING_METHODS
from fedelta.errors import AdapterError, listed
from fedelta.inference.adapter_settings import explained
from fedelta.models.anatomy import Anatomy
from fedelta.params import Params
from fedelta.record.files import Record
from fedelta.settings.registry import Chosen
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import expand
from fedelta.tuning.lora import Lora

T = TypeVar("T", int, float)

_METHODS = Chosen(TUNING_METHODS, COMBINATIONS)

# Longer than any escaped path of a layer.
_LONGEST_PATTERN = 1000

# Prefix of module paths in stock PEFT, from its two wrappers.
_PREFIX = "base_model.model."
_OWN_PREFIX = "FEDELTA_"
_MERGE = "fold it into the base model with PEFT's `merge_and_unload()`"

# Kinds that cannot be merged into a base model.
_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT")

# Fields of `LoraConfig` that do not change what a trained pair computes: places and sizes of the pairs (known from keys
# and shapes), their initialisation, their training, and parameters of variants.
_NO_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision",
    "task_type", "exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "r", "rank_pattern",
    "target_modules", "corda_config", "eva_config", "init_lora_weights", "loftq_config", "lora_ga_config",
    "fan_in_fan_out", "lora_dropout", "megatron_core", "qalora_group_size",
    "alpha_pattern", "lora_alpha", "use_rslora", "bias",  # read below
})  # fmt: skip

# Initialisations that do not change the base model. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract a part
# from the base weights, also when PEFT loads the adapter, so that the pair fits only the changed weights.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def to_layout(tuning: TuningMethod, params: Mapping[str, Tensor], anatomy: Anatomy) -> tuple[Params, Record]:
    """Tensors by PEFT key, and the content of `adapter_config.json` without the description of the base model.

    Args:
        tuning: the tuning method of `params`.
        params: by our names; float32 copies are returned.
        anatomy: of the model.
    """
    tensors = {_key(name): tensor.detach().cpu().float().contiguous().clone() for name, tensor in params.items()}
    if not isinstance(tuning, Lora):
        return tensors, {"peft_type": f"{_OWN_PREFIX}{tuning.name.upper()}"}
    ranks = {_entry(path): params[f"{path}.lora_A"].shape[0] for path in pair_paths(params)}
    rank, rank_pattern = _common(ranks)
    alpha, alpha_pattern = _common({_entry(path): tuning.alpha_of(path, anatomy) for path in pair_paths(params)})
    has_head = any(not is_pair(name) for name in params)
    return tensors, {
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": rank_pattern,
        "lora_alpha": alpha,
        "alpha_pattern": alpha_pattern,
        "use_rslora": tuning.use_rslora,
        "target_modules": _targets(pair_paths(params)),
        "modules_to_save": list(anatomy.head) if has_head else None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": anatomy.transposed,
    }


def from_layout(
    tensors: Mapping[str, Tensor], config: Record, section: Record | None, where: str
) -> tuple[TuningMethod, Params]:
    """The inverse of `to_layout`, also for adapters made by stock PEFT; returns float32 tensors.

    Args:
        tensors: by PEFT key, in the order in which the result has them.
        config: content of `adapter_config.json`.
        section: `[tuning]` in `fedelta.json`; None without that file. LoRA is read from `config` alone.
        where: name of the adapter in messages.

    Raises:
        AdapterError: the adapter is neither LoRA on linear or convolutional layers nor one of our kinds, or `section`
            does not fit; lists all reasons.
    """
    kind = config.get("peft_type")
    name = str(kind).removeprefix(_OWN_PREFIX).lower() if str(kind).startswith(_OWN_PREFIX) else ""
    if kind != "LORA" and (name == "lora" or _METHODS.get(name) is None):
        our_types = sorted(f"{_OWN_PREFIX}{name.upper()}" for name in _METHODS.names if name != "lora")
        raise AdapterError(
            f"{where}: `peft_type` is {kind!r}, expected 'LORA' or one of {listed(our_types, len(our_types))}.",
            hint="adapters that put tokens in front of a text cannot be taken over; choose LoRA for a new one."
            if kind in _TOKENS
            else f"{_MERGE}, save that, and give it as `model.source`.",
        )
    params = {_name(key): tensor.float() for key, tensor in tensors.items()}
    if kind != "LORA":
        return _own_tuning(name, section, where), params
    problems = [*_config_problems(config), *_tensor_problems(params)]
    alphas: dict[str, float] = {}
    for path in pair_paths(params):
        try:
            alphas[path] = _peft_alpha(config, path)
        except (TypeError, ValueError) as error:
            problems.append(f"factor of `{path}`: {error}")
        except TimeoutError as error:
            problems.append(str(error))
            break  # for the next layer it would take as long again
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems[:10])
        raise AdapterError(
            f"{where} cannot be taken over:{lines}",
            hint="supported is plain LoRA on linear and convolutional layers, with or without a classification head in "
            f"`modules_to_save`; {_MERGE}, save that, and give it as `model.source`.",
        )
    has_head = any(not is_pair(name) for name in params)
    return lora_of(params, alphas, bool(config.get("use_rslora")), has_head), params


def lora_of(params: Mapping[str, Tensor], alphas: Mapping[str, float], use_rslora: bool, train_head: bool) -> Lora:
    """The LoRA settings for these pairs, with every layer named by its full path.

    Args:
        params: the pairs, whose shapes give the ranks.
        alphas: path of each layer with a pair to its alpha.
        use_rslora: as in `Lora`.
        train_head: as in `Lora`.
    """
    rank, rank_pattern = _common({_entry(path): params[f"{path}.lora_A"].shape[0] for path in alphas})
    alpha, alpha_pattern = _common({_entry(path): alpha for path, alpha in alphas.items()})
    return Lora(
        r=rank,
        lora_alpha=alpha,
        target_modules=tuple(map(_entry, alphas)),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        use_rslora=use_rslora,
        train_head=train_head,
    )


def is_pair(name: str) -> bool:
    """Whether one of our names is a factor of a LoRA pair."""
    return name.endswith((".lora_A", ".lora_B"))


def pair_paths(params: Iterable[str]) -> list[str]:
    """Paths of the layers with a pair, in the order of their first factors."""
    return [name.removesuffix(".lora_A") for name in params if name.endswith(".lora_A")]


def _entry(path: str) -> str:
    """The entry for `path` in target modules and patterns; with ^ if it has no dot and could end other paths."""
    return path if "." in path else f"^{path}"


def _targets(paths: list[str]) -> list[str] | str:
    """PEFT's `target_modules`: full paths, or a regular expression if one of them also ends other paths."""
    if all("." in path for path in paths):
        return paths
    return "|".join(re.escape(path) for path in paths)


def _own_tuning(name: str, section: Record | None, where: str) -> TuningMethod:
    """The tuning method called `name` with the fields in `section`."""
    if section is None:
        raise AdapterError(
            f"{where} lacks the settings of the tuning method {name!r}, expected `tuning` in `fedelta.json`.",
            hint="copy the adapter again, all of its files, or write it anew.",
        )
    try:
        # Through JSON, where lists are valid tuples.
        method: TuningMethod = _METHODS[name].model_validate_json(json.dumps(expand(section)))
    except ValidationError as error:
        raise AdapterError(
            f"{where}: `tuning` in `fedelta.json` does not fit the tuning method {name!r}:{explained(error)}",
            hint="copy the adapter again, or read it with the version of fedelta that wrote it.",
        ) from error
    return method


def _key(name: str) -> str:
    return f"{_PREFIX}{name}.weight" if is_pair(name) else _PREFIX + name


def _name(key: str) -> str:
    path = key.removeprefix(_PREFIX)
    return path.removesuffix(".weight") if is_pair(path.removesuffix(".weight")) else path


def _common(values: Mapping[str, T]) -> tuple[T, dict[str, T]]:
    """The most frequent value, and path to value for those that differ from it."""
    default = Counter(values.values()).most_common(1)[0][0]
    return default, {path: value for path, value in values.items() if value != default}


def _peft_alpha(config: Record, path: str) -> float:
    """PEFT's alpha for the layer at `path`: the first key of `alpha_pattern` that is a regular expression for it."""
    alpha: object = config.get("lora_alpha", 8)  # PEFT's default
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise TypeError(f"`alpha_pattern` is {patterns!r}, expected an object")
    for pattern, value in patterns.items():
        if _is_meant(pattern, path):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise ValueError(f"alpha is {alpha!r}, expected a number above 0")
    return float(alpha)


def _is_meant(pattern: str, path: str) -> bool:
    """Whether a key of PEFT's patterns matches the layer at `path`.

    Adapters are untrusted, and matching a short malicious expression can take practically forever, so the match is
    aborted after a tenth of a second.
    """
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(
            f"`alpha_pattern` has a key of {len(pattern):,} characters, expected {_LONGEST_PATTERN} at most"
        )
    try:
        return regex.match(rf"(.*\.)?({pattern})$", path, timeout=0.1) is not None
    except (regex.error, RecursionError) as error:
        raise ValueError(f"`alpha_pattern` key {pattern!r} is not a regular expression: {error}") from error
    except TimeoutError as error:
        raise TimeoutError(f"`alpha_pattern` key {pattern!r} takes too long to match names of layers") from error


def _config_problems(config: Record) -> list[str]:
    problems = []
    if config.get("bias", "none") != "none":
        problems.append(f"`bias` is {config['bias']!r}, expected 'none'")
    init = config.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        problems.append(
            f"`init_lora_weights` is {init!r}, which changes the base model; save the adapter again in PEFT with "
            "`path_initial_model_for_weight_conversion`"
        )
    # Any other switch belongs to a variant of LoRA, perhaps of a later PEFT, and may change what the pair computes.
    switches = {key: config[key] for key in sorted(set(config) - _NO_EFFECT)}
    problems += [f"`{key}` is {value!r}, expected it to be off" for key, value in switches.items() if _is_on(value)]
    return problems


def _is_on(value: object) -> bool:
    return value is True or (isinstance(value, dict | list) and len(value) > 0)


def _tensor_problems(params: Mapping[str, Tensor]) -> list[str]:
    """Problems with the tensors: no pairs, incomplete or misshapen pairs, and variants of LoRA."""
    problems = []
    if not pair_paths(params):
        problems.append("it holds no LoRA pair")
    for name, tensor in params.items():
        if "lora_" in name and not is_pair(name):
            problems.append(f"`{name}` belongs to a variant of LoRA (an embedding, a bias, DoRA or another)")
        elif is_pair(name) and tensor.dim() not in (2, 4):
            problems.append(f"`{name}` has shape {tuple(tensor.shape)}, expected two axes or four")
        elif name.endswith(".lora_B") and f"{name[:-1]}A" not in params:
            problems.append(f"`{name}` lacks its `lora_A`")
        elif name.endswith(".lora_A"):
            problems += _pair_problems(name.removesuffix(".lora_A"), tensor, params.get(f"{name[:-1]}B"))
    return problems


def _pair_problems(path: str, a: Tensor, b: Tensor | None) -> list[str]:
    """A is [R, I] or [R, I, M, M], B is [O, R] or [O, R, 1, 1]."""
    if b is None:
        return [f"`{path}.lora_A` lacks its `lora_B`"]
    rank = a.shape[0]
    if b.dim() not in (2, 4):
        return []  # reported already
    expected = (b.shape[0], rank, *(1 for _ in a.shape[2:]))
    if tuple(b.shape) != expected:
        shown = ", ".join(map(str, ("out", *expected[1:])))
        return [f"`{path}.lora_B` has shape {tuple(b.shape)}, expected ({shown}) as `lora_A` has rank {rank}"]
    most = min(a[0].numel(), b.shape[0])
    if not 0 < rank <= most:
        return [f"`{path}` has rank {rank}, expected 1 to {most}, the size of the layer"]
    return []
