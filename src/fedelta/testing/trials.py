"""Test objects for tuning methods: small models, engines, five clients, and a plain training loop as a reference.

Clients are trained with SGD. AdamW would turn a gradient that is zero except for rounding, such as that of a key
bias (a softmax does not change if a constant is added to all keys), into a full step, because it divides by the
gradient's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Literal

import torch

from fedelta.data.batches import Examples, batches
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.testing.contract import copied, no_global_draws
from fedelta.testing.small import small_data, small_model
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lanes import Lanes

NUM_LANES = 3
# More clients than lanes, ragged last batches, and a client with a single row.
_SIZES = (5, 2, 9, 1, 4)
_CLIENT = ClientSettings(local_epochs=2, batch_size=4, lr=0.05, optimizer=Sgd(momentum=0.9, weight_decay=0.01))
CHANGED = 2  # the client with other rows if `changed` is set


@dataclass(frozen=True)
class Applied:
    """A small model with the method applied.

    Args:
        backbone: edited by the method.
        lanes: of its tuning modules.
        spec: result of `apply`.
    """

    backbone: Backbone
    lanes: Lanes
    spec: ParamSpec


@dataclass(frozen=True)
class TuningTrial:
    """A tuning method on one small model; results that several contracts need are computed once.

    Args:
        method: the tuning method to test.
        family: a key of `SMALL_MODELS`.
    """

    method: TuningMethod
    family: str

    @cached_property
    def fits(self) -> bool:
        """Whether the method fits the model."""
        try:
            self.start  # noqa: B018  computed here
        except ModelError:
            return False
        return True

    @cached_property
    def start(self) -> Applied:
        """The model after `apply`; no contract changes it."""
        return self.applied()

    def applied(self, num_lanes: int = NUM_LANES, device: str = "cpu", seed: int = 0) -> Applied:
        """A new model with the method applied, with the maximum number of lanes."""
        backbone = small_model(self.family, device)
        lanes = Lanes(min(num_lanes, self.method.max_lanes or num_lanes))
        spec = self.method.apply(backbone, lanes, stream(seed, "tuning"))
        return Applied(backbone, lanes, spec)

    @cached_property
    def data(self) -> Examples:
        """24 training rows."""
        return small_data(self.family)

    @cached_property
    def model(self) -> Applied:
        """The model of `trainer`."""
        return self.applied()

    @cached_property
    def trainer(self) -> LaneEngine:
        """The engine, with the maximum number of lanes."""
        return self.engine(self.model)

    @cached_property
    def deltas(self) -> dict[int, Params]:
        """Client id to its delta, from the new engine."""
        with no_global_draws():
            return self.trained(self.trainer)

    def trained(
        self, engine: LaneEngine, sizes: Sequence[int] = _SIZES, *, backward: bool = False, changed: bool = False
    ) -> dict[int, Params]:
        """Client id to its delta after training in `engine`.

        Args:
            engine: of this trial.
            sizes: rows of each client.
            backward: whether clients enter the lanes in reverse order.
            changed: whether client 2 has other rows, of the same number.
        """
        values = values_of(self.start).items()
        anchor = {name: value.detach().reshape(-1, *self.start.spec.tensors[name].shape)[0] for name, value in values}
        jobs = _jobs(sizes, anchor, changed=changed)
        return {each.client_id: each.delta for each in engine.train(jobs[::-1] if backward else jobs, _CLIENT.lr)}

    def engine(
        self,
        applied: Applied,
        client: ClientSettings = _CLIENT,
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> LaneEngine:
        """A new engine on this model."""
        return LaneEngine(
            applied.backbone, applied.spec, applied.lanes, self.data, client=client, rule=Plain(),
            compute_dtype=compute_dtype,
        )  # fmt: skip


def _jobs(sizes: Sequence[int], anchor: Params, *, changed: bool = False) -> list[Job]:
    """One job per client; client i has the next `sizes[i]` rows."""
    rows = list(torch.arange(sum(sizes)).split(list(sizes)))
    if changed:
        rows[CHANGED] = torch.arange(24 - len(rows[CHANGED]), 24)
    return [
        Job(client, of_client, anchor, order=repeat(stream(0, "batches", client)), noise=stream(0, "dropout", client))
        for client, of_client in enumerate(rows)
    ]


def trained_in_a_plain_loop(trial: TuningTrial) -> dict[int, Params]:
    """Client id to its delta from a plain loop, with torch's optimizer on a model with one lane."""
    applied = trial.applied(num_lanes=1)
    start = copied(values_of(applied))
    return {job.client_id: _trained_alone(applied, start, job, trial.data) for job in _jobs(_SIZES, {})}


def _trained_alone(applied: Applied, start: Params, job: Job, data: Examples) -> Params:
    put(applied, start)
    parameters = values_of(applied)
    moving = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=_CLIENT.lr, momentum=0.9, weight_decay=0.01)
    for parameter in moving:
        parameter.grad = torch.zeros_like(parameter)  # kept, because tensors without a gradient decay too
    # Batches of 4: two epochs of n rows are 2 * ceil(n / 4) steps.
    for rows in batches(job.rows, 4, 2 * -(-len(job.rows) // 4), job.order):
        optimizer.zero_grad(set_to_none=False)
        with applied.lanes.training([len(rows)], [job.noise]):
            logits = applied.backbone.logits(data.inputs.fetch(rows))
        torch.nn.functional.cross_entropy(logits, data.targets.fetch(rows)).backward()
        optimizer.step()
    return {name: parameter.detach() - start[name] for name, parameter in parameters.items()}


def values_of(applied: Applied) -> Params:
    """The tuned parameters, with their lanes."""
    return {name: applied.backbone.module.get_parameter(name) for name in applied.spec}


def drawn_values(applied: Applied) -> Params:
    """The values of all tuned tensors with noise added."""
    generator = stream(0, "noise")
    values = {name: value.detach() for name, value in values_of(applied).items()}
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in values.items()}


def put(applied: Applied, values: Params) -> None:
    """Sets the tuned tensors to these values."""
    with torch.no_grad():
        for name, parameter in values_of(applied).items():
            parameter.copy_(values[name])
