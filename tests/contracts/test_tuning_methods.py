"""What every tuning method must do, on every family of models: one test a promise, driven by the table.

Clients are trained with SGD. With AdamW lanes and a plain loop may differ where a gradient is zero but for
rounding, as that of every key bias is (adding a constant to all keys does not change a softmax): AdamW divides
the rounding by its own size and makes a step of it.
"""

from __future__ import annotations

import pytest
import torch
from tests.builders import (
    ARCHITECTURES,
    ReadyInputs,
    assert_close,
    assert_same_bits,
    deltas_of,
    jobs_for,
    start_of,
    tiny_backbone,
    tiny_data,
    tiny_engine,
    tiny_inputs,
)

from fedelta.data.batches import LabelledData, batches
from fedelta.federation.optimizers import Sgd
from fedelta.federation.training import ClientSettings, Job
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.tuning import TUNING_METHODS
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

METHODS: dict[str, TuningMethod] = {name: kind() for name, kind in TUNING_METHODS.items()}
METHODS["lora-all-linear"] = Lora(target_modules="all-linear", r=2)

# More clients than lanes, batches of 4 that do not come out even, a client with a single row.
SIZES = (5, 2, 9, 1, 4)
CLIENT = ClientSettings(local_epochs=2, batch_size=4, lr=0.05, optimizer=Sgd(momentum=0.9, weight_decay=0.01))

everywhere = pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, id=f"{name}-{family}")
        for name, method in METHODS.items()
        for family in ARCHITECTURES
    ],
)


def applied(method: TuningMethod, family: str, num_lanes: int = 3) -> tuple[Backbone, Lanes, ParamSpec]:
    backbone, lanes = tiny_backbone(family), Lanes(min(num_lanes, method.max_lanes or num_lanes))
    return backbone, lanes, method.apply(backbone, lanes, stream(0, "tuning"))


def trained(method: TuningMethod, family: str, lanes: int = 3, data: LabelledData | None = None) -> dict[int, Params]:
    engine, _ = tiny_engine(method, data or tiny_data(family), family=family, lanes=lanes, client=CLIENT)
    return deltas_of(engine, jobs_for(SIZES, start_of(engine)))


def trained_in_a_plain_loop(method: TuningMethod, family: str, data: LabelledData) -> dict[int, Params]:
    """One client after the other, with torch's optimizer on the parameters of a model with one lane."""
    backbone, _, spec = applied(method, family, num_lanes=1)
    parameters = {name: backbone.module.get_parameter(name) for name in spec}
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return {job.client_id: _plain_client(backbone, parameters, start, job, data) for job in jobs_for(SIZES, {})}


