"""DP-SGD against gradients that are computed example by example, and the bound by taking examples away."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import repeat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import start_of, tiny_backbone, tiny_data
from tests.contracts.test_tuning_methods import METHODS
from torch import Tensor, nn, tensor

from fedelta.data.augmentation import Augmentation
from fedelta.data.batches import Examples, poisson_batches
from fedelta.engine.dp_sgd import DpSgd, clipped_sum, even_parts
from fedelta.engine.exits import ExitSettings
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import AdamW, Optimizer, Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.errors import ConfigError, ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone, _set_norms
from fedelta.models.source import ModelSource
from fedelta.params import Params
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.randomness import Randomness, Secret, Seeded
from fedelta.privacy.settings import Privacy
from fedelta.seeds import stream
from fedelta.strategies.base import LocalRule
from fedelta.strategies.local import FedProx, Plain
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.labels import Labels
from fedelta.testing.small import ReadyInputs
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt

NUM_ROWS = 5
PLAIN_SGD = Sgd(momentum=0.0)
# Every form of every method on one family of images, and those that differ there on texts and convolutions.
CASES = [
    pytest.param(method, family, id=f"{name}-{family}")
    for name, method in METHODS.items()
    for family in ("vit", "bert", "small-resnet")
    if (family == "small-resnet") == (name in ("parallel", "parallel-zero", "lora-all-conv", "parallel+lora+bias"))
    or name in ("full", "head", "bias")
    if family != "bert" or name in ("full", "head", "bias", "lora", "adapter", "prompt", "accumulator")
]


@dataclass
class Watch:
    """Remembers the gradients that arrive at the optimizer."""

    grads: list[Tensor] = field(default_factory=list)

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        self.grads.append(grads_KP.clone())


def backbone_of(family: str) -> Backbone:
    backbone = tiny_backbone(family)
    if family == "small-resnet":
        _set_norms(backbone.module, ModelSource(batch_norm="group"))
        return replace(backbone, batch_norm="group")
    return backbone


def engine_of(
    method: TuningMethod,
    family: str = "vit",
    *,
    dp: DpSgd | None = None,
    lanes: int = 8,
    rule: LocalRule | None = None,
    optimizer: Optimizer = PLAIN_SGD,
    data: Examples | None = None,
    task: Task | None = None,
    augmentation: Augmentation | None = None,
    exits: ExitSettings | None = None,
    **client: object,
) -> LaneEngine:
    backbone, shared = backbone_of(family), Lanes(min(lanes, method.max_lanes or lanes))
    spec = method.apply(backbone, shared, stream(0, "tuning"))
    settings = ClientSettings(**({"batch_size": NUM_ROWS, "lr": 0.5, "optimizer": optimizer} | client))
    return LaneEngine(
        backbone, spec, shared, data or tiny_data(family), client=settings, rule=rule or Plain(), dp=dp,
        task=task or Classification(), augmentation=augmentation, exits=exits or ExitSettings(),
    )  # fmt: skip


def silence(step: int, exact: Tensor) -> Tensor:
    return torch.zeros(exact.numel(), dtype=torch.float64)


def job_of(
    engine: LaneEngine,
    rows: list[int] | None = None,
    noise: Callable[[int, Tensor], Tensor] = silence,
    anchor: Params | None = None,
    **more: object,
) -> Job:
    return Job(
        0,
        torch.arange(NUM_ROWS) if rows is None else tensor(rows),
        start_of(engine) if anchor is None else anchor,
        order=repeat(stream(1, "batches")),
        noise=stream(1, "dropout"),
        augmentation=repeat(stream(1, "augmentation")),
        exits=stream(1, "exits"),
        noise_of_step=noise,
        **more,
    )


def gradient_after_clipping(method: TuningMethod, family: str, rows: list[int], dp: DpSgd, **engine: object) -> Tensor:
    """The sum of the clipped gradients of `rows`, which are all rows of the client, so that each is in the batch."""
    watch = Watch()
    trainer = engine_of(method, family, dp=dp, rule=watch, **engine)
    list(trainer.train([job_of(trainer, rows)], 0.5))
    return watch.grads[0][0] * min(NUM_ROWS, len(rows))


def gradients_one_by_one(method: TuningMethod, family: str) -> list[Params]:
    """The gradient of each example, from a model with one lane that sees it alone, without the engine."""
    backbone, lanes, data = backbone_of(family), Lanes(1), tiny_data(family)
    spec = method.apply(backbone, lanes, stream(0, "tuning"))
    trained = {name: backbone.module.get_parameter(name) for name in spec if spec.tensors[name].trained}
    masks, gradients = int(torch.randint(2**62, (), generator=stream(1, "dropout"))), []
    for row in torch.arange(NUM_ROWS).split(1):
        with lanes.training([1], [stream(masks, int(row))]):
            logits = backbone.logits(data.inputs.fetch(row))
        loss = nn.functional.cross_entropy(logits, data.targets.fetch(row))
        by_tensor = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
        gradients.append({name: grad.flatten() for name, grad in zip(trained, by_tensor, strict=True)})
    return gradients


def norm_of(gradient: Params) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in gradient.values()))


def columns(engine: LaneEngine, total_P: Tensor) -> Params:
    return {name: total_P[engine.bank.places([name])[0]] for name in engine.spec if engine.spec.tensors[name].trained}


@pytest.mark.parametrize(("method", "family"), CASES)
def test_a_step_is_the_sum_of_gradients_that_are_clipped_one_by_one(method: TuningMethod, family: str):
    gradients = gradients_one_by_one(method, family)
    limit = sorted(map(norm_of, gradients))[NUM_ROWS // 2]  # half of them are clipped
    factors = [min(1.0, limit / norm_of(gradient)) for gradient in gradients]
    total = gradient_after_clipping(method, family, list(range(NUM_ROWS)), DpSgd(limit))
    parts = columns(engine_of(method, family, dp=DpSgd(limit)), total)
    for name, part in parts.items():
        expected = sum(factor * gradient[name] for factor, gradient in zip(factors, gradients, strict=True))
        assert float((part - expected).norm()) <= 2e-3 * float(expected.norm()) + 1e-5 * limit, name


@pytest.mark.parametrize(("method", "family"), CASES)
def test_one_example_more_or_less_changes_the_sum_by_the_clipping_norm_at_most(method: TuningMethod, family: str):
    limit, rows = 0.01, list(range(NUM_ROWS))
    watch, dp = Watch(), DpSgd(limit)
    engine = engine_of(method, family, dp=dp, rule=watch, lanes=3)
    start = start_of(engine)
    for removed in (None, *rows):
        left = [row for row in rows if row != removed]
        list(engine.train([job_of(engine, left, anchor=start)], 0.5))
    # The client has n rows and a batch of 5: the sum is divided by n.
    whole, *without = (grads[0] * num for grads, num in zip(watch.grads, [5, 4, 4, 4, 4, 4], strict=True))
    changes = [float((whole - part).double().norm()) for part in without]
    assert max(changes) <= limit * (1 + 1e-4)  # float32 in what the rule sees
    assert max(changes) >= limit * (1 - 1e-3)  # the bound is no looser than it says


@pytest.mark.parametrize(("method", "family"), [(METHODS["lora"], "vit"), (METHODS["parallel"], "small-resnet")])
def test_the_number_of_lanes_does_not_matter(method: TuningMethod, family: str):
    deltas = []
    for lanes in (1, 3, 32):
        engine = engine_of(method, family, dp=DpSgd(0.5), lanes=lanes, local_steps=3, batch_size=2, optimizer=Sgd())
        noise = SitePrivacy(Privacy(unit="example", noise_multiplier=0.1), 0.1, Seeded(3)).step_noise(1, 0)
        deltas += [result.delta for result in engine.train([job_of(engine, noise=noise)], 1e-3)]
    # Between lanes the order of sums differs, so that gradients near zero differ in more than their last bits.
    for name, expected in deltas[0].items():
        for delta in deltas[1:]:
            assert float((delta[name] - expected).norm()) <= 1e-3 * float(expected.norm())


@pytest.mark.parametrize("optimizer", [Sgd(momentum=0.9, weight_decay=0.1), AdamW(eps=1e-3)])
def test_without_noise_and_with_a_large_bound_it_is_ordinary_training(optimizer: Optimizer):
    deltas = []
    for dp in (DpSgd(1e6), None):
        engine = engine_of(Lora(r=2), dp=dp, optimizer=optimizer, local_steps=4)
        deltas += [result.delta for result in engine.train([job_of(engine)], 0.1)]
    private, plain = deltas
    for name, expected in plain.items():
        torch.testing.assert_close(private[name], expected, rtol=2e-3, atol=1e-5)


def test_clients_are_trained_one_after_the_other_and_each_as_alone():
    engine = engine_of(Lora(r=2), dp=DpSgd(0.1), local_steps=2, batch_size=2, optimizer=Sgd())
    start = start_of(engine)
    jobs = [replace(job_of(engine, rows, anchor=start), client_id=number) for number, rows in enumerate([[0, 1], [2]])]
    together = {result.client_id: result.delta for result in engine.train(jobs, 0.1)}
    for number, rows in enumerate([[0, 1], [2]]):
        fresh = engine_of(Lora(r=2), dp=DpSgd(0.1), local_steps=2, batch_size=2, optimizer=Sgd())
        [alone] = fresh.train([job_of(fresh, rows)], 0.1)
        assert all(torch.equal(together[number][name], part) for name, part in alone.delta.items())


def test_an_empty_batch_is_a_step_of_noise_alone():
    # One row of 1e9: the rate is 1e-9 and every batch is empty. The noise of step s is s + 1 in every scalar, divided
    # by the expected size, which is the batch size 1.
    watch = Watch()
    engine = engine_of(Head(), dp=DpSgd(1.0), rule=watch, local_steps=3, batch_size=1)
    engine.client = replace_rate(engine.client, 1e-9)
    list(engine.train([job_of(engine, noise=lambda step, exact: torch.full(exact.shape, step + 1.0))], 1.0))
    assert [float(grads[0, 0]) for grads in watch.grads] == pytest.approx(
        [1 / (1e-9 * 5), 2 / (1e-9 * 5), 3 / (1e-9 * 5)]
    )


def replace_rate(client: ClientSettings, rate: float) -> ClientSettings:
    class Rare(ClientSettings):
        def sampling_rate(self, num_examples: int) -> float:
            return rate

    return Rare(**client.model_dump())


@pytest.mark.parametrize("randomness", [Seeded(5), Secret(bytes(range(32)))])
def test_the_noise_has_the_stated_deviation(randomness: Randomness):
    # z C = 2 * 0.5 = 1. The sum of n squares has mean n and variance 2 n.
    settings = Privacy(unit="example", noise_multiplier=2.0, clipping_norm=0.5)
    noise = SitePrivacy(settings, 2.0, randomness).step_noise(1, 7)
    draws = torch.stack([noise(step, torch.zeros(20_000)) for step in range(4)])
    num = draws.numel()
    assert abs(float(draws.square().sum()) - num) < 4 * math.sqrt(2 * num)
    assert abs(float(draws.sum())) < 4 * math.sqrt(num)
    assert float((draws[0] * draws[1]).mean()) == pytest.approx(0, abs=4 / math.sqrt(20_000))


def test_noise_is_added_once_to_the_sum_before_it_is_divided():
    settings = Privacy(unit="example", noise_multiplier=3.0, clipping_norm=0.1)
    watch = Watch()
    engine = engine_of(Lora(r=4), dp=DpSgd(0.1), rule=watch, local_steps=6)
    list(engine.train([job_of(engine, noise=SitePrivacy(settings, 3.0, Seeded(2)).step_noise(1, 0))], 1e-9))
    quiet = gradient_after_clipping(Lora(r=4), "vit", list(range(NUM_ROWS)), DpSgd(0.1)) / NUM_ROWS
    noise = torch.stack([grads[0] - quiet for grads in watch.grads]).double() * NUM_ROWS / 0.3
    num = noise.numel()
    assert abs(float(noise.square().sum()) - num) < 4 * math.sqrt(2 * num)


def test_the_noise_of_a_step_is_not_clipped_in_the_next():
    watch = Watch()
    engine = engine_of(Lora(r=2), dp=DpSgd(0.1), rule=watch, local_steps=2)
    noise = SitePrivacy(Privacy(unit="example", noise_multiplier=1e6), 1e6, Seeded(2)).step_noise(1, 0)
    list(engine.train([job_of(engine, noise=lambda step, exact: noise(step, exact) * (step == 0))], 1e-12))
    quiet = gradient_after_clipping(Lora(r=2), "vit", list(range(NUM_ROWS)), DpSgd(0.1)) / NUM_ROWS
    torch.testing.assert_close(watch.grads[1][0], quiet)


def test_what_a_strategy_adds_to_a_gradient_is_not_clipped():
    engine = engine_of(Head(), dp=DpSgd(1e-9))
    offset = {name: torch.full(part.shape, 10.0) for name, part in start_of(engine).items()}
    [result] = engine.train([job_of(engine, offset=offset)], 0.5)
    assert all(torch.allclose(part, tensor(-5.0)) for part in result.delta.values())


def test_the_correction_of_a_local_rule_comes_after_the_noise():
    # mu = 1 pulls with value - anchor = 2, and nothing clips that.
    engine = engine_of(Head(), dp=DpSgd(1e-9), rule=FedProx(mu=1.0))
    start = start_of(engine)
    local = {name: part + 2 for name, part in start.items()}
    [result] = engine.train([job_of(engine, anchor=start, local=local)], 0.5)
    assert all(torch.allclose(part, tensor(1.0)) for part in result.delta.values())


def test_dropout_of_an_example_does_not_depend_on_the_others():
    method = Prompt(num_virtual_tokens=2, dropout=0.5)
    alone = [gradient_after_clipping(method, "vit", [row], DpSgd(1e6)) for row in range(3)]
    together = gradient_after_clipping(method, "vit", [0, 1, 2], DpSgd(1e6))
    torch.testing.assert_close(together, torch.stack(alone).sum(0), rtol=1e-3, atol=1e-5)


def test_augmented_examples_differ_from_step_to_step():
    watch = Watch()
    engine = engine_of(
        Head(), dp=DpSgd(1.0), rule=watch, local_steps=2, lr=1e-9, augmentation=Augmentation(crop_padding=2, flip=True)
    )
    list(engine.train([job_of(engine)], 1e-9))
    assert not torch.allclose(*watch.grads)


@pytest.mark.parametrize("train", ["deepest", "random", "sum"])
def test_exits_are_clipped_per_example_over_all_their_heads(train: str):
    limit, rows = 1e-3, [0, 1, 2]
    whole, part = (
        gradient_after_clipping(ExitHeads(), "vit", chosen, DpSgd(limit), exits=ExitSettings(train=train))
        for chosen in (rows, rows[:2])
    )
    assert float((whole - part).norm()) == pytest.approx(limit, rel=1e-3)


def test_groups_are_clipped_each_to_their_share_of_the_norm():
    limit = 1e-3  # so small that each group of each example is clipped
    total = gradient_after_clipping(Lora(r=2), "vit", [0], DpSgd(limit, "per-group"))
    engine = engine_of(Lora(r=2))
    parts, groups = columns(engine, total), engine.spec.groups
    for names in groups.values():
        assert norm_of({name: parts[name] for name in names}) == pytest.approx(limit / math.sqrt(len(groups)), rel=1e-3)
    assert norm_of(parts) == pytest.approx(limit, rel=1e-3)


finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
rows_of_numbers = st.lists(st.lists(finite, min_size=4, max_size=4), min_size=1, max_size=6)


@given(rows=rows_of_numbers, exponent=st.integers(-6, 6), is_split=st.booleans())
def test_no_clipped_row_is_longer_than_the_bound(rows: list[list[float]], exponent: int, is_split: bool):
    limit, parts = 10.0**exponent, [[slice(0, 1), slice(3, 4)], [slice(1, 3)]] if is_split else [[slice(0, 4)]]
    clipped = [clipped_sum(tensor([row]), parts, limit) for row in rows]
    assert max(float(row.norm()) for row in clipped) <= limit * (1 + 1e-14)
    torch.testing.assert_close(clipped_sum(tensor(rows), parts, limit), torch.stack(clipped).sum(0))


def test_short_rows_stay_as_they_are():
    # (3, 4) has norm 5 and becomes (0.6, 0.8); (0.3, 0.4) has norm 0.5 and stays.
    total = clipped_sum(tensor([[3.0, 4.0], [0.3, 0.4]]), [[slice(0, 2)]], 1.0)
    torch.testing.assert_close(total, tensor([0.9, 1.2], dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad: float):
    total = clipped_sum(tensor([[bad, 1.0], [0.3, 0.4]]), [[slice(0, 2)]], 1.0)
    torch.testing.assert_close(total, tensor([0.3, 0.4], dtype=torch.float64))


@given(num=st.integers(0, 50), most=st.integers(1, 9))
def test_chunks_are_even_and_hold_every_row_once(num: int, most: int):
    chunks = even_parts(torch.arange(num), most)
    assert torch.equal(torch.cat([torch.arange(0), *chunks]), torch.arange(num))
    sizes = [len(chunk) for chunk in chunks]
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 1 and len(sizes) == math.ceil(num / most))


def test_poisson_samples_have_each_row_independently_with_the_rate():
    # 2,000 samples of 10 rows at rate 0.3: a row is in 600 of them, with deviation sqrt(2000 * 0.21) = 20.5;
    # two rows are both in 180, with deviation sqrt(2000 * 0.09 * 0.91) = 12.8.
    samples = list(poisson_batches(torch.arange(10), 0.3, 2000, stream(4, "batches")))
    is_in = torch.zeros(2000, 10)
    for step, sample in enumerate(samples):
        is_in[step, sample] = 1
    assert (is_in.sum(0) - 600).abs().max() < 4 * 20.5
    both = is_in.T @ is_in
    assert (both - torch.eye(10) * both - 180 * (1 - torch.eye(10))).abs().max() < 4.5 * 12.8


def test_a_rate_of_one_takes_every_row():
    assert all(len(batch) == 7 for batch in poisson_batches(torch.arange(7), 1.0, 20, stream(0)))


class Standardised(nn.Module):
    """Subtracts the mean over the batch, so that rows depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(0))


