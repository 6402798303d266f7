"""The lane engine: steps, batches and losses by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import repeat

import pytest
import torch
from pydantic import ValidationError
from tests.builders import (
    ReadyInputs,
    assert_close,
    assert_same_bits,
    deltas_of,
    jobs_for,
    start_of,
    tiny_data,
    tiny_engine,
)
from torch import Tensor, nn, tensor

from fedelta.data.batches import Examples
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import AdamW, Cosine, Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.base import LocalRule
from fedelta.strategies.local import FedProx, Plain
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.labels import Labels
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

PLAIN_SGD = Sgd(momentum=0.0)


class Linear(nn.Module):
    """Logits of two classes from one feature; starts at zero, so that both have probability 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@dataclass
class OneEach:
    """Replaces every gradient by 1 and remembers how many lanes each step had."""

    active: list[int] = field(default_factory=list)

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        grads_KP.fill_(1.0)
        self.active.append(len(grads_KP))


def linear_engine(
    features: list[float],
    labels: list[int],
    *,
    lanes: int = 1,
    rule: LocalRule | None = None,
    task: Task = Classification(),  # noqa: B008 a frozen value
    **client: object,
) -> LaneEngine:
    backbone, shared = Backbone(Linear(), Anatomy(("head",))), Lanes(lanes)
    spec = Head().apply(backbone, shared, stream(0))
    data = Examples(ReadyInputs({"x": tensor(features).view(-1, 1)}), Labels(tensor(labels)))
    settings = ClientSettings(**({"optimizer": PLAIN_SGD, "lr": 1.0} | client))
    return LaneEngine(backbone, spec, shared, data, client=settings, rule=rule or Plain(), task=task)


def train(engine: LaneEngine, sizes: list[int], lr: float = 1.0) -> dict[int, Params]:
    return deltas_of(engine, jobs_for(sizes, start_of(engine)), lr)


def test_one_step_by_hand():
    # Probabilities are 1/2, so the gradient of the bias is (1/2 - 1, 1/2) for label 0, and of the weight that times x.
    # x = 2 with label 0 and x = 4 with label 1: bias ((-1/2 + 1/2) / 2, ...) = 0,
    # weight (2 * -1/2 + 4 * 1/2) / 2 = 1/2 for class 0, -1/2 for class 1. Minus 0.1 times that.
    delta = train(linear_engine([2.0, 4.0], [0, 1], batch_size=2), [2], lr=0.1)[0]
    torch.testing.assert_close(delta["head.weight"], tensor([[-0.05], [0.05]]))
    torch.testing.assert_close(delta["head.bias"], tensor([0.0, 0.0]))


def test_padding_of_a_shorter_batch_has_no_weight():
    # lane 0 has three rows with x = 1 and labels 0, 0, 1: bias (-1/2 - 1/2 + 1/2) / 3 = -1/6
    # lane 1 has one row with x = 2 and label 0, padded to three: bias -1/2, weight 2 * -1/2 = -1
    engine = linear_engine([1.0, 1.0, 1.0, 2.0], [0, 0, 1, 0], lanes=2, batch_size=3)
    deltas = train(engine, [3, 1])
    torch.testing.assert_close(deltas[0]["head.bias"], tensor([1 / 6, -1 / 6]))
    torch.testing.assert_close(deltas[1]["head.bias"], tensor([0.5, -0.5]))
    torch.testing.assert_close(deltas[1]["head.weight"], tensor([[1.0], [-1.0]]))


class ByClass(Classification):
    """Rows of class 1 count three times, those of class 2 not at all."""

    def weights(self, targets: Tensor) -> Tensor | None:
        return tensor([1.0, 3.0, 0.0])[targets]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = super().losses(outputs, targets.clamp(max=1))
        return torch.where(targets == 2, torch.nan, known)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_each_client_minimises_the_weighted_mean_of_its_batch(lanes: int):
    # Probabilities are 1/2, so the gradient of the bias of class 0 is -1/2 for label 0 and 1/2 for label 1.
    # Client 0, labels 0, 1: (-1/2 + 3/2) / 4 = 1/4.   Client 1, labels 0, 2: -1/2.   Client 2, label 2: nothing.
    engine = linear_engine([0.0] * 5, [0, 1, 0, 2, 2], lanes=lanes, task=ByClass(), batch_size=2)
    results = {result.client_id: result for result in engine.train(jobs_for([2, 2, 1], start_of(engine)), 1.0)}
    biases = [results[client].delta["head.bias"].tolist() for client in range(3)]
    assert biases == [pytest.approx([-0.25, 0.25]), pytest.approx([0.5, -0.5]), [0.0, 0.0]]
    assert [results[client].train_loss for client in range(3)] == pytest.approx([math.log(2), math.log(2), 0.0])


