"""Where the parts of a model are, by family.

Tuning methods name what they tune by *role* (`q`, `k`, `v`, `o`, `fc1`, `fc2`, the head); this table says which
module of a family plays which role. A family that is not in the table can still be tuned as a whole, by its
head, by its biases, and by LoRA on layers that are named outright. Nothing is found by searching in names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from fedelta.errors import ModelError

# The attribute under which a classifier of an unknown family may keep its head, in the order of preference.
_HEAD_ATTRIBUTES = ("classifier", "score", "classification_head", "head")


@dataclass(frozen=True)
class Anatomy:
    """Paths of the parts of one model.

    Args:
        head: children of the model that are trained anew for a task.
        embeddings: path of the module whose output enters the first block; "" when unknown.
        blocks: path of the list of blocks; "" when unknown.
        roles: role to the path of its linear layer inside a block.
        relative_positions: whether attention needs to know where every token stands, so that none can be added.
        class_token: whether the first token that leaves a block stands for the whole input.
        mlp_input: path inside a block of the layer that reads the residual stream on its way to the MLP; "" when
            unknown.
    """

    head: tuple[str, ...]
    embeddings: str = ""
    blocks: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    relative_positions: bool = False
    class_token: bool = False
    mlp_input: str = ""


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


def _bert(prefix: str) -> Anatomy:
    return Anatomy(
        ("classifier",),
        f"{prefix}.embeddings",
        f"{prefix}.encoder.layer",
        _BERT_ROLES,
        class_token=True,
        mlp_input="intermediate",
    )


def _vit(prefix: str, blocks: str = "layers", mlp_input: str = "layernorm_after") -> Anatomy:
    return Anatomy(
        ("classifier",),
        f"{prefix}.embeddings",
        f"{prefix}.{blocks}",
        _VIT_ROLES,
        class_token=True,
        mlp_input=mlp_input,
    )


# `model_type` of a transformers configuration to its anatomy.
ANATOMIES: dict[str, Anatomy] = {
    "fedelta_resnet": Anatomy(("linear",)),
    "fedelta_leaf_cnn": Anatomy(("classifier",)),
    "resnet": Anatomy(("classifier",)),
    "vit": _vit("vit"),
    "deit": _vit("deit"),
    "beit": replace(_vit("beit"), relative_positions=True),
    "dinov2": _vit("dinov2", "encoder.layer", "norm2"),
    "bert": _bert("bert"),
    "roberta": _bert("roberta"),
    "xlm-roberta": _bert("roberta"),
    "camembert": _bert("roberta"),
    "electra": _bert("electra"),
    "distilbert": Anatomy(
        ("pre_classifier", "classifier"),
        "distilbert.embeddings",
        "distilbert.transformer.layer",
        _DISTILBERT_ROLES,
        class_token=True,
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
    children = dict(module.named_children())
    anatomy = ANATOMIES.get(family)
    if anatomy is None:
        found = next((name for name in _HEAD_ATTRIBUTES if name in children), None)
        if found is None:
            raise ModelError(
                f"family {family!r} is unknown and has none of {list(_HEAD_ATTRIBUTES)} as its head, "
                f"only {sorted(children)}.",
                hint=f"known families: {', '.join(ANATOMIES)}; for another pass `Backbone(module, Anatomy(...))`.",
            )
        return Anatomy((found,))
    if children.keys().isdisjoint(anatomy.head):
        anatomy = replace(anatomy, head=_outside(module))
    paths = [
        *anatomy.head,
        anatomy.embeddings,
        *(f"{anatomy.blocks}.0.{path}" for path in (*anatomy.roles.values(), anatomy.mlp_input) if path),
    ]
    modules = {name for name, _ in module.named_modules()}
    if missing := [path for path in paths if path not in modules]:
        raise ModelError(
            f"{type(module).__name__} lacks {missing}, which family {family!r} should have.",
            hint="the installed transformers version lays this family out differently; see constraints.txt.",
        )
    return anatomy


def _outside(module: nn.Module) -> tuple[str, ...]:
    """What stands beside the base model, such as the two heads of a DeiT that learned from a teacher."""
    base = getattr(module, "base_model_prefix", "")
    return tuple(name for name, child in module.named_children() if name != base and list(child.parameters()))
