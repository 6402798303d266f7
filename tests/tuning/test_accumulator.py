"""The accumulator: against the equations written out, its beginnings, its gradients, and what is never run."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.builders import (
    ARCHITECTURES,
    NUM_CLASSES,
    TRANSFORMERS,
    deltas_of,
    jobs_for,
    start_of,
    tiny_backbone,
    tiny_data,
    tiny_engine,
    tiny_inputs,
)
from torch import Tensor
from torch.nn import functional

from fedelta.errors import ModelError
from fedelta.models.anatomy import anatomy_of
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import Combined
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.exits import exit_blocks, logits_at, walk
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes

WIDTH, NUM_BLOCKS = 16, 3
SMALL = {"num_heads": 2, "mlp_width": 24, "head_width": 12}
REEFL = {
    "attention_width": 8, "num_heads": 4, "qkv_bias": True, "mlp_width": 20, "head": "linear", "init_std": 0.02,
}  # fmt: skip
# Families that tests/builders.py does not have: relative positions, and a layer scale with norms before every branch.
OTHERS = {"beit": {"model_type": "beit"}, "dinov2": {"model_type": "dinov2", "mlp_ratio": 2}}


def deep(family: str = "vit") -> Backbone:
    """A tiny model with three blocks."""
    return tiny_backbone(family, **{"n_layers" if family == "distilbert" else "num_hidden_layers": NUM_BLOCKS})


def other(family: str) -> Backbone:
    from transformers import AutoConfig, AutoModelForImageClassification

    sizes = {key: value for key, value in ARCHITECTURES["vit"].items() if key != "model_type"}
    fields = sizes | OTHERS[family] | {"num_hidden_layers": NUM_BLOCKS, "num_labels": NUM_CLASSES}
    module = AutoModelForImageClassification.from_config(AutoConfig.for_model(**fields)).eval()
    generator = stream(0, "tiny", family)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn + (parameter.dim() == 1 and not name.endswith("bias")))
    return Backbone(module, anatomy_of(module, family))


def applied(
    method: TuningMethod, family: str = "vit", lanes: int = 1, *, differ: bool = True
) -> tuple[Backbone, ParamSpec, Lanes]:
    """The model with exits; every tuned tensor is drawn anew, each lane differently."""
    backbone, shared = other(family) if family in OTHERS else deep(family), Lanes(lanes)
    spec = method.apply(backbone, shared, stream(0))
    generator = stream(0, "lanes")
    with torch.no_grad():
        for name in spec if differ else ():
            parameter = backbone.module.get_parameter(name)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return backbone, spec, shared


def inputs_of(family: str, num_rows: int) -> dict[str, Tensor]:
    return tiny_inputs("vit" if family in OTHERS else family, num_rows).tensors


def values_of(backbone: Backbone, lane: int) -> dict[str, Tensor]:
    """The accumulator's tensors of a lane by their short names; row l of `P` is P_l."""
    first_block, *_ = blocks = exit_blocks(backbone.module)
    named = {name: tensor[lane] for name, tensor in first_block.accumulator.named_parameters()}
    named["P"] = torch.stack([named["position"][0], *(block.position[lane] for block in blocks)])
    return named


def layer(values: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.linear(x, values[f"{name}.weight"], values.get(f"{name}.bias"))


def layer_norm(values: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], values[f"{name}.weight"], values[f"{name}.bias"], 1e-5)


def transformer(values: dict[str, Tensor], history: Tensor, heads: int, scale: float, residual: float) -> Tensor:
    """T(H) of all tokens of one sample [S, D], no mask: M' = H + r W_o MHSA(LN H), M = M' + r FFN(LN M')."""
    q, k, v = layer(values, "qkv", layer_norm(values, "attention_norm", history)).chunk(3, dim=1)
    size = q.shape[1] // heads
    read = []
    for head in range(heads):
        head_slice = slice(head * size, (head + 1) * size)
        weights = torch.softmax(scale * q[:, head_slice] @ k[:, head_slice].T, dim=1)
        read.append(weights @ v[:, head_slice])
    middle = history + residual * layer(values, "out", torch.cat(read, dim=1))
    inside = functional.gelu(layer(values, "fc1", layer_norm(values, "mlp_norm", middle)))
    return middle + residual * layer(values, "fc2", inside)


def classify(values: dict[str, Tensor], x: Tensor) -> Tensor:
    x = layer_norm(values, "classifier.norm", x)
    if "classifier.hidden.weight" in values:
        x = functional.gelu(layer(values, "classifier.hidden", x))
    return layer(values, "classifier.out", x)


