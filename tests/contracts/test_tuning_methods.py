"""What every tuning method keeps, on every family of small models; and the numbers of parameters of the papers."""

from __future__ import annotations

import pytest
from tests.builders import ARCHITECTURES, CONVOLUTIONAL

from fedelta.catalog import TUNING_METHODS
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.testing import check, contracts
from fedelta.testing.contract import sentence_of
from fedelta.testing.tuning import UNTRAINED
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


def fits(name: str, family: str) -> bool:
    """Whether the method is made for the family; what happens to the others is in the tests of each method.

    Of a method in several forms one runs on all families, the others on one of images and one of texts.
    """
    if name not in TUNING_METHODS and family in ("deit", "roberta", "distilbert"):
        return False
    return name in EVERYWHERE or (family in CONVOLUTIONAL) == (name in ON_CONVOLUTIONS)


def is_enough(name: str, family: str) -> bool:
    """Whether clients train with this method on this family in every run of the tests, and not only with `-m slow`.

    Every form of a method does on a family of images, its plain form also on one of texts, and one combination.
    """
    return family in ("vit", "small-resnet") or (
        family == "bert" and (name in TUNING_METHODS or name == "bias+lora+adapter+prompt")
    )


def cases(*, enough: bool) -> list[object]:
    return [
        pytest.param(method, family, id=f"{name}-{family}")
        for name, method in METHODS.items()
        for family in ARCHITECTURES
        if fits(name, family) and is_enough(name, family) == enough
    ]


@pytest.mark.parametrize(("method", "family"), cases(enough=True))
def test_a_tuning_method_keeps_every_contract(method: TuningMethod, family: str):
    check(method, models=(family,))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family"), cases(enough=False))
def test_a_tuning_method_keeps_every_contract_on_more_families(method: TuningMethod, family: str):
    check(method, models=(family,))


@pytest.mark.parametrize(("method", "family"), cases(enough=False))
def test_a_tuning_method_keeps_what_needs_no_training_on_more_families(method: TuningMethod, family: str):
    sentences = {sentence_of(item) for item in UNTRAINED}
    untrained = [contract for contract in contracts(method, models=(family,)) if contract.sentence in sentences]
    assert len(untrained) == len(UNTRAINED)
    for contract in untrained:
        contract()


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
