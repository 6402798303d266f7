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
    CONVOLUTIONAL,
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

from fedelta.catalog import TUNING_METHODS
from fedelta.data.batches import Examples, batches
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.tasks.labels import Labels
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.full import Full
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel
from fedelta.tuning.prompt import Prompt

ACCUMULATOR = Accumulator(num_heads=2, mlp_width=24, head_width=12)
BESIDE = Adapter(placement="parallel", shared=False, reduction_factor=4, non_linearity="relu", scale=0.1)
METHODS: dict[str, TuningMethod] = {name: kind() for name, kind in TUNING_METHODS.items()} | {
    "lora": Lora(r=4),
    "lora-all-linear": Lora(target_modules="all-linear", r=2),
    "lora-all-conv": Lora(target_modules="all-conv", r=2),
    "accumulator": ACCUMULATOR,
    "exit-heads-mlp": ExitHeads(head="mlp", head_width=12),
    "adapter-beside": BESIDE,
    "adapter-each-block": Adapter(shared=False, reduction_factor=4, non_linearity="relu"),
    "prompt": Prompt(num_virtual_tokens=3),
    "prompt-shallow": Prompt(num_virtual_tokens=2, depth="shallow", dropout=0.5),
    "parallel-zero": Parallel(init="zero"),
    "lora+bias": Combined(methods=(Lora(r=2), Bias())),
    "bias+lora+adapter+prompt": Combined(
        methods=(Bias(), Lora(r=2, target_modules="all-linear"), Adapter(), Prompt(num_virtual_tokens=2))
    ),
    "accumulator+adapter": Combined(methods=(ACCUMULATOR, BESIDE)),
    "accumulator+lora+bias": Combined(methods=(ACCUMULATOR, Lora(r=2), Bias())),
    "parallel+lora+bias": Combined(methods=(Parallel(init="zero"), Lora(r=2, target_modules="all-conv"), Bias())),
}
ON_CONVOLUTIONS = ("parallel", "parallel-zero", "lora-all-conv", "parallel+lora+bias")
EVERYWHERE = ("full", "head", "bias")
# These start as another function than the pre-trained one: their tensors are drawn.
WITH_EXITS = ("accumulator", "exit-heads", "exit-heads-mlp", "accumulator+adapter", "accumulator+lora+bias")
STARTS_ELSEWHERE = ("prompt", "prompt-shallow", "parallel", "bias+lora+adapter+prompt", *WITH_EXITS)


def fits(name: str, family: str) -> bool:
    """Whether the method is made for the family; what happens to the others is in the tests of each method.

    Of a method in several forms one runs on all families, the others on one of images and one of texts.
    """
    if name not in TUNING_METHODS and family in ("deit", "roberta", "distilbert"):
        return False
    return name in EVERYWHERE or (family in CONVOLUTIONAL) == (name in ON_CONVOLUTIONS)


# More clients than lanes, batches of 4 that do not come out even, a client with a single row.
SIZES = (5, 2, 9, 1, 4)
CLIENT = ClientSettings(local_epochs=2, batch_size=4, lr=0.05, optimizer=Sgd(momentum=0.9, weight_decay=0.01))

everywhere = pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, id=f"{name}-{family}")
        for name, method in METHODS.items()
        for family in ARCHITECTURES
        if fits(name, family)
    ],
)


def applied(method: TuningMethod, family: str, num_lanes: int = 3) -> tuple[Backbone, Lanes, ParamSpec]:
    backbone, lanes = tiny_backbone(family), Lanes(min(num_lanes, method.max_lanes or num_lanes))
    return backbone, lanes, method.apply(backbone, lanes, stream(0, "tuning"))


def trained(method: TuningMethod, family: str, lanes: int = 3, data: Examples | None = None) -> dict[int, Params]:
    engine, _ = tiny_engine(method, data or tiny_data(family), family=family, lanes=lanes, client=CLIENT)
    assert (engine.lanes.num, engine.notes) == (min(lanes, method.max_lanes or lanes), [])
    return deltas_of(engine, jobs_for(SIZES, start_of(engine)))