def test_the_training_loss_is_the_mean_over_steps():
    # Step 1: ln 2. Its gradient of the bias is (-1/2, 1/2), so the bias becomes (1/2, -1/2), with x = 0 throughout.
    # Step 2: ln(1 + e^-1).
    engine = linear_engine([0.0], [0], local_steps=2)
    [result] = engine.train(jobs_for([1], start_of(engine)), 1.0)
    assert result.train_loss == pytest.approx((math.log(2) + math.log(1 + math.exp(-1))) / 2, rel=1e-6)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_the_training_loss_of_a_client_does_not_depend_on_its_lane_or_on_who_was_there_before(lanes: int):
    data, sizes = tiny_data(), [1, 9, 5, 7]
    engine, _ = tiny_engine(Head(), data, lanes=lanes)
    anchor = start_of(engine)
    losses = {result.client_id: result.train_loss for result in engine.train(jobs_for(sizes, anchor), 0.05)}
    for job in jobs_for(sizes, anchor):
        alone, _ = tiny_engine(Head(), data)
        [result] = alone.train([job], 0.05)
        assert losses[job.client_id] == pytest.approx(result.train_loss, rel=1e-4)


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_every_client_takes_exactly_its_steps_by_epochs(lanes: int):
    # With every gradient 1 and lr 1, each tensor moves by minus the number of steps.
    # 3 epochs of 5, 1, 4, 9 and 8 rows in batches of 4: 3 * (2, 1, 1, 3, 2)
    sizes = [5, 1, 4, 9, 8]
    engine = linear_engine([0.0] * 27, [0] * 27, lanes=lanes, rule=OneEach(), batch_size=4, local_epochs=3)
    deltas = train(engine, sizes)
    assert {client: delta["head.bias"].tolist() for client, delta in sorted(deltas.items())} == {
        client: [-steps] * 2 for client, steps in enumerate([6.0, 3.0, 3.0, 9.0, 6.0])
    }


def test_every_client_takes_exactly_the_configured_steps():
    engine = linear_engine([0.0] * 12, [0] * 12, lanes=2, rule=OneEach(), batch_size=4, local_steps=5)
    deltas = train(engine, [2, 9, 1])
    assert [deltas[client]["head.bias"].tolist() for client in range(3)] == [[-5.0, -5.0]] * 3


def test_lanes_are_refilled_at_once():
    # Steps 6, 1, 1, 1, 1, 2 in two lanes: beside the first client's six steps the others take 1 + 1 + 1 + 1 + 2.
    # Waiting for each other in pairs, they would need 6 + 1 + 2 = 9 passes.
    rule = OneEach()
    engine = linear_engine([0.0] * 12, [0] * 12, lanes=2, rule=rule, batch_size=1)
    train(engine, [6, 1, 1, 1, 1, 2])
    assert rule.active == [2] * 6


def test_lanes_without_a_client_are_not_computed():
    # Steps 3, 1, 2 in three lanes: 3 lanes, then the clients with 3 and 2 steps, then one
    rule = OneEach()
    train(linear_engine([0.0] * 6, [0] * 6, lanes=3, rule=rule, batch_size=1), [3, 1, 2])
    assert rule.active == [3, 2, 1]


def test_clients_are_yielded_as_they_finish():
    engine = linear_engine([0.0] * 6, [0] * 6, lanes=2, rule=OneEach(), batch_size=1)
    order = [result.client_id for result in engine.train(jobs_for([4, 1, 1], start_of(engine)), 1.0)]
    assert order == [1, 2, 0]


def test_no_jobs_give_no_results():
    assert list(linear_engine([0.0], [0]).train([], 1.0)) == []


def test_every_row_is_seen_once_an_epoch():
    # One-row batches with all gradients of the weight x * (p - y): with lr so small that p stays 1/2, the weight
    # of class 0 moves by lr / 2 * (1 + 10 + 100) in one epoch, whatever the order.
    delta = train(linear_engine([1.0, 10.0, 100.0], [0, 0, 0], batch_size=1), [3], lr=1e-9)[0]
    assert delta["head.weight"][0].item() == pytest.approx(0.5e-9 * 111, rel=1e-5)


def test_momentum_of_a_client_does_not_reach_the_next_one_in_its_lane():
    # Gradient 1, lr 1, momentum 1/2: steps of 1 and 1.5, so that two steps make -2.5 for each of the clients.
    engine = linear_engine([0.0] * 6, [0] * 6, rule=OneEach(), local_steps=2, optimizer=Sgd(momentum=0.5))
    deltas = train(engine, [1, 2, 3])
    assert [deltas[client]["head.bias"].tolist() for client in range(3)] == [[-2.5, -2.5]] * 3


