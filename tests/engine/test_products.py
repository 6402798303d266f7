"""Gradients of wide layers as products, against torch's own optimizers and against gradients as large as the weight."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat
from typing import Literal

import pytest
import torch
from tests.builders import ReadyInputs, assert_close, assert_same_bits, deltas_of, jobs_for, start_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from fedelta.data.batches import Examples, batches
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import AdamW, Optimizer, Sgd
from fedelta.engine.products import Change, DenseLayers
from fedelta.engine.work import ClientSettings
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.labels import Labels
from fedelta.tuning.full import Full
from fedelta.tuning.lanes import Lanes

PLAIN = Sgd(momentum=0.0)
OPTIMIZERS: list[tuple[Optimizer, type[torch.optim.Optimizer], dict[str, object]]] = [
    (PLAIN, torch.optim.SGD, {}),
    (Sgd(momentum=0.0, weight_decay=0.1), torch.optim.SGD, {"weight_decay": 0.1}),
    (Sgd(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    (Sgd(momentum=0.9, weight_decay=0.1), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (
        Sgd(momentum=0.5, nesterov=True, weight_decay=0.1),
        torch.optim.SGD,
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
    ),
    (AdamW(eps=1e-3), torch.optim.AdamW, {"eps": 1e-3}),
]


class Wide(nn.Module):
    """One hidden layer of 256 x 512; a change of its weight is kept as a product of up to 21 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(512, 256)
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x).relu_()  # in place: what the hook notes may not be what comes later


class ByName(Wide):
    """Gives the layer its input by name."""

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(input=x).relu()


class Tokens(Wide):
    """Each example is two tokens."""

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x.view(-1, 1, 512).expand(-1, 2, -1)).relu().mean(1)


class Twice(Wide):
    """The same layer, one time on the features and one time on half of them."""

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x).relu() + self.hidden(x / 2)


class Tied(Wide):
    """A second layer has the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(512, 256)
        self.other.weight = self.hidden.weight

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x).relu() + self.other(x / 2)


class Elsewhere(Wide):
    """Uses the weight of the layer, but not the layer, for a second time."""

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x).relu() + linear(x / 2, self.hidden.weight)


class Again(Wide):
    """Computes its features a second time for the gradient, instead of keeping what this needs."""

    def features(self, x: Tensor) -> Tensor:
        return checkpoint(super().features, x, use_reentrant=False)


class Measured(Wide):
    """Reads the weight, and has no gradient of what it reads."""

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x).relu() * (1 + self.hidden.weight.detach().norm())


class Narrowing(Wide):
    """Two wide layers, of which the second has inputs of the precision that the first computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(256, 512)
        self.third = nn.Linear(512, 256)

    def features(self, x: Tensor) -> Tensor:
        return self.third(self.second(super().features(x)))


def engine_of(
    model: type[Wide] = Wide,
    optimizer: Optimizer = PLAIN,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    task: Task = Classification(),  # noqa: B008 a frozen value
    **client: object,
) -> LaneEngine:
    torch.manual_seed(0)
    backbone, lanes = Backbone(model(), Anatomy(("head",))), Lanes(1)
    spec = Full().apply(backbone, lanes, stream(0))
    x, y = torch.randn(30, 512, generator=stream(0, "x")), torch.randint(3, (30,), generator=stream(0, "y"))
    settings = ClientSettings(**({"optimizer": optimizer, "batch_size": 4, "local_epochs": 3} | client))
    examples = Examples(ReadyInputs({"x": x}), Labels(y))
    return LaneEngine(
        backbone, spec, lanes, examples, client=settings, rule=Plain(), compute_dtype=compute_dtype, task=task
    )