def test_a_model_that_mixes_examples_sees_them_one_by_one():
    backbone, lanes = Backbone(Standardised(), Anatomy(("head",))), Lanes(4)
    spec = Head().apply(backbone, lanes, stream(0))
    data = Examples(ReadyInputs({"x": torch.randn(6, 2, generator=stream(0))}), Labels(torch.arange(6) % 3))
    client = ClientSettings(batch_size=4, optimizer=PLAIN_SGD)
    engine = LaneEngine(backbone, spec, lanes, data, client=client, rule=Plain(), dp=DpSgd(1.0))
    assert engine.notes[0].startswith("examples train one after the other, in one lane instead of 4: Standardised")
    assert engine.lanes.num == 1


def test_batch_norm_that_is_trained_is_refused():
    backbone, lanes = tiny_backbone("small-resnet"), Lanes(2)
    spec = METHODS["parallel"].apply(backbone, lanes, stream(0, "tuning"))
    with pytest.raises(ModelError, match=r"layers of batch norm, first `.*`, compute with mean and variance") as caught:
        LaneEngine(
            backbone, spec, lanes, tiny_data("small-resnet"), client=ClientSettings(), rule=Plain(), dp=DpSgd(1.0)
        )
    assert 'model.batch_norm = "group"' in str(caught.value.hint)


