"""Lane forms of a model's own layers: whole models in lanes train as they do one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from tests.builders import ReadyInputs, assert_close, assert_same_bits, deltas_of, start_of
from torch import Tensor, nn

from fedelta.data.batches import Examples
from fedelta.engine.dp_sgd import DpSgd
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import AdamW, Optimizer, Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.base import LocalRule
from fedelta.strategies.local import FedProx, Plain
from fedelta.tasks.labels import Labels
from fedelta.tuning.full import Full
from fedelta.tuning.lane_layers import LaneLayer, can_have_lanes
from fedelta.tuning.lanes import Lanes

SIZES = (6, 3, 5, 4)  # examples of each client: with batches of 4, lanes have batches of unequal length
EVEN = (4, 4, 4)
NUM_CLASSES = 3


class Network(nn.Module):
    """A body and a head."""

    def __init__(self, *body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*body), nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Twice(nn.Module):
    """One weight that two layers have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, NUM_CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1)[:, :6])))))


def perceptron() -> nn.Module:
    return Network(nn.Flatten(), nn.Linear(32, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5, bias=False), width=5)


def convolutional() -> nn.Module:
    return Network(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(),
        nn.Conv2d(4, 4, (3, 1), padding="same", groups=2, dilation=2, bias=False), nn.ReLU(), nn.Flatten(),
        width=16,
    )  # fmt: skip


def normed() -> nn.Module:
    return Network(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), width=12)


NETWORKS = [perceptron, convolutional, normed, Twice]


def engine_of(
    network: Callable[[], nn.Module],
    lanes: int,
    *,
    optimizer: Optimizer = Sgd(momentum=0.0),  # noqa: B008 a frozen value
    rule: LocalRule | None = None,
    dp: DpSgd | None = None,
    epochs: int = 2,
) -> LaneEngine:
    module, generator = network(), stream(0, "network")
    for tensor in module.parameters():
        tensor.data.normal_(std=0.5, generator=generator)
    num_rows = sum(SIZES)
    images = torch.randn(num_rows, 2, 4, 4, generator=stream(0, "images"))
    labels = Labels(torch.randint(NUM_CLASSES, (num_rows,), generator=stream(0, "labels")))
    backbone, shared = Backbone(module.eval(), Anatomy(("head",))), Lanes(lanes)
    spec = Full().apply(backbone, shared, stream(0))
    client = ClientSettings(local_epochs=epochs, batch_size=4, lr=0.05, optimizer=optimizer)
    data = Examples(ReadyInputs({"x": images}), labels)
    return LaneEngine(backbone, spec, shared, data, client=client, rule=rule or Plain(), dp=dp)


def jobs(anchor: Params, sizes: tuple[int, ...] = SIZES) -> list[Job]:
    rows = torch.arange(sum(sizes)).split(list(sizes))
    return [
        Job(client, own, anchor, order=repeat(stream(0, "batches", client)), noise=stream(0, "dropout", client))
        for client, own in enumerate(rows)
    ]


