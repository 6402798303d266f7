"""Where the parts of a model are, by family.

Tuning methods select layers by *role* (`q`, `k`, `v`, `o`, `fc1`, `fc2`, the head). The table below maps roles to
modules for the families listed. For other families, attention and blocks are recognised by their structure
(discovery.py), which is enough for LoRA and adapters. Structure does not show where a class token is, or whether
attention accepts extra tokens without a position. These are never guessed, so prompts and exits need a listed family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedelta.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

# Attributes that may hold the head of a classifier of an unknown family, in order of preference.
_HEAD_ATTRIBUTES = ("classifier", "score", "classification_head", "head")
_NO_CLASS_TOKEN = "it has no class token that an exit could read"  # noqa: S105
_PLACES = "its attention needs the position of every token"
_UNKNOWN_PROMPTS = "fedelta does not know whether its attention accepts tokens without a position"
_UNKNOWN_EXITS = "fedelta does not know whether the first token after a block represents the whole input"
_CAUSAL_PROMPTS = "its attention only looks back, so that no token would see a prompt after it"
_CAUSAL_EXITS = "it answers from the last token of a text and has no class token that an exit could read"


@dataclass(frozen=True)
class Anatomy:
    """Paths of the parts of one model.

    Args:
        head: paths of the parts that are newly trained for a task; none for a model without a head.
        embeddings: path of the module whose output enters the first block; "" if unknown.
        blocks: path of the list of blocks, with `*` for the number of a stage; "" if unknown.
        roles: role to the path of its linear layer inside a block.
        layers: role to the paths of all its layers, for a family that is not in the table.
        no_prompts: why no tokens can be added to the input of a block; "" if they can.
        no_exits: why exits cannot read the first token after a block; "" if that token represents the whole input and
            all blocks are called with the same arguments.
        mlp_input: path inside a block of the first layer between the residual stream and the MLP; "" if unknown.
        transposed: whether the weights of its linear layers are [I, O], as in GPT-2.
    """

    head: tuple[str, ...]
    embeddings: str = ""
    blocks: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    no_prompts: str = ""
    no_exits: str = _NO_CLASS_TOKEN
    mlp_input: str = ""
    transposed: bool = False

    @property
    def known_roles(self) -> tuple[str, ...]:
        """All roles that have a layer."""
        return tuple(dict.fromkeys([*self.roles, *self.layers]))

    def in_head(self, path: str) -> bool:
        """Whether the module or tensor at `path` belongs to the head."""
        return any(path == root or path.startswith(f"{root}.") for root in self.head)

    def block_of(self, path: str) -> tuple[str, str] | None:
        """The block that contains `path`, and the path inside that block; None if no block contains it."""
        lists = re.escape(self.blocks).replace(r"\*", r"\d+")
        match = re.fullmatch(rf"({lists}\.\w+)(?:\.(.+))?", path) if self.blocks else None
        return None if match is None else (match[1], match[2] or "")

    def plays(self, path: str, role: str) -> bool:
        """Whether the layer at `path` has `role`, judged by its whole path inside the block.

        The last parts are not enough: BERT's `fc2` is `output.dense`, and its `o` is `attention.output.dense`.
        """
        if path in self.layers.get(role, ()):
            return True
        place = self.block_of(path)
        return place is not None and role in self.roles and place[1] == self.roles[role]


_VIT_ROLES = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.o_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_BERT_ROLES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
_DISTILBERT_ROLES = {
    "q": "attention.q_lin",
    "k": "attention.k_lin",
    "v": "attention.v_lin",
    "o": "attention.out_lin",
    "fc1": "ffn.lin1",
    "fc2": "ffn.lin2",
}


_CLIP_ROLES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_DATA2VEC_ROLES = _BERT_ROLES | {
    role: f"attention.attention.{name}" for role, name in (("q", "query"), ("k", "key"), ("v", "value"))
}
# DeBERTa's first version has one projection for queries, keys and values.
_DEBERTA_ROLES = _BERT_ROLES | dict.fromkeys("qkv", "attention.self.in_proj")


def _bert(prefix: str, mlp_input: str = "intermediate", no_prompts: str = "") -> Anatomy:
    return Anatomy(
        ("classifier",),
        f"{prefix}.embeddings",
        f"{prefix}.encoder.layer",
        _BERT_ROLES,
        no_prompts=no_prompts,
        no_exits="",
        mlp_input=mlp_input,
    )


def _vit(prefix: str, blocks: str = "layers", mlp_input: str = "layernorm_after") -> Anatomy:
    return Anatomy(
        ("classifier",), f"{prefix}.embeddings", f"{prefix}.{blocks}", _VIT_ROLES, no_exits="", mlp_input=mlp_input
    )


_CLIP = Anatomy(
    ("classifier",),
    "vision_model.embeddings",
    "vision_model.encoder.layers",
    _CLIP_ROLES,
    no_exits="",
    mlp_input="layer_norm2",
)
_MEAN_OF_PATCHES = "it answers from the mean of all patches"

# `model_type` of a transformers configuration to its anatomy.
ANATOMIES: dict[str, Anatomy] = {
    "fedelta_resnet": Anatomy(("linear",)),
    "fedelta_leaf_cnn": Anatomy(("classifier",)),
    "resnet": Anatomy(("classifier",)),
    "hgnet_v2": Anatomy(("fc",)),
    "textnet": Anatomy(("fc",)),
    "vit": _vit("vit"),
    "deit": _vit("deit"),
    "vit_msn": _vit("vit"),
    "ijepa": replace(_vit("ijepa"), no_exits=_MEAN_OF_PATCHES),
    "beit": replace(_vit("beit"), no_prompts=_PLACES),
    "data2vec-vision": replace(_vit("data2vec_vision", "encoder.layer"), roles=_DATA2VEC_ROLES, no_prompts=_PLACES),
    "dinov2": _vit("dinov2", "encoder.layer", "norm2"),
    "dinov2_with_registers": _vit("dinov2_with_registers", "encoder.layer", "norm2"),
    "clip": _CLIP,
    "metaclip_2": _CLIP,
    "siglip": replace(_CLIP, no_exits=_MEAN_OF_PATCHES),
    "siglip2": replace(_CLIP, no_exits=_MEAN_OF_PATCHES),
    "bert": _bert("bert"),
    "roberta": _bert("roberta"),
    "xlm-roberta": _bert("roberta"),
    "camembert": _bert("roberta"),
    "electra": _bert("electra"),
    "ernie": _bert("ernie"),
    "data2vec-text": _bert("data2vec_text"),
    "roc_bert": _bert("roc_bert"),
    "markuplm": _bert("markuplm"),
    "layoutlm": _bert("layoutlm"),
    "tapas": _bert("tapas"),
    "rembert": _bert("rembert"),
    "megatron-bert": _bert("bert", mlp_input="ln"),
    "xlm-roberta-xl": _bert("roberta", mlp_input="LayerNorm"),
    "roberta-prelayernorm": _bert("roberta_prelayernorm"),
    "nystromformer": _bert("nystromformer", no_prompts=_PLACES),
    "yoso": _bert("yoso", no_prompts=_PLACES),
    "mpnet": replace(
        _bert("mpnet", no_prompts=_PLACES),
        roles=_BERT_ROLES | {role: f"attention.attn.{role}" for role in "qkvo"},
    ),
    "deberta": replace(_bert("deberta", no_prompts=_PLACES), head=("pooler", "classifier"), roles=_DEBERTA_ROLES),
    "distilbert": Anatomy(
        ("pre_classifier", "classifier"),
        "distilbert.embeddings",
        "distilbert.transformer.layer",
        _DISTILBERT_ROLES,
        no_exits="",
        mlp_input="ffn.lin1",
    ),
}


def anatomy_of(module: nn.Module, family: str) -> Anatomy:
    """The anatomy of `module`, checked against it.

    Args:
        module: a classifier.
        family: `model_type` of its configuration.

    Raises:
        ModelError: the head or a part of the table is not where it should be.
    """
    anatomy = ANATOMIES.get(family)
    if anatomy is None:
        return discovered(module, _head_of(module, family))
    if not any(name in anatomy.head for name, _ in module.named_children()):
        # For example, the two heads of a distilled DeiT.
        anatomy = replace(anatomy, head=_head_of(module, family))
    paths = [
        *anatomy.head,
        anatomy.embeddings,
        *(f"{anatomy.blocks}.0.{path}" for path in (*anatomy.roles.values(), anatomy.mlp_input) if path),
    ]
    modules = {name for name, _ in module.named_modules()}
    if missing := [path for path in paths if path not in modules]:
        raise ModelError(
            f"{type(module).__name__} lacks the modules {missing}, expected in family {family!r}.",
            hint="install the version of transformers in constraints.txt: this one arranges the family differently.",
        )
    return anatomy


def discovered(module: nn.Module, head: tuple[str, ...]) -> Anatomy:
    """The anatomy of a model that is not in the table, from its structure.

    Args:
        module: the model.
        head: paths of its head.
    """
    from fedelta.models.discovery import discover  # needs torch, which `fedelta list` does without
    from fedelta.models.layers import is_transposed

    discovery = discover(module)
    if not discovery.layers:
        return Anatomy(head)
    is_causal = head == ("score",)  # the name of the head in all causal classifiers of transformers
    layers = [module.get_submodule(path) for paths in discovery.layers.values() for path in paths]
    return Anatomy(
        head,
        blocks=discovery.blocks,
        roles=discovery.roles,
        layers=discovery.layers,
        no_prompts=_CAUSAL_PROMPTS if is_causal else _UNKNOWN_PROMPTS,
        no_exits=_CAUSAL_EXITS if is_causal else _UNKNOWN_EXITS,
        transposed=bool(layers) and all(map(is_transposed, layers)),
    )


def _head_of(module: nn.Module, family: str) -> tuple[str, ...]:
    """The children outside the base model that contain a linear layer, else the first usual name that has one.

    Raises:
        ModelError: there are none.
    """
    from fedelta.models.layers import is_linear

    children = dict(module.named_children())
    linear = [name for name, child in children.items() if any(map(is_linear, child.modules()))]
    base = getattr(module, "base_model_prefix", "")
    outside = tuple(name for name in linear if name != base)
    if base in children and outside:
        return outside
    usual = next((name for names in (linear, children) for name in _HEAD_ATTRIBUTES if name in names), None)
    if usual is None:
        raise ModelError(
            f"no head found in a model of the unknown family {family!r}: expected one of {list(_HEAD_ATTRIBUTES)}, "
            f"found only {sorted(children)}.",
            hint=f"known families: {', '.join(ANATOMIES)}; for others pass `Backbone(module, Anatomy(...))`.",
        )
    return (usual,)
