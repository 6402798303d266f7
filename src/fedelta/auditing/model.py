"""The small model of an audit: the run's tuning method on a few layers, which take milliseconds.

An audit is about clipping, noise, sampling and counting, which know a model only as names, groups and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from fedelta.data.clients import Clients
from fedelta.engine.dp_sgd import DpSgd
from fedelta.engine.exits import ExitSettings
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.errors import ModelError
from fedelta.federation.tiers import Tiers
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.seeds import stream
from fedelta.settings.base import as_settings
from fedelta.strategies.local import Plain
from fedelta.testing.small import small_data, small_model
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import Combined
from fedelta.tuning.contract import applied
from fedelta.tuning.exits import exit_blocks, owned_at
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

NUM_ROWS = 24
_FAMILIES = ("vit", "bert", "small-resnet", "resnet")
_NUM_LANES = 4
_ANY_DEPTH = 10**6
_SPREAD = 0.2  # of the tuned tensors: a new LoRA has gradients of zero in half of its tensors


@dataclass(frozen=True)
class SmallModel:
    """Which small model an audit uses.

    Args:
        tuning: the tuning method, without dropout.
        family: a key of `testing.small.SMALL_MODELS`.
        spec: what is tuned.
    """

    tuning: TuningMethod
    family: str
    spec: ParamSpec

    @property
    def start(self) -> Params:
        """Random values for all tuned tensors."""
        return {
            name: _SPREAD * torch.randn(tensor.shape, generator=stream(0, "audit", name))
            for name, tensor in self.spec.tensors.items()
        }

    @property
    def small_spec(self) -> ParamSpec:
        """`spec` with the same names and groups, but with axes of length two at most."""
        tensors = {
            name: TensorSpec(tuple(min(size, 2) for size in tensor.shape), tensor.group, tensor.trained, tensor.shared)
            for name, tensor in self.spec.tensors.items()
        }
        return ParamSpec(tensors)

    def tiers(self, exits: ExitSettings, clients: Clients, seed: int) -> Tiers | None:
        """Which client holds which tensors; the blocks of the run's model become the few of this one.

        Raises:
            ConfigError: the depths of the clients cannot be read.
        """
        backbone = small_model(self.family)
        spec = _applied(self.tuning, backbone, Lanes(1))
        num_blocks = len(exit_blocks(backbone.module))
        if not num_blocks:
            return None
        depths = exits.depths(clients, _ANY_DEPTH, seed)
        deepest = max(depths.values())
        depths = {client_id: -(-depth * num_blocks // deepest) for client_id, depth in depths.items()}
        owned = {depth: owned_at(backbone, spec, depth, exits.answers(depth)) for depth in set(depths.values())}
        return None if all(len(names) == len(spec) for names in owned.values()) else Tiers(depths, owned)

    def engine(self, client: ClientSettings, dp: DpSgd) -> LaneEngine:
        """A new engine for the rows of the audit."""
        backbone, lanes = small_model(self.family), Lanes(min(_NUM_LANES, self.tuning.max_lanes or _NUM_LANES))
        spec = _applied(self.tuning, backbone, lanes)
        return LaneEngine(backbone, spec, lanes, small_data(self.family, NUM_ROWS), client=client, rule=Plain(), dp=dp)


def client_settings(batch_size: int = 1) -> ClientSettings:
    """One plain step of length 1 in a round, so that a delta is a gradient with its sign changed."""
    return ClientSettings(local_steps=1, batch_size=batch_size, lr=1.0, optimizer=Sgd(momentum=0.0))


def model_for(tuning: TuningMethod) -> tuple[SmallModel, tuple[str, ...]]:
    """The small model for a run's tuning method, and notes if another method takes its place."""
    plain = _without_dropout(tuning)
    for family in _FAMILIES:
        try:
            return SmallModel(plain, family, _applied(plain, small_model(family), Lanes(1))), ()
        except ModelError:
            continue
    note = f"tuning method {tuning.name!r} does not fit the small model of an audit; LoRA takes its place."
    lora = Lora()
    return SmallModel(lora, "vit", _applied(lora, small_model("vit"), Lanes(1))), (note,)


def _applied(tuning: TuningMethod, backbone: Backbone, lanes: Lanes) -> ParamSpec:
    return applied(tuning, backbone, lanes, stream(0, "tuning"))


def _without_dropout(tuning: TuningMethod) -> TuningMethod:
    """Gradients without dropout are the same in every step."""
    if isinstance(tuning, Combined):
        return tuning.model_copy(update={"methods": tuple(map(_without_dropout, tuning.methods))})
    settings = as_settings(tuning)
    if "dropout" not in type(settings).model_fields:
        return tuning
    return cast(TuningMethod, settings.model_copy(update={"dropout": 0.0}))  # a copy of a method is one