def test_momentum_moves_with_a_client_that_changes_its_lane():
    # Client 0 is done after one step and client 1 takes its lane: steps 1, 1.5 and 1.75 make -4.25.
    engine = linear_engine(
        [0.0] * 4, [0] * 4, lanes=2, rule=OneEach(), batch_size=1, optimizer=Sgd(momentum=0.5)
    )  # fmt: skip
    assert train(engine, [1, 3])[1]["head.bias"].tolist() == [-4.25, -4.25]


@pytest.mark.parametrize("optimizer", [Sgd(), AdamW()], ids=["sgd", "adamw"])
def test_gradients_that_stay_with_autograd_train_as_those_in_rows(optimizer: Sgd | AdamW):
    # FedProx with mu = 0 changes no gradient, but gets all of a lane in one row.
    deltas = []
    for rule in (Plain(), FedProx(mu=0.0)):
        engine = linear_engine(
            [1.0, -2.0, 0.5, 3.0], [0, 1, 1, 0], rule=rule, batch_size=2, local_epochs=3, optimizer=optimizer
        )
        assert engine.bank.by_tensor == isinstance(rule, Plain)
        deltas.append(train(engine, [3, 1], lr=0.1))
    for client_id, delta in deltas[0].items():
        assert_close(delta, deltas[1][client_id], rtol=1e-5, atol=1e-6)


def test_an_offset_reaches_gradients_that_stay_with_autograd():
    # x = 0 and label 0: the gradient of the bias is (-1/2, 1/2); with the offset (1, 1) it is (1/2, 3/2).
    engine = linear_engine([0.0], [0], local_steps=1)
    job = replace(jobs_for([1], start_of(engine))[0], offset={"head.bias": tensor([1.0, 1.0])})
    assert engine.bank.by_tensor
    assert deltas_of(engine, [job], lr=1.0)[0]["head.bias"].tolist() == [-0.5, -1.5]


@pytest.mark.parametrize("method", [Head(), Lora(r=2)], ids=["head", "lora"])
def test_adamw_in_refilled_lanes_is_adamw_one_after_the_other(method: Head | Lora):
    # No tensor here has a gradient of zero (see contracts/): the bias correction of each lane counts its own steps.
    client = ClientSettings(batch_size=4, local_epochs=2, optimizer=AdamW(eps=1e-4))
    results = []
    for lanes in (1, 3):
        engine, _ = tiny_engine(method, tiny_data(), lanes=lanes, client=client)
        results.append(deltas_of(engine, jobs_for([5, 2, 9, 1, 4], start_of(engine)), lr=0.01))
    for client_id, delta in results[0].items():
        assert_close(delta, results[1][client_id], rtol=1e-3, atol=1e-5)


# Client 0 owns row 0, with which a batch must not be padded for others.
@pytest.mark.parametrize(("broken_client", "rows"), [(0, slice(0, 5)), (1, slice(5, 7))])
def test_a_client_with_broken_numbers_breaks_no_other_client(broken_client: int, rows: slice):
    data = tiny_data()
    broken = {"pixel_values": data.inputs.tensors["pixel_values"].clone()}
    broken["pixel_values"][rows] = torch.nan
    results = []
    for inputs in (data.inputs, ReadyInputs(broken)):
        engine, _ = tiny_engine(Lora(r=2), Examples(inputs, data.targets), lanes=3)
        results.append(deltas_of(engine, jobs_for([5, 2, 9, 1, 4], start_of(engine))))
    assert all(tensor.isnan().all() for tensor in results[1][broken_client].values())
    for client_id in {0, 1, 2, 3, 4} - {broken_client}:
        # Not the same bits: on broken rows the engine cannot prove that the last block may be left out in part.
        assert_close(results[0][client_id], results[1][client_id], rtol=1e-4, atol=1e-6)


def test_a_broken_client_leaves_nothing_behind_in_its_lane():
    data = tiny_data()
    engine, _ = tiny_engine(Lora(r=2), data)
    anchor = start_of(engine)
    before = deltas_of(engine, jobs_for([5], anchor))[0]
    poison = {name: torch.full_like(tensor, torch.nan) for name, tensor in anchor.items()}
    assert deltas_of(engine, jobs_for([5], poison))[0]["classifier.bias"].isnan().all()
    assert_same_bits(deltas_of(engine, jobs_for([5], anchor))[0], before)


def test_half_precision_keeps_the_tuned_tensors_in_float32_and_stays_near():
    data = tiny_data()
    exact, _ = tiny_engine(Head(), data)
    expected = deltas_of(exact, jobs_for([12], start_of(exact)))[0]
    _, backbone = tiny_engine(Head(), data)
    lanes = backbone.module.classifier.lanes
    half = LaneEngine(
        backbone, exact.spec, lanes, data, client=exact.client, rule=Plain(), compute_dtype="bfloat16"
    )  # fmt: skip
    delta = deltas_of(half, jobs_for([12], start_of(half)))[0]
    assert delta["classifier.weight"].dtype == torch.float32
    assert not torch.equal(delta["classifier.weight"], expected["classifier.weight"])
    torch.testing.assert_close(delta["classifier.weight"], expected["classifier.weight"], rtol=0, atol=0.01)