def torch_delta(
    model: type[Wide], optimizer: type[torch.optim.Optimizer], options: dict[str, object], weights: Tensor | None = None
) -> Params:
    """What the 12 rows of client 0 change in three passes of batches of 4, by torch alone."""
    torch.manual_seed(0)
    module = model()
    start = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    x, y = torch.randn(30, 512, generator=stream(0, "x")), torch.randint(3, (30,), generator=stream(0, "y"))
    stepper = optimizer(module.parameters(), lr=0.05, **options)
    for rows in batches(torch.arange(12), 4, 9, repeat(stream(0, "batches", 0))):
        stepper.zero_grad()
        cross_entropy(module(x[rows]), y[rows], weights).backward()
        stepper.step()
    return {name: tensor.detach() - start[name] for name, tensor in module.named_parameters()}


def is_product(engine: LaneEngine) -> bool:
    """Whether products are in use for the hidden layer."""
    layers = engine.bank.dense_layers
    return layers is not None and "hidden.weight" in layers.changes


@pytest.mark.parametrize(("optimizer", "reference", "options"), OPTIMIZERS, ids=lambda value: str(value)[:60])
def test_a_wide_layer_takes_the_steps_of_torchs_optimizer(
    optimizer: Optimizer, reference: type[torch.optim.Optimizer], options: dict[str, object]
):
    delta = deltas_of(engine_of(Wide, optimizer), jobs_for([12], start_of(engine_of())))[0]
    assert_close(delta, torch_delta(Wide, reference, options), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model", [Wide, ByName, Tokens, Twice, Tied, Elsewhere, Again, Measured])
def test_a_layer_may_be_used_in_any_way(model: type[Wide]):
    engine = engine_of(model)
    delta = deltas_of(engine, jobs_for([12], start_of(engine)))[0]
    assert_close(delta, torch_delta(model, torch.optim.SGD, {}), rtol=1e-3, atol=1e-6)
    assert is_product(engine) == (model in (Wide, ByName, Tokens))


def test_rows_may_have_weights_in_the_mean():
    weights = {"0": 3.0, "1": 1.0, "2": 0.5}
    engine = engine_of(task=Classification(class_weights=weights))
    delta = deltas_of(engine, jobs_for([12], start_of(engine)))[0]
    assert is_product(engine)
    expected = torch_delta(Wide, torch.optim.SGD, {}, torch.tensor(list(weights.values())))
    assert_close(delta, expected, rtol=1e-3, atol=1e-6)


def test_a_weight_that_is_used_elsewhere_is_noted():
    assert [note.split(":")[0] for note in engine_of(Elsewhere).notes] == [
        "gradients of dense layers are computed as large as their weights"
    ]
    assert engine_of(Wide).notes == []


def test_clients_of_one_anchor_each_train_as_if_alone():
    engine = engine_of()
    jobs = jobs_for([12, 2, 9], start_of(engine))
    together = deltas_of(engine, jobs)
    for job, again in zip(jobs, jobs_for([12, 2, 9], start_of(engine_of())), strict=True):
        assert_same_bits(together[job.client_id], deltas_of(engine_of(), [again])[job.client_id])


def test_an_anchor_whose_values_were_written_to_is_loaded_again():
    engine = engine_of()
    anchor = start_of(engine)
    deltas_of(engine, jobs_for([2], anchor))
    anchor["hidden.weight"] += 1
    engine.bank.load(0, anchor)
    assert torch.equal(engine.bank.read(0)["hidden.weight"], anchor["hidden.weight"])


def test_an_anchor_may_be_one_whose_writes_pytorch_does_not_count():
    bank, start = engine_of().bank, start_of(engine_of())
    with torch.inference_mode():
        anchor = {name: tensor.clone() for name, tensor in start.items()}
        bank.load(0, anchor)
        anchor["hidden.weight"] += 1
        bank.load(0, anchor)
    assert torch.equal(bank.read(0)["hidden.weight"], anchor["hidden.weight"])


def test_a_job_may_have_its_own_rate_and_its_own_value():
    engine = engine_of(local_epochs=1)
    anchor = start_of(engine)
    [job] = jobs_for([4], anchor)
    [local] = jobs_for([4], anchor)
    moved = {"hidden.weight": anchor["hidden.weight"] + 0.01}
    of_rate = deltas_of(engine, [replace(job, lr=0.1)], lr=9.0)[0]
    of_value = deltas_of(engine, [replace(local, local=moved)], lr=0.0)[0]
    [same] = jobs_for([4], anchor)
    assert_close(of_rate, deltas_of(engine_of(local_epochs=1), [same], lr=0.1)[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(of_value["hidden.weight"], torch.full((256, 512), 0.01), rtol=1e-4, atol=1e-7)


def test_what_is_read_while_a_change_is_pending_has_the_change():
    # One step from gradient 1 x 1 with rate 2: every scalar of the weight goes down by 2.
    bank = engine_of().bank
    bank.load(0, start_of(engine_of()))
    change = bank.dense_layers.changes["hidden.weight"]
    before = bank.read(0)["hidden.weight"]
    assert change.add(torch.ones(1, 256), torch.ones(1, 512), -2.0)
    torch.testing.assert_close(bank.read(0)["hidden.weight"], before - 2)
    torch.testing.assert_close(bank.delta(0)["hidden.weight"], torch.full((256, 512), -2.0))


def test_a_weight_that_is_not_loaded_keeps_its_change():
    bank = engine_of().bank
    bank.load(0, start_of(engine_of()))
    before = bank.read(0)["hidden.weight"]
    bank.load(0, start_of(engine_of()))
    assert bank.dense_layers.changes["hidden.weight"].add(torch.ones(1, 256), torch.ones(1, 512), -2.0)
    bank.load(0, {"head.bias": torch.ones(3)})
    torch.testing.assert_close(bank.read(0)["hidden.weight"], before - 2)
    assert not bank.delta(0)["hidden.weight"].any()


@pytest.mark.parametrize("optimizer", [PLAIN, Sgd(momentum=0.9), Sgd(momentum=0.0, weight_decay=0.1)])
def test_in_half_precision_weights_are_still_trained_in_full(optimizer: Optimizer):
    half, full = engine_of(Narrowing, optimizer, "bfloat16"), engine_of(Narrowing, optimizer)
    delta = deltas_of(half, jobs_for([12], start_of(half)))[0]
    expected = deltas_of(full, jobs_for([12], start_of(full)))[0]
    for name, tensor in expected.items():  # 8 bits of each number, and as many of what the next step starts from
        assert torch.linalg.vector_norm(delta[name] - tensor) < 0.1 * torch.linalg.vector_norm(tensor), name


def test_a_confined_client_keeps_a_wide_weight_that_it_does_not_train():
    engine = engine_of()
    [job] = jobs_for([12], start_of(engine))
    delta = deltas_of(engine, [replace(job, moving=("head.weight", "head.bias"))])[0]
    assert not delta["hidden.weight"].any()
    assert delta["head.weight"].any()


def test_a_change_takes_no_more_rows_than_an_eighth_of_the_weight():
    # 256 x 512 / 8 / (256 + 512) = 21.3 rows
    change = Change(torch.zeros(256, 512))
    assert change.add(torch.ones(21, 256), torch.ones(21, 512), 1.0)
    assert not change.add(torch.ones(1, 256), torch.ones(1, 512), 1.0)
    weight = torch.zeros(256, 512)
    change.settle(weight)
    assert weight.unique().tolist() == [21.0]


def test_narrow_layers_and_batches_with_many_rows_have_whole_gradients():
    model = Wide()
    layers = DenseLayers(model, ["hidden.weight", "head.weight"])
    assert list(layers.changes) == ["hidden.weight"]
    # 171 (256 + 512) scalars are more than 256 x 512.
    for num_rows, names in ((170, ["hidden.weight"]), (171, [])):
        with layers.noted():
            model(torch.zeros(num_rows, 512))
        assert list(layers.take()) == names