def reference(
    backbone: Backbone, values: dict[str, Tensor], hidden: Tensor, *, heads: int, scale: float, residual: float = 1.0,
    replaces: bool = True,
) -> list[Tensor]:  # fmt: skip
    """Logits [C] of one sample behind every block: its tokens `hidden` [1, T, D] go through the frozen blocks."""
    class_tokens: list[Tensor] = []
    answers = []
    for block in exit_blocks(backbone.module):
        hidden = block.base(hidden)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        class_tokens.append(hidden[0, 0])
        history = torch.stack([values["token"], *class_tokens]) + values["P"][: len(class_tokens) + 1]
        modulated = transformer(values, history, heads, scale, residual)
        answers.append(classify(values, modulated[0] + class_tokens[-1]))
        if replaces:
            hidden = torch.cat([modulated[None, -1:], hidden[:, 1:]], dim=1)
    return answers


def entrance(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    embeddings = backbone.module.get_submodule(backbone.anatomy.embeddings)
    return embeddings(inputs["pixel_values"])


def answers(backbone: Backbone, inputs: dict[str, Tensor]) -> dict[int, Tensor]:
    blocks = exit_blocks(backbone.module)
    return logits_at(blocks, lambda: backbone.logits(inputs), range(1, len(blocks) + 1))


# The scale by the equations: D = 16 and W = 16 in two heads give 1 / 4 by width and 1 / sqrt 8 by head; ReeFL here has
# W = 8 in four heads: 1 / 4 and 1 / sqrt 2.
PARITY = [
    (SMALL, 2, 1 / 4),
    (SMALL | {"attention_scale": "head"}, 2, 8**-0.5),
    (SMALL | {"replaces": False}, 2, 1 / 4),
    (SMALL | {"residual_scale": 0.3}, 2, 1 / 4),
    (SMALL | {"num_positions": 9}, 2, 1 / 4),
    (REEFL, 4, 1 / 4),
    (REEFL | {"attention_scale": "head"}, 4, 2**-0.5),
]


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(("fields", "heads", "scale"), PARITY)
def test_every_exit_answers_as_the_equations_do_in_every_lane(fields, heads: int, scale: float, lanes: int):
    backbone, _, _ = applied(Accumulator(**fields), lanes=lanes)
    inputs = inputs_of("vit", 2 * lanes)
    with torch.no_grad():
        by_exit, tokens = answers(backbone, inputs), entrance(backbone, inputs)
        for row in range(2 * lanes):
            values = values_of(backbone, row // 2)
            expected = reference(
                backbone, values, tokens[row : row + 1], heads=heads, scale=scale,
                residual=fields.get("residual_scale", 1.0), replaces=fields.get("replaces", True),
            )  # fmt: skip
            for number, logits in enumerate(expected, start=1):
                torch.testing.assert_close(by_exit[number][row], logits, rtol=1e-4, atol=1e-5)


def test_lanes_with_other_values_give_other_answers():
    backbone, _, _ = applied(Accumulator(**SMALL), lanes=3)
    same = {name: tensor[:1].repeat(3, 1, 1, 1) for name, tensor in inputs_of("vit", 1).items()}
    with torch.no_grad():
        logits = answers(backbone, same)[NUM_BLOCKS]
    assert (logits[0] - logits[1]).abs().max() > 0.01
    assert (logits[1] - logits[2]).abs().max() > 0.01


def test_gradients_are_those_of_the_equations_through_the_replaced_tokens():
    backbone, spec, _ = applied(Accumulator(**SMALL), lanes=2)
    inputs, labels = inputs_of("vit", 2), torch.tensor([0, 2])
    parameters = [backbone.module.get_parameter(name) for name in spec]
    logits = answers(backbone, inputs)[NUM_BLOCKS]
    grads = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), parameters)
    tokens = entrance(backbone, inputs)
    expected_loss = torch.zeros(())
    for row in range(2):
        row_logits = reference(backbone, values_of(backbone, row), tokens[row : row + 1], heads=2, scale=1 / 4)[-1]
        expected_loss = expected_loss + functional.cross_entropy(row_logits, labels[row])
    expected = torch.autograd.grad(expected_loss, parameters)
    for name, grad, expected_grad in zip(spec, grads, expected, strict=True):
        torch.testing.assert_close({name: grad}, {name: expected_grad}, rtol=1e-3, atol=1e-5)
        assert expected_grad.abs().max() > 0


def test_without_replacement_the_blocks_compute_what_they_did():
    backbone, _, _ = applied(Accumulator(**SMALL, replaces=False))
    inputs = inputs_of("vit", 2)
    untouched = deep()
    with torch.no_grad():
        base = untouched.module.vit(**inputs).last_hidden_state
        hidden = backbone.module.vit(**inputs).last_hidden_state
    exit_blocks(backbone.module)[0].trace.clear()
    assert torch.equal(hidden, base)


