"""The last block, computed for the token that the head reads: less work, and the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.builders import (
    TRANSFORMERS,
    assert_close,
    deltas_of,
    jobs_for,
    start_of,
    tiny_backbone,
    tiny_data,
    tiny_engine,
    tiny_inputs,
)
from torch import Tensor, nn

from fedelta.data.batches import Examples
from fedelta.engine.dp_sgd import DpSgd
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.readout import _OneQuery
from fedelta.engine.work import ClientSettings
from fedelta.models.anatomy import Anatomy, anatomy_of
from fedelta.models.hub import Backbone
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tasks.labels import Labels
from fedelta.testing.small import ReadyInputs
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt

SIZES = (5, 2, 9, 1)
METHODS = {
    "lora": Lora(r=2),
    "lora everywhere": Lora(r=2, target_modules="all-linear"),
    "bias": Bias(),
    "adapter": Adapter(),
    "parallel adapter": Adapter(placement="parallel"),
    "prompt": Prompt(num_virtual_tokens=2),
    "shallow prompt": Prompt(num_virtual_tokens=2, depth="shallow"),
    "full": Full(),
    "head": Head(),
    "bias and lora": Combined(methods=(Bias(), Lora(r=2))),
}
MLPS = {"distilbert": "distilbert.transformer.layer.1.ffn"} | {
    family: f"{family}.encoder.layer.1.intermediate" for family in ("bert", "roberta")
}


class Watch:
    """Notes how many tokens of a sample enter the MLP of the last block of a tiny model."""

    def __init__(self, backbone: Backbone, path: str) -> None:
        self.num_tokens: set[int] = set()
        backbone.module.get_submodule(path).register_forward_pre_hook(self._note)

    def _note(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.num_tokens.add(args[0].shape[1])


def watch(backbone: Backbone, family: str = "vit") -> Watch:
    return Watch(backbone, MLPS.get(family, f"{family}.layers.1.mlp"))


@contextmanager
def without_readout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("fedelta.engine.model.find_readouts", lambda _: [])
        yield


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_clients_end_where_the_whole_model_ends(method: TuningMethod, family: str, monkeypatch: pytest.MonkeyPatch):
    data = tiny_data(family)
    with without_readout(monkeypatch):
        whole, _ = tiny_engine(method, data, family=family, lanes=3)
    engine, backbone = tiny_engine(method, data, family=family, lanes=3)
    watched = watch(backbone, family)
    deltas, expected = (deltas_of(each, jobs_for(SIZES, start_of(each))) for each in (engine, whole))
    assert watched.num_tokens == {1}
    for client_id, delta in deltas.items():
        assert_close(delta, expected[client_id], rtol=1e-3, atol=1e-5)
    measures, whole_measures = (each.evaluator.evaluate(start_of(each), data).measures for each in (engine, whole))
    assert watched.num_tokens == {1}
    assert measures == pytest.approx(whole_measures, rel=1e-4)


def test_a_frozen_prefix_and_autocast_go_with_it(monkeypatch: pytest.MonkeyPatch):
    upper, results = Lora(r=2, target_modules=("layers.1.attention.q_proj",)), []
    for context in (lambda: without_readout(monkeypatch), monkeypatch.context):
        with context():
            engine, backbone = tiny_engine(upper, tiny_data(), cache_bytes=2**20, compute_dtype="bfloat16")
        watched = watch(backbone)
        results.append((deltas_of(engine, jobs_for(SIZES, start_of(engine))), watched.num_tokens))
    (whole, all_tokens), (less, one_token) = results
    assert (all_tokens, one_token) == ({5}, {1})
    for client_id, delta in less.items():
        assert_close(delta, whole[client_id], rtol=0.1, atol=1e-3)


def test_cached_features_of_a_head_are_computed_with_it():
    engine, backbone = tiny_engine(Head(), tiny_data(), cache_bytes=2**20)
    watched = watch(backbone)
    deltas_of(engine, jobs_for(SIZES, start_of(engine)))
    assert watched.num_tokens == {1}


def test_examples_in_lanes_have_their_gradients(monkeypatch: pytest.MonkeyPatch):
    deltas = []
    for context in (lambda: without_readout(monkeypatch), monkeypatch.context):
        backbone, lanes = tiny_backbone(), Lanes(3)
        spec = Lora(r=2).apply(backbone, lanes, stream(0))
        client = ClientSettings(batch_size=4, lr=0.05)
        with context():
            engine = LaneEngine(backbone, spec, lanes, tiny_data(), client=client, rule=Plain(), dp=DpSgd(1.0))
        jobs = jobs_for(SIZES, start_of(engine))
        for job in jobs:
            object.__setattr__(job, "noise_of_step", lambda _step, exact: torch.zeros_like(exact))
        deltas.append(deltas_of(engine, jobs))
    for client_id, delta in deltas[0].items():
        assert_close(delta, deltas[1][client_id], rtol=1e-3, atol=1e-5)


def test_the_model_is_whole_again_after_a_call():
    engine, backbone = tiny_engine(Lora(r=2), tiny_data())
    kinds = [type(module) for module in backbone.module.modules()]
    watched = watch(backbone)
    deltas_of(engine, jobs_for(SIZES, start_of(engine)))
    assert [type(module) for module in backbone.module.modules()] == kinds
    backbone.logits(tiny_inputs("vit", 2).tensors)
    assert watched.num_tokens == {1, 5}


def test_a_model_with_exits_computes_every_token():
    engine, backbone = tiny_engine(ExitHeads(), tiny_data())
    watched = Watch(backbone, "vit.layers.1.base.mlp")
    deltas_of(engine, jobs_for(SIZES, start_of(engine)))
    assert watched.num_tokens == {5}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_text_without_a_token_that_is_attended_to_trains_as_in_the_whole_model(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    tokens = torch.randint(2, 20, (12, 6), generator=stream(0))
    mask = torch.ones_like(tokens)
    mask[5] = 0
    data = Examples(ReadyInputs({"input_ids": tokens, "attention_mask": mask}), Labels(tokens[:, 0] % 3))
    deltas = []
    for context in (lambda: without_readout(monkeypatch), monkeypatch.context):
        with context():
            engine, _ = tiny_engine(Lora(r=2, target_modules="all-linear"), data, family=family)
        deltas.append(deltas_of(engine, jobs_for((8,), start_of(engine)))[0])
    assert all(tensor.isfinite().all() for tensor in deltas[0].values())
    assert_close(deltas[1], deltas[0], rtol=1e-3, atol=1e-5)


class ReadsTokens(nn.Module):
    """A classifier in the form of transformers whose head reads the mean of all tokens."""

    base_model_prefix = "vit"

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_backbone("vit").module.vit
        self.classifier = nn.Linear(16, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(self.vit(pixel_values).last_hidden_state.mean(1))


def engine_on(module: nn.Module, anatomy: Anatomy, data: Examples) -> LaneEngine:
    backbone, lanes = Backbone(module.eval(), anatomy), Lanes(2)
    spec = Lora(r=2).apply(backbone, lanes, stream(0))
    return LaneEngine(backbone, spec, lanes, data, client=ClientSettings(batch_size=4), rule=Plain())


def test_a_head_that_reads_other_tokens_gets_all_of_them():
    # With one token the mean is finite, and wrong.
    module = ReadsTokens()
    engine = engine_on(module, anatomy_of(module, "vit"), tiny_data())
    watched = watch(Backbone(module, Anatomy(("classifier",))))
    deltas_of(engine, jobs_for(SIZES, start_of(engine)))
    assert watched.num_tokens == {5}


def test_a_mask_that_is_ignored_is_noticed_though_no_text_that_is_tried_is_padded(monkeypatch: pytest.MonkeyPatch):
    tokens = torch.randint(2, 20, (12, 6), generator=stream(0))
    data = Examples(
        ReadyInputs({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}), Labels(tokens[:, 0] % 3)
    )
    reads: list[int] = []
    for masked in (None, lambda scores_BHT, _mask: scores_BHT):
        with monkeypatch.context() as patch:
            if masked is not None:
                patch.setattr("fedelta.engine.readout._masked", masked)
            engine, backbone = tiny_engine(Lora(r=2), data, family="bert")
        # Called by its own code only if attention is computed for all tokens.
        calls: list[object] = []
        backbone.module.bert.encoder.layer[1].attention.self.register_forward_hook(lambda *_: calls.append(_))  # noqa: B023
        deltas_of(engine, jobs_for((5,), start_of(engine)))
        reads.append(len(calls))
    assert reads[0] == 0
    assert reads[1] > 0


@pytest.mark.parametrize("family", ["mpnet", "deberta"])
def test_attention_with_positions_of_its_own_is_computed_for_all_tokens(family: str):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 16, "num_labels": 3, "pad_token_id": 0}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
    config = AutoConfig.for_model(family, **sizes, **(relative if family == "deberta" else {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AutoModelForSequenceClassification.from_config(config)
    engine = engine_on(module, anatomy_of(module, family), tiny_data("bert"))
    watched = Watch(Backbone(module, Anatomy(())), f"{family}.encoder.layer.1.intermediate")
    deltas_of(engine, jobs_for((5, 2), start_of(engine)))
    assert watched.num_tokens == {1}


def test_rows_that_show_nothing_are_no_evidence():
    data = tiny_data()
    data.inputs.tensors["pixel_values"][:] = torch.nan
    engine, backbone = tiny_engine(Lora(r=2), data)
    watched = watch(backbone)
    engine.evaluator.evaluate(start_of(engine), data)
    assert watched.num_tokens == {5}


def test_texts_of_one_token_are_no_evidence():
    words = torch.full((4, 1), 5)
    short = Examples(
        ReadyInputs({"input_ids": words, "attention_mask": torch.ones_like(words)}), Labels(torch.arange(4) % 3)
    )
    engine, backbone = tiny_engine(Lora(r=2), short, family="bert")
    watched = watch(backbone, "bert")
    engine.evaluator.evaluate(start_of(engine), tiny_data("bert"))
    assert min(watched.num_tokens) > 1


def test_the_trial_leaves_no_trace():
    backbone, lanes = tiny_backbone(), Lanes(3)
    spec = Prompt(num_virtual_tokens=2).apply(backbone, lanes, stream(0))
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    chance = torch.random.get_rng_state()
    LaneEngine(backbone, spec, lanes, tiny_data(), client=ClientSettings(), rule=Plain())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.module.state_dict().items())
    assert torch.equal(chance, torch.random.get_rng_state())
    assert (lanes.num, lanes.active, lanes.lengths) == (3, 3, None)


def rolled(scores: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: scores(*args).roll(1, 1)


MISTAKES = {
    "none": lambda scores: scores,
    "scale": lambda scores: lambda *args: 1.5 * scores(*args),
    "heads": rolled,
    "no scores": lambda scores: lambda *args: 0 * scores(*args),
}


@pytest.mark.parametrize("method", [Lora(r=2), Head(), Full(), Prompt(num_virtual_tokens=2)], ids=lambda it: it.name)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_attention_is_noticed_in_a_model_that_starts_from_small_random_values(
    mistake: str, method: TuningMethod, monkeypatch: pytest.MonkeyPatch
):
    backbone, lanes, data = tiny_backbone(), Lanes(2), tiny_data()
    with torch.no_grad():
        for name, parameter in backbone.module.named_parameters():
            parameter.mul_(1 if "norm" in name else 0.1)  # attention is then nearly uniform, and adds next to nothing
    spec = method.apply(backbone, lanes, stream(0))
    monkeypatch.setattr(_OneQuery, "_scores", MISTAKES[mistake](_OneQuery._scores))
    engine = LaneEngine(backbone, spec, lanes, data, client=ClientSettings(batch_size=4), rule=Plain())
    # Called by its own code only if attention is computed for all tokens.
    calls: list[object] = []
    backbone.module.get_submodule("vit.layers.1").get_submodule(
        "base.attention" if method.name == "prompt" else "attention"
    ).register_forward_hook(lambda *_: calls.append(_))
    deltas_of(engine, jobs_for((5,), start_of(engine)))
    assert bool(calls) == (mistake != "none")


def test_a_trial_leaves_no_hook_behind():
    engine, backbone = tiny_engine(Lora(r=2), tiny_data(), lanes=2)
    assert not any(it._forward_hooks or it._forward_pre_hooks for it in backbone.module.modules())
    assert engine.lanes.active == 2
