"""An engine checks its lanes when it is made: for a model that would mix clients it uses one lane and notes why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.builders import (
    ReadyInputs,
    assert_same_bits,
    deltas_of,
    jobs_for,
    start_of,
    tiny_backbone,
    tiny_data,
    tiny_engine,
)
from torch import Tensor, nn

from fedelta.data.batches import Examples
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tasks.labels import Labels
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.full import Full
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel
from fedelta.tuning.prompt import Prompt

TOKENS, WIDTH = 4, 8
SIZES = (5, 2, 9, 1)


class Small(nn.Module):
    """Tokens [N, T, D] through a tuned layer; `arrange` reorders its input and `restore` its output."""

    def __init__(self, arrange: Callable[..., Tensor], restore: Callable[..., Tensor]) -> None:
        super().__init__()
        self.arrange, self.restore = arrange, restore
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.shared = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        arranged = self.arrange(self, x)
        return self.head(self.restore(self, x, self.layer(arranged)).sin().mean(1))


def same(model: Small, x: Tensor, y: Tensor | None = None) -> Tensor:
    return x if y is None else y


def tokens_first(model: Small, x: Tensor, y: Tensor | None = None) -> Tensor:
    return (x if y is None else y).transpose(0, 1)


def windows_of_each_sample(model: Small, x: Tensor, y: Tensor | None = None) -> Tensor:
    return x.reshape(-1, 2, WIDTH) if y is None else y.reshape(x.shape)


def samples_of_each_window(model: Small, x: Tensor, y: Tensor | None = None) -> Tensor:
    if y is None:
        return x.unflatten(1, (2, 2)).transpose(0, 1).flatten(0, 1)
    return y.unflatten(0, (2, -1)).transpose(0, 1).flatten(1, 2)


def shared_by_all(model: Small, x: Tensor, y: Tensor | None = None) -> Tensor:
    return model.shared if y is None else x + y


def less_the_mean_of_the_batch(model: Small, x: Tensor, y: Tensor | None = None) -> Tensor:
    return x if y is None else y - y.mean(0)


def first_come_first_served(model: Small, x: Tensor, y: Tensor | None = None) -> Tensor:
    """An expert that has room for three samples of the batch."""
    return x if y is None else torch.cat([y[:3], x[3:]])


class Fails(Small):
    """Takes an even number of samples, or one."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("only so many samples are supported")
        return super().forward(x)


def engine_of(module: nn.Module, num_lanes: int, method: TuningMethod | None = None) -> LaneEngine:
    backbone, lanes = Backbone(module.eval(), Anatomy(("head",))), Lanes(num_lanes)
    spec = (method or Lora(r=2, target_modules=("layer",))).apply(backbone, lanes, stream(0))
    inputs = ReadyInputs({"x": torch.randn(sum(SIZES), TOKENS, WIDTH, generator=stream(1))})
    data = Examples(inputs, Labels(torch.arange(sum(SIZES)) % 3))
    client = ClientSettings(batch_size=4, optimizer=Sgd())
    return LaneEngine(backbone, spec, lanes, data, client=client, rule=Plain())


def small(arrange: Callable[..., Tensor], kind: type[Small] = Small) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(arrange, arrange)


@pytest.mark.parametrize("method", [Lora(r=2, target_modules=("layer",)), Bias()], ids=["lora", "bias"])
@pytest.mark.parametrize("num_lanes", [2, 3, 4, 7])
@pytest.mark.parametrize(
    "arrange",
    [
        tokens_first,
        samples_of_each_window,
        shared_by_all,
        less_the_mean_of_the_batch,
        pytest.param(first_come_first_served, id="first_come_first_served"),
    ],
)
def test_a_model_that_mixes_the_samples_of_a_batch_trains_in_one_lane(arrange, num_lanes: int, method: TuningMethod):
    engine = engine_of(small(arrange), num_lanes, method)
    assert engine.lanes.num == 1
    [note] = engine.notes
    assert f"in one lane instead of {num_lanes}: Small with this tuning method would mix them" in note
    alone = engine_of(small(arrange), 1, method)
    assert alone.notes == []
    deltas = [deltas_of(lane_engine, jobs_for(SIZES, start_of(lane_engine))) for lane_engine in (engine, alone)]
    for client_id, delta in deltas[0].items():
        assert_same_bits(delta, deltas[1][client_id])