def test_accuracy_and_loss_of_a_test_set_by_hand():
    # Logits (x, 0): x = 1, 2, -1, -3 say classes 0, 0, 1, 1; with labels 0, 1, 1, 1 three of four are right.
    # Losses: ln(1 + e^-1), ln(1 + e^2), ln(1 + e^-1), ln(1 + e^-3).
    engine = linear_engine([0.0], [0])
    data = Examples(ReadyInputs({"x": tensor([[1.0], [2.0], [-1.0], [-3.0]])}), Labels(tensor([0, 1, 1, 1])))
    evaluation = engine.evaluator.evaluate(
        {"head.weight": tensor([[1.0], [0.0]]), "head.bias": tensor([0.0, 0.0])}, data
    )
    assert evaluation.measures["accuracy"] == 0.75
    expected = sum(math.log(1 + math.exp(power)) for power in (-1, 2, -1, -3)) / 4
    assert evaluation.measures["loss_nats"] == pytest.approx(expected, rel=1e-6)


def test_evaluation_counts_the_last_batch_of_a_large_test_set():
    # 600 rows in batches of 256, 256 and 88; only the last 30 are right: 5 %
    engine = linear_engine([0.0], [0], lanes=3)
    labels = torch.ones(600, dtype=torch.int64)
    labels[570:] = 0
    data = Examples(ReadyInputs({"x": torch.ones(600, 1)}), Labels(labels))
    evaluation = engine.evaluator.evaluate(
        {"head.weight": tensor([[1.0], [0.0]]), "head.bias": tensor([0.0, 0.0])}, data
    )
    assert evaluation.measures["accuracy"] == 0.05


def test_what_a_model_gives_for_a_set_comes_in_order_with_its_targets():
    engine = linear_engine([0.0], [0], lanes=3)
    features, labels = torch.arange(600.0).view(-1, 1), torch.arange(600) % 2
    data = Examples(ReadyInputs({"x": features}), Labels(labels))
    params = {"head.weight": tensor([[1.0], [0.0]]), "head.bias": tensor([0.5, 0.0])}
    batches = list(engine.evaluator.answers(params, data))
    assert torch.cat([batch.rows for batch in batches]).equal(torch.arange(600))
    assert torch.cat([batch.targets for batch in batches]).equal(labels)
    outputs = torch.cat([batch.outputs for batch in batches])
    assert outputs.equal(torch.cat([features + 0.5, torch.zeros(600, 1)], 1))
    assert not outputs.requires_grad


def test_evaluating_between_rounds_changes_no_training():
    data = tiny_data()
    engine, _ = tiny_engine(Lora(r=2), data, lanes=2)
    anchor = start_of(engine)
    before = deltas_of(engine, jobs_for([5, 7], anchor))
    engine.evaluator.evaluate({name: tensor + 1 for name, tensor in anchor.items()}, data)
    after = deltas_of(engine, jobs_for([5, 7], anchor))
    for client_id, delta in before.items():
        assert_same_bits(delta, after[client_id])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ClientSettings(batch_size=4), [1, 1, 2]),
        (ClientSettings(batch_size=4, local_epochs=3), [3, 3, 6]),
        (ClientSettings(batch_size=4, local_steps=7), [7, 7, 7]),
    ],
    ids=["default is one epoch", "epochs", "steps"],
)
def test_the_number_of_steps_rounds_the_last_batch_up(settings: ClientSettings, expected: list[int]):
    assert [settings.num_steps(examples) for examples in (1, 4, 5)] == expected


def test_the_learning_rate_of_a_round_follows_the_schedule():
    # Half way through a cosine: 0.2 / 2
    assert ClientSettings(lr=0.2, schedule=Cosine()).lr_in(3, 4) == pytest.approx(0.1)


def test_epochs_and_steps_together_are_refused():
    with pytest.raises(ValidationError, match="give `local_epochs` or `local_steps`, not both"):
        ClientSettings(local_epochs=1, local_steps=1)


def test_a_job_for_rows_in_any_place_uses_those_rows():
    # Row 2 alone: x = 4, label 1: weight of class 0 gets 4 * 1/2, so it moves by -2.
    engine = linear_engine([1.0, 2.0, 4.0], [0, 0, 1])
    delta = deltas_of(engine, [Job(9, tensor([2]), start_of(engine), repeat(stream(0)), stream(0))], 1.0)[9]
    torch.testing.assert_close(delta["head.weight"], tensor([[-2.0], [2.0]]))
