"""Several methods at once: names, order, the short form, and what cannot be combined."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tests.builders import assert_same_bits, tiny_backbone, tiny_inputs

from fedelta.config import parse_config
from fedelta.errors import ConfigError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod, untouched
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined, expand
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt

EVERYTHING = Combined(methods=(Bias(), Lora(target_modules="all-linear", r=2), Adapter(), Prompt(num_virtual_tokens=2)))
SMALL = {
    "model": {"source": "bundled:vit-micro"},
    "data": {"source": "digits"},
    "partition": {"name": "iid", "num_clients": 9},
}


def applied(method: TuningMethod, family: str = "vit") -> tuple[Backbone, ParamSpec]:
    backbone = tiny_backbone(family)
    return backbone, method.apply(backbone, Lanes(1), stream(0))


def test_it_trains_what_each_of_its_methods_trains():
    parts = [applied(method)[1].num_parameters for method in (*EVERYTHING.methods, Head())]
    # Each part counts the head once.
    assert applied(EVERYTHING)[1].num_parameters == sum(parts[:4]) - 3 * parts[4]


def test_names_are_paths_through_the_wrappers_from_the_outside_to_the_inside():
    _, spec = applied(EVERYTHING)
    block = "vit.layers.1.base"
    assert [name for name in spec if name.startswith("vit.layers.1") and ("fc2" in name or "prompt" in name)] == [
        "vit.layers.1.prompt",
        f"{block}.mlp.fc2.base.lora_A",
        f"{block}.mlp.fc2.base.lora_B",
        f"{block}.mlp.fc2.base.base.bias",
    ]


def test_the_order_in_which_they_are_given_does_not_matter():
    methods = EVERYTHING.methods
    in_order, reversed_order = applied(EVERYTHING), applied(Combined(methods=methods[::-1]))
    assert in_order[1] == reversed_order[1]
    assert_same_bits(in_order[0].module.state_dict(), reversed_order[0].module.state_dict())


def test_untouched_finds_every_module_of_the_model_by_its_own_path():
    backbone, _ = applied(EVERYTHING)
    layers, plain = untouched(backbone.module), tiny_backbone("vit")
    head = ("classifier",)
    assert list(layers) == [name for name, _ in plain.module.named_modules() if name not in head]
    for path, (current, module) in layers.items():
        assert backbone.module.get_submodule(current) is module
        assert type(module) is type(plain.module.get_submodule(path))


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_lora_and_bias_fold_into_the_model(family: str):
    method = Combined(methods=(Lora(r=2, target_modules="all-linear"), Bias()))
    backbone, spec = applied(method, family)
    generator = stream(1)
    with torch.no_grad():
        for name in spec:
            parameter = backbone.module.get_parameter(name)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        inputs = tiny_inputs(family, 3).tensors
        expected = backbone.logits(inputs)
        method.merge(backbone)
        torch.testing.assert_close(backbone.logits(inputs), expected, rtol=1e-4, atol=1e-5)
    assert list(backbone.module.state_dict()) == list(tiny_backbone(family).module.state_dict())


def tuning_of(section: object) -> object:
    return parse_config(SMALL | {"tuning": section}).tuning


def test_the_short_form_gives_each_method_the_fields_that_it_has():
    assert tuning_of({"name": "lora+bias", "r": 4}) == Combined(methods=(Lora(r=4), Bias()))
    assert tuning_of({"name": " adapter + prompt", "shared": False, "dropout": 0.2}) == Combined(
        methods=(Adapter(shared=False), Prompt(dropout=0.2))
    )


def test_a_list_of_tables_is_a_combination():
    assert tuning_of([{"name": "lora", "r": 4}, {"name": "bias"}]) == Combined(methods=(Lora(r=4), Bias()))
    assert tuning_of([{"name": "bias"}]) == Bias()


def test_a_list_of_names_is_a_combination_with_or_without_fields():
    assert tuning_of({"name": ["lora", "bias"], "r": 4}) == Combined(methods=(Lora(r=4), Bias()))
    assert tuning_of(["lora", "bias"]) == Combined(methods=(Lora(), Bias()))


def test_a_field_goes_over_those_of_a_resolved_combination():
    resolved = Combined(methods=(Lora(r=4), Bias())).model_dump(mode="json")
    assert tuning_of(resolved | {"r": 2}) == Combined(methods=(Lora(r=2), Bias()))


def test_a_resolved_combination_is_called_by_its_methods_and_read_back():
    combined = Combined(methods=(Bias(), Lora(r=4)))
    dumped = combined.model_dump(mode="json")
    assert dumped["name"] == "lora+bias"
    assert tuning_of(dumped) == combined
    assert expand({"name": "lora", "r": 4}) == {"name": "lora", "r": 4}


def test_an_override_can_choose_a_combination_and_its_fields():
    config = parse_config(
        SMALL | {"tuning": {"name": "lora", "r": 4, "use_rslora": True}},
        ["tuning.dropout=0.3", "tuning.name=lora+prompt"],
    )
    assert config.tuning == Combined(methods=(Prompt(dropout=0.3), Lora(r=4, use_rslora=True)))
    config = parse_config(SMALL | {"tuning": {"name": "lora", "r": 4}}, ["tuning.name=bias+adapter"])
    assert config.tuning == Combined(methods=(Adapter(), Bias()))


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"name": "lora+full"}, "`tuning.methods`: 'full' trains everything already, found lora+full"),
        ({"name": "lora+lora"}, "`tuning.methods`: a method stands twice in lora+lora"),
        ({"name": "lora+biass"}, "`tuning.methods.1.name` is 'biass', expected one of full, accumulator, exit-heads"),
        ({"name": "lora+bias", "r": 0}, "`tuning.methods.0.r` is 0, expected: greater than or equal to 1"),
        ({"name": "lora+bias", "rang": 4}, "`tuning.methods.0.rang` is unknown; known: name, r, lora_alpha"),
        ([{"name": "lora"}, {"name": "bias", "r": 4}], "`tuning.methods.1.r` is unknown"),
        ([], "`tuning.methods`"),
    ],
)
def test_what_cannot_be_combined_is_explained(section: object, problem: str):
    with pytest.raises(ConfigError) as caught:
        tuning_of(section)
    assert any(message.startswith(problem) for message in caught.value.problems), caught.value.problems


def test_a_combination_needs_two():
    with pytest.raises(ValidationError, match="at least 2"):
        Combined(methods=(Lora(),))
    with pytest.raises(ValidationError, match="trains everything"):
        Combined(methods=(Full(), Head()))