def _plain_client(
    backbone: Backbone, parameters: dict[str, torch.nn.Parameter], start: Params, job: Job, data: LabelledData
) -> Params:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    optimizer = torch.optim.SGD(parameters.values(), lr=CLIENT.lr, momentum=0.9, weight_decay=0.01)
    # Batches of 4: two epochs of n rows are 2 * ceil(n / 4) steps.
    for rows in batches(job.rows, 4, 2 * -(-len(job.rows) // 4), job.generator):
        optimizer.zero_grad()
        logits = backbone.logits(data.inputs.fetch(rows))
        torch.nn.functional.cross_entropy(logits, data.labels[rows]).backward()
        optimizer.step()
    return {name: parameter.detach() - start[name] for name, parameter in parameters.items()}


@everywhere
def test_every_name_is_a_parameter_with_or_without_a_lane_axis(method: TuningMethod, family: str):
    backbone, lanes, spec = applied(method, family)
    axis = () if method.max_lanes == 1 else (lanes.num,)
    shapes = {name: tuple(backbone.module.get_parameter(name).shape) for name in spec}
    assert shapes == {name: (*axis, *tensor.shape) for name, tensor in spec.tensors.items()}


@everywhere
def test_what_asks_for_a_gradient_is_what_the_specification_names(method: TuningMethod, family: str):
    backbone, lanes, spec = applied(method, family)
    trainable = {name: parameter for name, parameter in backbone.module.named_parameters() if parameter.requires_grad}
    assert set(trainable) == set(spec)
    assert sum(parameter.numel() for parameter in trainable.values()) == lanes.num * spec.num_parameters


@everywhere
def test_groups_cover_every_tensor_once(method: TuningMethod, family: str):
    _, _, spec = applied(method, family)
    assert sorted(name for names in spec.groups.values() for name in names) == sorted(spec.names)
    assert all(name.startswith(group) for group, names in spec.groups.items() for name in names)


@everywhere
def test_the_model_starts_as_the_untouched_one_in_every_lane(method: TuningMethod, family: str):
    backbone, lanes, _ = applied(method, family)
    inputs = tiny_inputs(family, 2 * lanes.num).tensors
    with torch.no_grad():
        torch.testing.assert_close(backbone.logits(inputs), tiny_backbone(family).logits(inputs))


@everywhere
def test_lanes_give_what_a_plain_loop_gives_client_after_client(method: TuningMethod, family: str):
    data = tiny_data(family)
    plain = trained_in_a_plain_loop(method, family, data)
    in_lanes = trained(method, family, data=data)
    assert sorted(in_lanes) == sorted(plain)
    for client_id, delta in in_lanes.items():
        own = {name: tensor.reshape(delta[name].shape) for name, tensor in plain[client_id].items()}
        # float32: about ten steps, each with sums in another order.
        assert_close(delta, own, rtol=1e-4, atol=1e-6)
        assert any(tensor.abs().max() > 1e-3 for tensor in delta.values())


@everywhere
def test_the_order_of_the_clients_does_not_matter(method: TuningMethod, family: str):
    data, forward = tiny_data(family), trained(method, family)
    engine, _ = tiny_engine(method, data, family=family, lanes=3, client=CLIENT)
    backward = deltas_of(engine, jobs_for(SIZES, start_of(engine))[::-1])
    for client_id, delta in forward.items():
        assert_close(delta, backward[client_id], rtol=1e-4, atol=1e-6)


@everywhere
def test_the_same_seed_gives_the_same_bits(method: TuningMethod, family: str):
    first, second = trained(method, family), trained(method, family)
    for client_id, delta in first.items():
        assert_same_bits(delta, second[client_id])


@everywhere
def test_a_used_engine_gives_the_same_bits_as_a_fresh_one(method: TuningMethod, family: str):
    engine, _ = tiny_engine(method, tiny_data(family), family=family, lanes=3, client=CLIENT)
    anchor = start_of(engine)
    first = deltas_of(engine, jobs_for(SIZES, anchor))
    second = deltas_of(engine, jobs_for(SIZES, anchor))
    for client_id, delta in first.items():
        assert_same_bits(delta, second[client_id])


@everywhere
def test_training_changes_no_frozen_tensor(method: TuningMethod, family: str):
    engine, backbone = tiny_engine(method, tiny_data(family), family=family, lanes=3, client=CLIENT)
    tuned = set(engine.spec)
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items() if name not in tuned}
    deltas_of(engine, jobs_for(SIZES, start_of(engine)))
    assert_same_bits(before, {name: tensor for name, tensor in backbone.module.state_dict().items() if name in before})


@everywhere
def test_the_data_of_one_client_leave_no_trace_in_another(method: TuningMethod, family: str):
    data, rows = tiny_data(family), jobs_for(SIZES, {})[2].rows
    tensors = {name: tensor.clone() for name, tensor in data.inputs.tensors.items()}
    name = next(iter(tensors))
    tensors[name][rows] = tensors[name][rows].flip(0, 1)
    labels = data.labels.clone()
    labels[rows] = (labels[rows] + 1) % 3
    before = trained(method, family, data=data)
    after = trained(method, family, data=LabelledData(ReadyInputs(tensors), labels))
    for client_id in (0, 1, 3, 4):
        assert_same_bits(before[client_id], after[client_id])
    assert not all(torch.equal(before[2][key], after[2][key]) for key in before[2])


@everywhere
def test_the_merged_model_answers_as_lane_zero_and_has_its_own_names_again(method: TuningMethod, family: str):
    backbone, lanes, spec = applied(method, family)
    generator = stream(0, "noise")
    with torch.no_grad():
        for name in spec:
            parameter = backbone.module.get_parameter(name)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    inputs = tiny_inputs(family, 4).tensors
    lanes.active = 1
    with torch.no_grad():
        tuned = backbone.logits(inputs)
        method.merge(backbone)
        merged = backbone.logits(inputs)
    untouched = tiny_backbone(family)
    torch.testing.assert_close(merged, tuned, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged, untouched.logits(inputs), atol=1e-2)
    names = {name: tensor.shape for name, tensor in backbone.module.state_dict().items()}
    assert names == {name: tensor.shape for name, tensor in untouched.module.state_dict().items()}


@everywhere
def test_a_model_without_memory_has_the_same_specification(method: TuningMethod, family: str):
    names = ("a", "b", "c")
    backbone = build(ModelSource(architecture=ARCHITECTURES[family]), names, seed=0, device="meta")
    spec = method.apply(backbone, Lanes(1), stream(0, "tuning"))
    assert spec.tensors == applied(method, family)[2].tensors
    assert {parameter.device.type for parameter in backbone.module.parameters()} == {"meta"}


# Tuned parameters of ViT-B/16 (papers.md, section 2.2), 12 blocks of width 768 with 3,072 inside:
# head 769 C; bias 768 + 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768 = 102,912 and the head;
# LoRA of rank 4 on q and v 12 * 2 * 4 * (768 + 768) = 147,456 and the head; full 85,798,656 and the head.
@pytest.mark.parametrize(
    ("method", "num_classes", "expected"),
    [
        (METHODS["full"], 100, 85_875_556),
        (METHODS["full"], 2, 85_798_656 + 1_538),
        (METHODS["head"], 100, 76_900),
        (METHODS["head"], 45, 34_605),
        (METHODS["head"], 2, 1_538),
        (METHODS["bias"], 100, 179_812),
        (METHODS["bias"], 45, 137_517),
        (METHODS["bias"], 2, 104_450),
        (Lora(r=4), 100, 147_456 + 76_900),
    ],
)
def test_tuned_parameters_of_vit_base_are_those_of_the_paper(method: TuningMethod, num_classes: int, expected: int):
    source = ModelSource(architecture={"model_type": "vit"})
    backbone = build(source, tuple(map(str, range(num_classes))), seed=0, device="meta")
    assert backbone.num_parameters == 85_798_656 + 769 * num_classes
    assert method.apply(backbone, Lanes(1), stream(0, "tuning")).num_parameters == expected


def test_the_names_of_a_tuning_method_do_not_depend_on_the_number_of_lanes():
    specs = [applied(METHODS["lora"], "vit", num_lanes)[2] for num_lanes in (1, 4)]
    assert specs[0].fingerprint == specs[1].fingerprint