def test_batch_norm_that_is_frozen_is_no_obstacle():
    backbone, lanes = tiny_backbone("small-resnet"), Lanes(3)
    spec = METHODS["head"].apply(backbone, lanes, stream(0, "tuning"))
    data = tiny_data("small-resnet")
    engine = LaneEngine(backbone, spec, lanes, data, client=ClientSettings(), rule=Plain(), dp=DpSgd(1.0))
    assert engine.notes == []


def test_a_teacher_that_all_examples_choose_is_refused():
    with pytest.raises(ConfigError, match=r'`exits\.train` is "distill", which chooses the teacher by the loss of all'):
        engine_of(ExitHeads(), dp=DpSgd(1.0), exits=ExitSettings(train="distill"))


class Ranked(Classification):
    """A loss that compares each row with the others."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = Classification().losses(outputs, targets)
        return losses / losses.sum()


def test_a_loss_that_reads_other_rows_is_refused():
    with pytest.raises(ModelError, match=r"the loss of task 'classification' for an example depends on the others\."):
        engine_of(Head(), dp=DpSgd(1.0), task=Ranked())


class Weighted(Classification):
    def weights(self, targets: Tensor) -> Tensor | None:
        return 1.0 + targets.float()


def test_the_weight_of_an_example_does_not_scale_its_gradient():
    watches = {}
    for task in (Classification(), Weighted()):
        watches[type(task)] = Watch()
        engine = engine_of(Head(), dp=DpSgd(1e6), task=task, rule=watches[type(task)])
        list(engine.train([job_of(engine)], 0.1))
    torch.testing.assert_close(watches[Weighted].grads, watches[Classification].grads)


def test_a_job_without_noise_is_a_mistake_of_the_caller():
    engine = engine_of(Head(), dp=DpSgd(1.0))
    with pytest.raises(ValueError, match="the engine adds noise, but the job has no `noise_of_step`"):
        list(engine.train([replace(job_of(engine), noise_of_step=None)], 0.1))


def test_fedpeft_as_released_adds_noise_to_the_gradient_of_the_batch_and_clips_nothing():
    gradients = {}
    for dp in (None, DpSgd(1e-6, mechanism="fedpeft-code")):
        watch = Watch()
        engine = engine_of(Head(), dp=dp, rule=watch)
        list(engine.train([job_of(engine, noise=lambda step, exact: torch.full(exact.shape, 0.25))], 0.1))
        gradients[dp] = watch.grads[0]
    plain, noisy = gradients.values()
    torch.testing.assert_close(noisy, plain + 0.25)


def test_fedpeft_as_intended_clips_each_tensor_of_the_gradient_of_the_batch():
    watch = Watch()
    engine = engine_of(Head(), dp=DpSgd(1e-3, mechanism="fedpeft-text"), rule=watch)
    list(engine.train([job_of(engine)], 0.1))
    assert [norm_of({name: part}) for name, part in columns(engine, watch.grads[0][0]).items()] == pytest.approx(
        [1e-3] * 2
    )