def test_a_small_scale_starts_with_the_class_tokens_that_the_blocks_know():
    inputs = inputs_of("vit", 4)
    with torch.no_grad():
        class_tokens = deep().module.vit(**inputs).last_hidden_state[:, 0]

        def distance(scale: float) -> float:
            method = Accumulator(**SMALL, init_std=1e-6, residual_scale=scale)
            backbone, _, _ = applied(method, differ=False)
            # The last norm undoes the length of the token, not its direction.
            return (backbone.module.vit(**inputs).last_hidden_state[:, 0] - class_tokens).norm().item()

        assert distance(1e-3) < 0.01 * distance(1.0)
        assert distance(1.0) > 0.1


def test_positions_that_no_exit_reads_get_no_gradient():
    backbone, spec, _ = applied(Accumulator(**SMALL, num_positions=9))
    # Three blocks and the token read four of nine rows: P_0 and five spare ones are in one tensor.
    name = "vit.layers.0.accumulator.position"
    assert spec.tensors[name].shape == (6, WIDTH)
    position = backbone.module.get_parameter(name)
    answers(backbone, inputs_of("vit", 2))[NUM_BLOCKS].square().sum().backward()
    assert position.grad[0, 0].abs().max() > 0
    assert position.grad[0, 1:].abs().max() == 0


def test_tokens_and_positions_start_standard_normal_or_narrow():
    for deviation in (1.0, 0.02):
        method = Accumulator(**SMALL, init_std=deviation, num_positions=400)
        backbone, _, _ = applied(method, lanes=2, differ=False)
        values = values_of(backbone, 0)
        rows = torch.cat([values["position"], values["token"][None], values["P"]])  # 400 rows of 16
        assert rows.std().item() == pytest.approx(deviation, rel=0.05)
        assert abs(rows.mean().item()) < 0.05 * deviation
        assert len({round(value, 6) for value in values["P"][:, 0].tolist()}) == NUM_BLOCKS + 1
        assert all(torch.equal(tensor, values_of(backbone, 1)[name]) for name, tensor in values.items())


def test_its_linear_layers_start_as_those_of_torch():
    backbone, _, _ = applied(Accumulator(num_heads=2), differ=False)
    values = values_of(backbone, 0)
    for name, fan_in in (("qkv", 16), ("out", 16), ("fc1", 16), ("fc2", 1536), ("classifier.out", 1536)):
        bound = fan_in**-0.5
        weight = values[f"{name}.weight"]
        assert 0.98 * bound < weight.abs().max() <= bound
        # A uniform number within b deviates by b / sqrt 3.
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert "qkv.bias" not in values
    assert torch.equal(values["attention_norm.weight"], torch.ones(WIDTH))


@pytest.mark.parametrize("depth", [1, 2])
def test_nothing_above_the_deepest_exit_is_run(depth: int):
    backbone, _, _ = applied(Accumulator(**SMALL))
    blocks = exit_blocks(backbone.module)
    calls = []
    for number, block in enumerate(blocks, start=1):
        block.base.register_forward_hook(lambda *_, number=number: calls.append(number))
    logits = logits_at(blocks, lambda: backbone.logits(inputs_of("vit", 2)), {depth})
    assert list(logits) == [depth]
    assert calls == list(range(1, depth + 1))


@pytest.mark.parametrize("family", [*TRANSFORMERS, *OTHERS])
@pytest.mark.parametrize("method", [Accumulator(**SMALL), ExitHeads()], ids=lambda method: method.name)
def test_block_by_block_the_last_exit_answers_as_the_whole_model_to_the_last_bit(family: str, method: TuningMethod):
    backbone, _, _ = applied(method, family)
    inputs = inputs_of(family, 4)
    if "attention_mask" in inputs:
        assert inputs["attention_mask"].min() == 0
    blocks = exit_blocks(backbone.module)
    with torch.no_grad():
        by_exit = answers(backbone, inputs)
        assert torch.equal(by_exit[NUM_BLOCKS], backbone.logits(inputs))
        assert torch.equal(by_exit[NUM_BLOCKS], backbone.logits(inputs))  # nothing was left from the first pass
        repeated = [block.answer() for block in walk(blocks, lambda: backbone.logits(inputs))]
    assert all(torch.equal(logits, by_exit[number]) for number, logits in enumerate(repeated, start=1))


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_what_is_padding_does_not_change_an_answer(family: str):
    backbone, _, _ = applied(Accumulator(**SMALL), family)
    inputs = inputs_of(family, 4)
    mask = inputs["attention_mask"]
    noise = torch.randint(2, 20, mask.shape, generator=stream(1))
    ids = torch.where(mask == 0, noise, inputs["input_ids"])
    with torch.no_grad():
        expected = answers(backbone, inputs)
        logits = answers(backbone, inputs | {"input_ids": ids})
    # Roberta counts positions by the tokens that are no padding, which stand before it.
    for number in expected:
        torch.testing.assert_close(expected[number], logits[number], rtol=1e-5, atol=1e-6)