def assert_lanes_train_as_one(
    network: Callable[[], nn.Module],
    change: Callable[[Job], Job] = lambda job: job,
    sizes: tuple[int, ...] = SIZES,
    **engine: object,
) -> None:
    alone, together = engine_of(network, 1, **engine), engine_of(network, 3, **engine)
    assert together.lanes.num == 3, together.notes
    expected = deltas_of(alone, list(map(change, jobs(start_of(alone), sizes))))
    deltas = deltas_of(together, list(map(change, jobs(start_of(together), sizes))))
    for client, delta in expected.items():
        assert max(float(tensor.abs().max()) for tensor in delta.values()) > 1e-3
        assert_close(deltas[client], delta, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sizes", [SIZES, EVEN])
def test_whole_models_in_lanes_train_as_one_after_the_other(network: Callable[[], nn.Module], sizes: tuple[int, ...]):
    assert_lanes_train_as_one(network, sizes=sizes)


@pytest.mark.parametrize(
    "optimizer",
    [Sgd(momentum=0.9, nesterov=True), Sgd(weight_decay=0.1), AdamW(eps=1e-3, weight_decay=0.1)],
    ids=["momentum", "decay", "adamw"],
)
def test_so_they_do_with_every_optimizer(optimizer: Optimizer):
    assert_lanes_train_as_one(perceptron, optimizer=optimizer)


def test_so_they_do_with_the_pull_of_fedprox():
    assert_lanes_train_as_one(convolutional, rule=FedProx(mu=1.0))


def test_so_they_do_with_offsets_of_gradients_as_in_scaffold():
    def steered(job: Job) -> Job:
        drawn = {name: torch.randn(t.shape, generator=stream(job.client_id, name)) for name, t in job.anchor.items()}
        return replace(job, offset=drawn)

    assert_lanes_train_as_one(perceptron, steered)


def test_so_they_do_where_some_tensors_stay_at_their_anchors():
    assert_lanes_train_as_one(perceptron, lambda job: replace(job, moving=frozenset({"head.weight", "body.1.bias"})))


def test_so_they_do_with_learning_rates_of_their_own():
    assert_lanes_train_as_one(normed, lambda job: replace(job, lr=0.02 * (1 + job.client_id)))


@pytest.mark.parametrize("network", [perceptron, convolutional])
def test_examples_in_lanes_give_the_private_gradient_of_one_after_the_other(network: Callable[[], nn.Module]):
    def silent(job: Job) -> Job:
        return replace(job, noise_of_step=lambda step, exact: torch.zeros(exact.numel(), dtype=torch.float64))

    assert_lanes_train_as_one(network, silent, dp=DpSgd(0.5))


def test_lanes_change_no_name_and_no_shape():
    for network in NETWORKS:
        assert engine_of(network, 3).spec == engine_of(network, 1).spec


@pytest.mark.parametrize("network", NETWORKS)
def test_merged_it_is_the_model_that_it_was(network: Callable[[], nn.Module]):
    plain, backbone = network(), Backbone(network().eval(), Anatomy(("head",)))
    backbone.module.load_state_dict(plain.state_dict())
    spec = Full().apply(backbone, Lanes(3), stream(0))
    assert any(isinstance(layer, LaneLayer) for layer in backbone.module.modules())
    Full().merge(backbone)
    assert_same_bits(dict(backbone.module.state_dict()), dict(plain.state_dict()))
    assert [type(layer) for layer in backbone.module.modules()] == [type(layer) for layer in plain.modules()]
    assert set(dict(backbone.module.named_parameters())) <= set(spec.names)  # a tied weight is still one


class Scale(nn.Module):
    """A layer with a tensor of its own that has no lane form."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def of_other_kind() -> nn.Module:
    return Network(nn.Flatten(), nn.Linear(32, 5), Scale(), width=5)


def of_one_layer_at_two_places() -> nn.Module:
    layer = nn.Linear(32, 32)
    return Network(nn.Flatten(), layer, nn.ReLU(), layer, width=32)


def with_circular_padding() -> nn.Module:
    return Network(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), width=32)


@pytest.mark.parametrize("network", [of_other_kind, of_one_layer_at_two_places, with_circular_padding])
def test_a_model_that_cannot_have_lanes_trains_in_one_with_its_own_layers(network: Callable[[], nn.Module]):
    assert not can_have_lanes(network())
    engine = engine_of(network, 3)
    assert engine.lanes.num == 1
    assert engine.bank.by_tensor
    alone = engine_of(network, 1)
    deltas, expected = (deltas_of(it, jobs(start_of(it))) for it in (engine, alone))
    for client, delta in expected.items():
        assert_same_bits(deltas[client], delta)


def test_a_layer_alone_is_no_model_with_lanes():
    assert not can_have_lanes(nn.Linear(2, 2))
