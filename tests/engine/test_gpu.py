"""On a GPU: lanes give what one lane gives, what the CPU gives, and take the memory that was estimated."""

from __future__ import annotations

import pytest
import torch
from tests.builders import deltas_of, jobs_for, start_of, tiny_backbone, tiny_data

from fedelta.engine.footprint import footprint_of
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import AdamW, Sgd
from fedelta.engine.work import ClientSettings
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt

pytestmark = pytest.mark.gpu
SIZES = (6, 3, 5)
METHODS = [
    Lora(),
    Adapter(),
    Bias(),
    Prompt(dropout=0.2),
    Head(),
    Accumulator(num_heads=2, mlp_width=24, head_width=12),
    Full(),
]


def deltas(
    method: TuningMethod, device: str, lanes: int = 3, dtype: str = "float32", family: str = "vit"
) -> dict[int, Params]:
    """Of three clients after a round of two epochs."""
    backbone = tiny_backbone(family)
    backbone.module.to(device)
    shared = Lanes(min(lanes, method.max_lanes or lanes))
    spec = method.apply(backbone, shared, stream(0, "tuning"))
    client = ClientSettings(batch_size=2, local_epochs=2, lr=0.05, optimizer=Sgd())
    engine = LaneEngine(
        backbone, spec, shared, tiny_data(family), client=client, rule=Plain(), cache_bytes=2**20, compute_dtype=dtype
    )
    start = {name: tensor.cpu() for name, tensor in start_of(engine).items()}
    return deltas_of(engine, jobs_for(SIZES, start))


def distance(left: dict[int, Params], right: dict[int, Params]) -> float:
    """Relative to the length of `right`."""
    ours, theirs = (
        torch.cat([tensor.flatten() for client in sorted(side) for _, tensor in sorted(side[client].items())])
        for side in (left, right)
    )
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_lanes_give_what_one_lane_gives(method: TuningMethod):
    assert distance(deltas(method, "cuda"), deltas(method, "cuda", lanes=1)) < 1e-3


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_cpu_gives_the_same(method: TuningMethod):
    assert distance(deltas(method, "cuda"), deltas(method, "cpu")) < 1e-3


@pytest.mark.parametrize("family", ["deit", "bert", "small-resnet"])
def test_other_models_give_the_same(family: str):
    method = Lora(target_modules="all-conv", r=2) if family == "small-resnet" else Lora()
    assert distance(deltas(method, "cuda", family=family), deltas(method, "cpu", family=family)) < 1e-3


def test_deltas_leave_the_gpu():
    assert {tensor.device.type for delta in deltas(Lora(), "cuda").values() for tensor in delta.values()} == {"cpu"}


def test_bfloat16_stays_near_float32():
    assert distance(deltas(Lora(), "cuda", dtype="bfloat16"), deltas(Lora(), "cuda")) < 0.1


def test_two_rounds_have_the_same_bits():
    once, again = deltas(Lora(), "cuda"), deltas(Lora(), "cuda")
    assert all(torch.equal(once[client][name], again[client][name]) for client in once for name in once[client])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_takes_about_the_memory_that_was_estimated(dtype: str):
    backbone = tiny_backbone("vit", hidden_size=256, intermediate_size=1024, num_hidden_layers=4, image_size=32)
    backbone.module.cuda()
    lanes = Lanes(1)
    spec = Lora().apply(backbone, lanes, stream(0))
    pixels = torch.rand(128, 3, 32, 32, device="cuda")
    footprint = footprint_of(backbone, spec, lanes, {"pixel_values": pixels}, optimizer=AdamW(), dtype=dtype)
    estimate = footprint.of_step(1, len(pixels))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = backbone.logits({"pixel_values": pixels}).float().log_softmax(-1).sum()
    torch.autograd.grad(loss, [backbone.module.get_parameter(name) for name in spec])
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.4 * estimate < taken < estimate