def trained_in_a_plain_loop(method: TuningMethod, family: str, data: Examples) -> dict[int, Params]:
    """One client after the other, with torch's optimizer on the parameters of a model with one lane."""
    backbone, lanes, spec = applied(method, family, num_lanes=1)
    parameters = {name: backbone.module.get_parameter(name) for name in spec}
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return {job.client_id: _plain_client(backbone, lanes, parameters, start, job, data) for job in jobs_for(SIZES, {})}


def _plain_client(
    backbone: Backbone,
    lanes: Lanes,
    parameters: dict[str, torch.nn.Parameter],
    start: Params,
    job: Job,
    data: Examples,
) -> Params:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=CLIENT.lr, momentum=0.9, weight_decay=0.01)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # kept: what a loss does not reach decays all the same
    # Batches of 4: two epochs of n rows are 2 * ceil(n / 4) steps.
    for rows in batches(job.rows, 4, 2 * -(-len(job.rows) // 4), job.order):
        optimizer.zero_grad(set_to_none=False)
        with lanes.training([len(rows)], [job.noise]):
            logits = backbone.logits(data.inputs.fetch(rows))
        torch.nn.functional.cross_entropy(logits, data.targets.values[rows]).backward()
        optimizer.step()
    return {name: parameter.detach() - start[name] for name, parameter in parameters.items()}


@everywhere
def test_every_name_is_a_parameter_with_or_without_a_lane_axis(method: TuningMethod, family: str):
    backbone, lanes, spec = applied(method, family)
    for name, tensor in spec.tensors.items():
        shape = tuple(backbone.module.get_parameter(name).shape)
        assert shape == (lanes.num, *tensor.shape) or (lanes.num == 1 and shape == tensor.shape)


@everywhere
def test_what_asks_for_a_gradient_is_what_the_specification_names(method: TuningMethod, family: str):
    backbone, lanes, spec = applied(method, family)
    trainable = {name: parameter for name, parameter in backbone.module.named_parameters() if parameter.requires_grad}
    assert set(trainable) == {name for name, tensor in spec.tensors.items() if tensor.trained}
    assert sum(parameter.numel() for parameter in trainable.values()) == lanes.num * spec.num_parameters


@everywhere
def test_groups_cover_every_tensor_once(method: TuningMethod, family: str):
    _, _, spec = applied(method, family)
    assert sorted(name for names in spec.groups.values() for name in names) == sorted(spec.names)
    # A group is called after its first tensor's layer; norms ride along with the layer before them.
    assert all(any(name.startswith(group) for name in names) for group, names in spec.groups.items())


@everywhere
def test_names_come_in_the_order_of_the_model(method: TuningMethod, family: str):
    backbone, _, spec = applied(method, family)
    assert list(spec) == [name for name, _ in backbone.module.named_parameters() if name in spec.tensors]


@pytest.mark.parametrize(
    ("name", "family"),
    [(n, f) for n in METHODS for f in ARCHITECTURES if fits(n, f) and n not in STARTS_ELSEWHERE],
)
def test_the_model_starts_as_the_untouched_one_in_every_lane(name: str, family: str):
    method = METHODS[name]
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
def test_in_half_precision_a_step_goes_nearly_the_same_way(method: TuningMethod, family: str):
    # One step of one client: its delta, seen as one vector, points where that in float32 points.
    deltas = []
    for dtype in ("float32", "bfloat16"):
        client = ClientSettings(local_steps=1, batch_size=9, optimizer=Sgd(momentum=0.0))
        engine, _ = tiny_engine(
            method, tiny_data(family), family=family, lanes=2, client=client, compute_dtype=dtype
        )  # fmt: skip
        found = deltas_of(engine, jobs_for((9, 7), start_of(engine)))
        deltas.append(torch.cat([tensor.flatten() for tensor in found[0].values()]))
        assert engine.evaluate(start_of(engine), tiny_data(family)).measures["loss_nats"] > 0
    assert torch.nn.functional.cosine_similarity(*deltas, dim=0) > 0.98


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
    module = backbone.module

    def frozen() -> Params:
        # Not the state dictionary: there an adapter that blocks share has many names.
        named = [*module.named_parameters(), *module.named_buffers()]
        return {name: tensor.detach().clone() for name, tensor in named if name not in tuned}

    before = frozen()
    deltas_of(engine, jobs_for(SIZES, start_of(engine)))
    assert_same_bits(before, frozen())


@everywhere
def test_the_data_of_one_client_leave_no_trace_in_another(method: TuningMethod, family: str):
    data, rows = tiny_data(family), jobs_for(SIZES, {})[2].rows
    tensors = {name: tensor.clone() for name, tensor in data.inputs.tensors.items()}
    name = next(iter(tensors))
    tensors[name][rows] = tensors[name][rows].flip(0, 1)
    labels = data.targets.values.clone()
    labels[rows] = (labels[rows] + 1) % 3
    before = trained(method, family, data=data)
    after = trained(method, family, data=Examples(ReadyInputs(tensors), Labels(labels)))
    for client_id in (0, 1, 3, 4):
        assert_same_bits(before[client_id], after[client_id])
    assert not all(torch.equal(before[2][key], after[2][key]) for key in before[2])


@everywhere
def test_the_merged_model_answers_as_lane_zero_and_if_it_can_has_its_own_names_again(method: TuningMethod, family: str):
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
    untouched_names = {name: tensor.shape for name, tensor in untouched.module.state_dict().items()}
    assert (names == untouched_names) == method.merges


@everywhere
def test_a_model_without_memory_has_the_same_specification(method: TuningMethod, family: str):
    names = ("a", "b", "c")
    backbone = build(ModelSource(architecture=ARCHITECTURES[family]), names, seed=0, device="meta")
    spec = method.apply(backbone, Lanes(1), stream(0, "tuning"))
    assert spec.tensors == applied(method, family)[2].tensors
    assert {parameter.device.type for parameter in backbone.module.parameters()} == {"meta"}


# Tuned parameters of ViT-B/16 (papers.md, section 2.2), 12 blocks of width 768 with 3,072 inside:
# head 769 C; bias 768 + 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768 = 102,912 and the head;
# LoRA of rank 4 on q and v 12 * 2 * 4 * (768 + 768) = 147,456 and the head; full 85,798,656 and the head;
# one adapter for all blocks 2 * 768 * 96 + 96 + 768 = 148,320 and the head, one for each 12 * 148,320 = 1,779,840;
# ten prompts for each block 12 * 10 * 768 = 92,160 and the head.
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
        (Adapter(), 100, 225_220),
        (Adapter(), 45, 182_925),
        (Adapter(), 2, 149_858),
        (Adapter(shared=False), 100, 1_856_740),
        (Prompt(), 100, 169_060),
        (Prompt(), 45, 126_765),
        (Prompt(), 2, 93_698),
        (Prompt(depth="shallow"), 100, 7_680 + 76_900),
        (Combined(methods=(Lora(r=4), Bias())), 100, 147_456 + 179_812),
    ],
)
def test_tuned_parameters_of_vit_base_are_those_of_the_paper(method: TuningMethod, num_classes: int, expected: int):
    source = ModelSource(architecture={"model_type": "vit"})
    backbone = build(source, tuple(map(str, range(num_classes))), seed=0, device="meta")
    assert backbone.num_parameters == 85_798_656 + 769 * num_classes
    assert method.apply(backbone, Lanes(1), stream(0, "tuning")).num_parameters == expected


