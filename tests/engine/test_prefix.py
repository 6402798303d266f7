"""The frozen-prefix cache: it saves work and changes no result."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.builders import (
    ARCHITECTURES,
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
from torch import Tensor, nn

from fedelta.engine.lanes import LaneEngine
from fedelta.engine.prefix import CachedInputs, find_prefix
from fedelta.engine.work import ClientSettings
from fedelta.models.anatomy import Anatomy, anatomy_of
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

UPPER = Lora(r=2, target_modules=("layers.1.attention.q_proj", "layers.2.mlp.fc1"))
SIZES = (5, 2, 9, 1)
PLENTY = 2**20


def prefix_of(method: TuningMethod, family: str = "vit") -> object:
    backbone, lanes = tiny_backbone(family), Lanes(1)
    spec = method.apply(backbone, lanes, stream(0))
    return find_prefix(backbone, spec, lanes, tiny_inputs(family, 2).tensors)


def count_rows(module: nn.Module, counts: Counter[float]) -> None:
    """Counts in `counts` how often each image, known by its first pixel, enters `module`."""

    def note(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        counts.update(pixels[:, 0, 0, 0].tolist())

    module.register_forward_pre_hook(note, with_kwargs=True)


@pytest.mark.parametrize(
    ("method", "family"),
    [(Head(), family) for family in ARCHITECTURES]
    + [(method, family) for family in ("vit", "deit") for method in (UPPER, Lora())],
)
def test_training_and_evaluation_are_the_same_with_and_without_the_cache(method: TuningMethod, family: str):
    data, deltas, evaluations = tiny_data(family), [], []
    sizes = {"num_hidden_layers": 3} if family in ("vit", "deit") else {}
    for cache_bytes in (0, PLENTY):
        engine, _ = tiny_engine(method, data, family=family, lanes=2, cache_bytes=cache_bytes, **sizes)
        deltas.append(deltas_of(engine, jobs_for(SIZES, start_of(engine))))
        evaluations.append(engine.evaluator.evaluate(start_of(engine), data))
        assert engine.notes == []
    for client_id, delta in deltas[0].items():
        assert_close(delta, deltas[1][client_id], rtol=1e-3, atol=1e-6)
    assert evaluations[0].measures["accuracy"] == evaluations[1].measures["accuracy"]
    assert evaluations[0].measures["loss_nats"] == pytest.approx(evaluations[1].measures["loss_nats"], rel=1e-5)


@pytest.mark.parametrize(("method", "below"), [(Head(), "vit"), (UPPER, "vit.embeddings")], ids=["head", "lora"])
def test_no_sample_goes_through_the_prefix_twice(method: TuningMethod, below: str):
    data, test = tiny_data(num_rows=24), tiny_data(num_rows=300, seed=1)
    client = ClientSettings(batch_size=4, local_epochs=3)
    engine, backbone = tiny_engine(method, data, lanes=2, client=client, cache_bytes=PLENTY, num_hidden_layers=3)
    anchor, counts = start_of(engine), Counter()
    count_rows(backbone.module.get_submodule(below), counts)
    for _ in range(2):
        deltas_of(engine, jobs_for(SIZES, anchor))
    trained = data.inputs.tensors["pixel_values"][: sum(SIZES), 0, 0, 0].tolist()
    assert counts == Counter(trained)
    for _ in range(2):
        engine.evaluator.evaluate(anchor, test)
    tested = test.inputs.tensors["pixel_values"][:, 0, 0, 0].tolist()
    # The first test row goes through once more, to find out how large its features are.
    assert counts == Counter(trained) + Counter(tested) + Counter(tested[:1])


def test_without_a_cache_every_step_runs_the_backbone():
    data, counts = tiny_data(), Counter()
    client = ClientSettings(batch_size=4, local_epochs=3)
    engine, backbone = tiny_engine(Head(), data, client=client)
    count_rows(backbone.module.vit, counts)
    deltas_of(engine, jobs_for([5], start_of(engine)))
    assert set(counts.values()) == {3}


@pytest.mark.parametrize(
    ("method", "family"),
    [(Bias(), "vit"), (Full(), "vit"), (Bias(), "bert"), (Full(), "bert"), (Lora(), "bert")],
    ids=["bias", "full", "bias of a text model", "full of a text model", "lora in a text model"],
)
def test_there_is_no_prefix_below(method: TuningMethod, family: str):
    assert prefix_of(method, family) is None
    engine, _ = tiny_engine(method, tiny_data(family), family=family, cache_bytes=PLENTY)
    assert deltas_of(engine, jobs_for([5], start_of(engine)))
    assert engine.notes == []


@pytest.mark.parametrize("method", [Head(), UPPER.model_copy(update={"target_modules": ("layers.1.mlp.fc1",)})])
def test_there_is_a_prefix_below(method: TuningMethod):
    assert prefix_of(method) is not None


def test_a_head_that_reads_more_than_the_first_token_has_its_own_input_for_features():
    # DINOv2's head reads the class token and the mean of the patch tokens: twice the width.
    from transformers import Dinov2Config, Dinov2ForImageClassification

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, num_labels=3
    )  # fmt: skip
    module = Dinov2ForImageClassification(config).eval()
    backbone, lanes = Backbone(module, anatomy_of(module, "dinov2")), Lanes(1)
    spec = Head().apply(backbone, lanes, stream(0))
    prefix = find_prefix(backbone, spec, lanes, tiny_inputs("vit", 2).tensors)
    assert prefix is not None
    with torch.no_grad():
        assert prefix.features(tiny_inputs("vit", 2).tensors)["hidden"].shape == (2, 32)


def test_a_plain_module_whose_logits_are_its_head_has_a_prefix_and_another_has_none():
    class Plain(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale, self.body, self.head = scale, nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * self.head(self.body(x))

    prefixes = []
    for scale in (1.0, 2.0):
        backbone, lanes = Backbone(Plain(scale), Anatomy(("head",))), Lanes(1)
        spec = Head().apply(backbone, lanes, stream(0))
        prefixes.append(find_prefix(backbone, spec, lanes, {"x": torch.ones(2, 3)}))
    assert prefixes[0] is not None
    assert prefixes[1] is None


def test_the_memory_bound_is_the_features_of_all_rows():
    # Head of a ViT: one token of 16 float32 numbers a row, 24 * 64 = 1,536 bytes.
    data = tiny_data(num_rows=24)
    fits, _ = tiny_engine(Head(), data, cache_bytes=1536)
    assert fits.notes == []
    over, backbone = tiny_engine(Head(), data, cache_bytes=1535)
    [note] = over.notes
    assert note == (
        "frozen-prefix cache off: the features of 24 rows would take 0.0 MiB, more than `runtime.cache_mib` = 0.0; "
        "raise that limit to compute them only once."
    )
    counts: Counter[float] = Counter()
    count_rows(backbone.module.vit, counts)
    delta = deltas_of(over, jobs_for([5], start_of(over)))[0]
    assert len(counts) == 5
    uncached, _ = tiny_engine(Head(), data)
    assert_same_bits(delta, deltas_of(uncached, jobs_for([5], start_of(uncached)))[0])


def test_the_features_of_a_block_are_every_token():
    # 4 patches and the class token of 16 numbers, 4 bytes each
    backbone, lanes = tiny_backbone("vit", num_hidden_layers=3), Lanes(1)
    spec = UPPER.apply(backbone, lanes, stream(0))
    inputs = tiny_inputs("vit", 10)
    prefix = find_prefix(backbone, spec, lanes, inputs.tensors)
    assert CachedInputs(inputs, prefix, torch.device("cpu")).num_bytes == 10 * 5 * 16 * 4


def test_features_do_not_depend_on_the_client_that_computed_them():
    results = []
    for clients in ([1], [2, 0]):
        engine, _ = tiny_engine(Head(), tiny_data(), cache_bytes=PLENTY)
        anchor = start_of(engine)
        for client in clients:
            deltas_of(engine, [jobs_for(SIZES, anchor)[client]])
        results.append(deltas_of(engine, jobs_for(SIZES, anchor)))
    for client_id, delta in results[0].items():
        assert_same_bits(delta, results[1][client_id])


def test_the_model_is_whole_again_after_it_ran_on_features():
    engine, backbone = tiny_engine(UPPER, tiny_data(), cache_bytes=PLENTY, num_hidden_layers=3)
    names = list(backbone.module.state_dict())
    kinds = [type(module) for module in backbone.module.modules()]
    deltas_of(engine, jobs_for(SIZES, start_of(engine)))
    assert list(backbone.module.state_dict()) == names
    assert [type(module) for module in backbone.module.modules()] == kinds


@pytest.mark.parametrize("method", [Head(), Lora(r=2, target_modules=("layers.1.mlp.fc1",))], ids=["head", "lora"])
def test_interpolated_positions_are_part_of_the_features(method: TuningMethod):
    source = ModelSource(architecture=ARCHITECTURES["vit"], image_size=12)
    results = []
    for cache_bytes in (0, PLENTY):
        backbone, lanes = build(source, ("a", "b", "c"), seed=0), Lanes(1)
        spec = method.apply(backbone, lanes, stream(0))
        data = tiny_data(num_rows=6)
        data.inputs.tensors["pixel_values"] = torch.randn(6, 3, 12, 12, generator=stream(0))
        engine = LaneEngine(
            backbone, spec, lanes, data, client=ClientSettings(batch_size=4), rule=Plain(), cache_bytes=cache_bytes
        )  # fmt: skip
        results.append(deltas_of(engine, jobs_for([6], start_of(engine)))[0])
        assert find_prefix(backbone, spec, lanes, data.inputs.tensors) is not None
    assert_close(results[0], results[1], rtol=1e-3, atol=1e-6)


class MeanOfTokens(nn.Module):
    """A classifier in the form of transformers that scales what its head says of all tokens."""

    base_model_prefix = "base"
    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.base = tiny_backbone("vit").module.vit
        self.classifier = nn.Linear(16, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return 2 * self.classifier(self.base(pixel_values).last_hidden_state.mean(1))


def test_a_prefix_that_gives_other_logits_is_not_used():
    # Resumed at the head, half the logits; resumed from the first token, the mean of one: finite, and wrong.
    backbone, lanes = Backbone(MeanOfTokens().eval(), Anatomy(("classifier",))), Lanes(1)
    spec = Head().apply(backbone, lanes, stream(0))
    assert find_prefix(backbone, spec, lanes, tiny_inputs("vit", 2).tensors) is None