def test_the_trace_is_empty_after_every_pass_even_one_that_fails():
    backbone, _, _ = applied(Accumulator(**SMALL))
    inputs, blocks = inputs_of("vit", 2), exit_blocks(backbone.module)
    trace = blocks[0].trace

    def is_empty() -> bool:
        return trace.summary is None and not trace.tensors

    backbone.logits(inputs)
    assert is_empty()
    answers(backbone, inputs)
    assert is_empty()
    logits_at(blocks, lambda: backbone.logits(inputs), {1})
    assert is_empty()
    walking = walk(blocks, lambda: backbone.logits(inputs))
    next(walking)
    assert not is_empty()
    walking.close()
    assert is_empty()
    with pytest.raises(RuntimeError, match="the exit has no input: its block has not run in this pass"):
        blocks[1].answer()


def test_a_pass_that_fails_leaves_nothing_to_the_next():
    backbone, _, _ = applied(Accumulator(**SMALL))
    inputs, blocks = inputs_of("vit", 2), exit_blocks(backbone.module)

    def fail(*_: object) -> None:
        raise MemoryError

    with torch.no_grad():
        expected = backbone.logits(inputs)
        handle = blocks[1].base.register_forward_hook(fail)
        with pytest.raises(MemoryError):
            backbone.logits(inputs)
        handle.remove()
        assert torch.equal(backbone.logits(inputs), expected)


def test_a_model_that_has_been_trained_can_be_copied():
    method = Accumulator(**SMALL)
    engine, backbone = tiny_engine(method, tiny_data(), lanes=2)
    deltas_of(engine, jobs_for((5, 4), start_of(engine)))
    copied = copy.deepcopy(backbone.module)
    inputs = inputs_of("vit", 4)
    original_blocks, copied_blocks = exit_blocks(backbone.module), exit_blocks(copied)
    assert not {id(block) for block in original_blocks} & {id(block) for block in copied_blocks}
    assert len({id(block.trace) for block in copied_blocks}) == 1
    assert copied_blocks[0].trace is not original_blocks[0].trace
    with torch.no_grad():
        for block in copied_blocks:
            block.lanes.active = 1
        engine.lanes.active = 1
        expected = backbone.logits(inputs)
        assert torch.equal(copied(**inputs).logits, expected)
        copied_blocks[-1].position.add_(1.0)  # the copy answers from its own tensors
        assert not torch.equal(copied(**inputs).logits, expected)
        assert torch.equal(backbone.logits(inputs), expected)


@pytest.mark.parametrize("method", [Accumulator(**SMALL), ExitHeads()], ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["resnet", "small-resnet"])
def test_a_model_without_a_class_token_is_refused(method: TuningMethod, family: str):
    with pytest.raises(ModelError, match=f"tuning method '{method.name}' does not fit .*ResNet.*it has no class token"):
        method.apply(tiny_backbone(family), Lanes(1), stream(0))


def test_heads_that_do_not_divide_the_width_are_refused_with_the_nearest_that_do():
    with pytest.raises(ModelError) as caught:
        applied(Accumulator())
    assert caught.value.message == "`tuning.num_heads` is 12, which does not divide the 16 features of its attention."
    assert caught.value.hint == "use 8."
    with pytest.raises(ModelError, match="does not divide the 10 features"):
        applied(Accumulator(attention_width=10, num_heads=4))


def test_too_few_positions_are_refused():
    with pytest.raises(ModelError) as caught:
        applied(Accumulator(**SMALL, num_positions=3))
    assert caught.value.message == "`tuning.num_positions` is 3, expected at least 4 for 3 blocks and the token."
    assert caught.value.hint == "leave out `tuning.num_positions`."
    applied(Accumulator(**SMALL, num_positions=4))


def test_two_methods_with_exits_are_refused():
    with pytest.raises(ModelError, match="'exit-heads' adds exits to a model that already has exits") as caught:
        applied(Combined(methods=(ExitHeads(), Accumulator(**SMALL))))
    assert caught.value.hint == "use one such method only."


def test_a_head_beside_the_accumulator_is_refused():
    with pytest.raises(ModelError, match="'head' has nothing to train: exits have replaced the model's head") as caught:
        applied(Combined(methods=(Head(), Accumulator(**SMALL))))
    assert caught.value.hint == "leave out 'head'."