# With 12 blocks of width D and 25 or 13 positions (papers.md, section 4.2), C classes. DeiT-small, D = 384: attention
# 384 * 1152 + 384 * 384 + 384 and its norm 768, FFN 2 * 384 * 1536 + 1536 + 384 and its norm 768, head 768 +
# 384 * 1536 + 1536 + 1537 C, token and positions 26 * 384; adapters 12 * (2 * 384 * 64 + 64 + 384) = 595,200.
# DeiT-base, D = 768, the same with 14 * 768; adapters 12 * (2 * 768 * 64 + 64 + 768).
# Heads behind every block 12 * 385 C, or 12 * (768 + 384 * 1536 + 1536 + 1537 C).
AS_PUBLISHED = Accumulator(num_positions=25)
BESIDE_64 = Adapter(placement="parallel", shared=False, reduction_factor=6, non_linearity="relu", scale=0.1)
REEFL = Accumulator(
    attention_width=16, num_heads=8, qkv_bias=True, mlp_width=518, head="linear", init_std=0.02
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "size", "num_classes", "expected"),
    [
        (AS_PUBLISHED, "small", 100, 2_529_124),
        (Combined(methods=(AS_PUBLISHED, BESIDE_64)), "small", 100, 3_124_324),
        (Combined(methods=(AS_PUBLISHED, BESIDE_64)), "small", 62, 3_065_918),
        (Combined(methods=(AS_PUBLISHED, BESIDE_64)), "small", 35, 3_024_419),
        (Combined(methods=(AS_PUBLISHED, BESIDE_64)), "small", 12, 2_989_068),
        (
            Combined(methods=(Accumulator(), BESIDE_64.model_copy(update={"reduction_factor": 12}))),
            "base", 100, 7_261_540,
        ),
        (ExitHeads(), "small", 100, 462_000),
        (ExitHeads(head="mlp"), "small", 100, 8_949_936),
        (REEFL, "small", 100, 469_914),
    ],
)  # fmt: skip
def test_tuned_parameters_of_deit_with_exits_are_those_of_the_papers(
    method: TuningMethod, size: str, num_classes: int, expected: int
):
    sizes = {"small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}, "base": {}}
    source = ModelSource(architecture={"model_type": "deit"} | sizes[size])
    backbone = build(source, tuple(map(str, range(num_classes))), seed=0, device="meta")
    assert method.apply(backbone, Lanes(1), stream(0, "tuning")).num_parameters == expected


# Parameters of the networks and of parallel adapters (papers.md, sections 1.3 and 3.2): for ResNet26 3x3 kernels
# 5,806,944, adapters a ninth of that, 645,216, norms 7,744, head 257 C; the statistics, 7,744 more, are not trained.
@pytest.mark.parametrize(
    ("network", "num_classes", "parameters", "in_parallel"),
    [
        ("resnet26", 10, 5_817_258, 645_216 + 7_744 + 2_570),
        ("resnet26", 100, 5_840_388, 645_216 + 7_744 + 25_700),
        ("resnet20", 10, 272_762, None),
        ("wrn28-10", 100, 36_539_124, None),
        ("femnist-cnn", 62, 6_603_710, None),
    ],
)
def test_networks_have_the_parameters_of_the_papers(network, num_classes, parameters, in_parallel):
    def built() -> Backbone:
        source = ModelSource(architecture={"model_type": network})
        return build(source, tuple(map(str, range(num_classes))), seed=0, device="meta")

    assert built().num_parameters == parameters
    assert Full().apply(built(), Lanes(1), stream(0)).num_parameters == parameters
    if in_parallel is not None:
        spec = Parallel().apply(built(), Lanes(1), stream(0))
        assert spec.num_parameters == in_parallel
        assert sum(tensor.numel for tensor in spec.tensors.values() if not tensor.trained) == 7_744


def test_the_names_of_a_tuning_method_do_not_depend_on_the_number_of_lanes():
    specs = [applied(METHODS["lora"], "vit", num_lanes)[2] for num_lanes in (1, 4)]
    assert specs[0].fingerprint == specs[1].fingerprint