@pytest.mark.parametrize("num_lanes", [2, 3, 4, 7])
@pytest.mark.parametrize("arrange", [same, windows_of_each_sample])
def test_a_model_that_keeps_the_samples_in_order_keeps_its_lanes(arrange, num_lanes: int):
    engine = engine_of(small(arrange), num_lanes)
    assert (engine.lanes.num, engine.notes) == (num_lanes, [])


def test_a_model_that_fails_on_more_samples_trains_in_one_lane():
    engine = engine_of(small(same, Fails), 3)
    assert engine.lanes.num == 1
    assert "with 3 lanes it fails: Fails fails on x [6, 4, 8]: RuntimeError: only so many samples" in engine.notes[0]


_TEXT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "num_labels": 3,
}
FOREIGN = {
    "deberta-v2": _TEXT
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 4,
        "share_att_key": True,
    },
    "longformer": _TEXT | {"attention_window": 4},
    "swinv2": {
        "image_size": 16,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1],
        "num_heads": [2],
        "window_size": 2,
        "num_labels": 3,
    },
}
TARGETS = {
    "deberta-v2": ("query_proj", "value_proj"),
    "longformer": ("query", "value"),
    "swinv2": ("continuous_position_bias_mlp.2",),
}


@pytest.mark.parametrize("family", FOREIGN)
def test_families_that_send_something_else_than_samples_through_their_layers_train_in_one_lane(family: str):
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    is_image = family == "swinv2"
    auto = AutoModelForImageClassification if is_image else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = auto.from_config(AutoConfig.for_model(family, **FOREIGN[family])).eval()
    if is_image:
        inputs = {"pixel_values": torch.randn(12, 3, 16, 16, generator=stream(0))}
    else:
        tokens = torch.randint(2, 20, (12, 8), generator=stream(0))
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    backbone, lanes = Backbone(module, Anatomy(("classifier",))), Lanes(3)
    spec = Lora(r=2, target_modules=TARGETS[family]).apply(backbone, lanes, stream(0))
    data = Examples(ReadyInputs(inputs), Labels(torch.arange(12) % 3))
    engine = LaneEngine(backbone, spec, lanes, data, client=ClientSettings(batch_size=2), rule=Plain())
    assert engine.lanes.num == 1
    assert f"{type(module).__name__} with this tuning method would mix them" in engine.notes[0]
    assert len(deltas_of(engine, jobs_for((5, 2, 1), start_of(engine)))) == 3


@pytest.mark.parametrize(
    ("method", "family"), [(Bias(), "bert"), (Prompt(num_virtual_tokens=2), "vit"), (Parallel(), "small-resnet")]
)
def test_the_proof_leaves_no_trace(method: TuningMethod, family: str):
    backbone, lanes = tiny_backbone(family), Lanes(4)
    spec = method.apply(backbone, lanes, stream(0))
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    chance = torch.random.get_rng_state()
    engine = LaneEngine(backbone, spec, lanes, tiny_data(family), client=ClientSettings(), rule=Plain())
    assert (engine.notes, lanes.num, lanes.active, lanes.lengths) == ([], 4, 4, None)
    assert_same_bits(before, backbone.module.state_dict())
    assert torch.equal(chance, torch.random.get_rng_state())


def test_one_lane_is_not_proved(monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("with one lane nothing can mix")

    monkeypatch.setattr("fedelta.engine.lanes.mixing", fail)
    assert tiny_engine(Full(), tiny_data(), lanes=4)[0].notes == []


def test_a_row_that_is_broken_says_nothing_of_the_model():
    data = tiny_data()
    data.inputs.tensors["pixel_values"][0] = torch.nan
    engine, _ = tiny_engine(Bias(), data, lanes=3)
    assert (engine.lanes.num, engine.notes) == (3, [])
