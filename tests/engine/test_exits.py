"""Depths of clients, the loss over exits on small numbers, and training with exits in the lane engine."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.builders import assert_close, jobs_for, randomise, start_of, tiny_backbone, tiny_data, tiny_engine
from torch import Tensor, tensor

from fedelta.data.batches import Examples
from fedelta.data.clients import Clients
from fedelta.engine.exits import ExitLoss, ExitSettings
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings, Trained
from fedelta.errors import ConfigError
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.tasks.classification import Classification
from fedelta.tasks.regression import Regression
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import Combined
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.exits import exit_blocks, logits_at
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.prompt import Prompt

ACCUMULATOR = Accumulator(num_heads=2, mlp_width=24, head_width=12)
# With logits (x, 0) and label 0 the cross-entropy is ln(1 + e^-x): x = ln 3 gives ln 4/3, x = 0 gives ln 2,
# x = -ln 3 gives ln 4.
LN3 = math.log(3)
LABELS = torch.zeros(3, dtype=torch.int64)
LOW, MIDDLE, HIGH = math.log(4 / 3), math.log(2), math.log(4)


def logits_of(*exits: list[list[float]], grad: bool = False) -> Tensor:
    """[E, N, 2] from x by exit, lane and sample."""
    first = tensor(exits).flatten(1)
    return torch.stack([first, torch.zeros_like(first)], dim=-1).requires_grad_(grad)


def no_loss_yet(num_exits: int, num_lanes: int = 1) -> Tensor:
    return torch.full((num_exits, num_lanes), torch.nan)


def zeros(draw: int) -> int:
    return 0


def test_the_exits_of_a_step_by_regime():
    drawn = iter([0, 2, 1])

    def draw(below: int) -> int:
        assert below == 3
        return next(drawn)

    assert ExitLoss(ExitSettings(train="deepest"), 1, Classification()).chosen(3, draw) == (3,)
    assert [ExitLoss(ExitSettings(train="random"), 1, Classification()).chosen(3, draw) for _ in range(3)] == [
        (1,),
        (3,),
        (2,),
    ]
    for train in ("sum", "distill"):
        assert ExitLoss(ExitSettings(train=train), 1, Classification()).chosen(3, zeros) == (1, 2, 3)


def test_one_exit_gives_the_mean_cross_entropy_of_each_lane():
    # Lane 0 has two samples and lane 1 one.
    minimised, reported = ExitLoss(ExitSettings(), 1, Classification()).of(
        tensor([[[LN3, 0.0], [-LN3, 0.0], [0.0, 0.0]]]), LABELS[:3], [2, 1], torch.ones(1, 2), no_loss_yet(1, 2)
    )
    assert minimised.tolist() == pytest.approx([(LOW + HIGH) / 2, MIDDLE])
    assert reported.tolist() == pytest.approx([(LOW + HIGH) / 2, MIDDLE])


def test_the_sum_over_exits_is_minimised_and_their_mean_is_reported():
    minimised, reported = ExitLoss(ExitSettings(train="sum"), 1, Classification()).of(
        logits_of([[LN3]], [[0.0]], [[-LN3]]), LABELS[:1], [1], torch.ones(3, 1), no_loss_yet(3)
    )
    assert minimised.tolist() == pytest.approx([LOW + MIDDLE + HIGH])
    assert reported.tolist() == pytest.approx([(LOW + MIDDLE + HIGH) / 3])


def test_lanes_at_different_exits_learn_at_their_own_alone():
    # Lane 0 drew the first exit and lane 1 the second; the other logits get no gradient.
    logits = logits_of([[LN3], [9.0]], [[5.0], [0.0]], grad=True)
    minimised, reported = ExitLoss(ExitSettings(train="random"), 1, Classification()).of(
        logits, LABELS[:2], [1, 1], tensor([[1.0, 0.0], [0.0, 1.0]]), no_loss_yet(2, 2)
    )
    assert minimised.tolist() == pytest.approx([LOW, MIDDLE])
    assert reported.tolist() == pytest.approx([LOW, MIDDLE])
    minimised.sum().backward()
    # The gradient of the right logit is p - 1: 3/4 - 1 and 1/2 - 1.
    torch.testing.assert_close(logits.grad[:, :, 0], tensor([[-0.25, 0.0], [0.0, -0.5]]))


class SecondCounts(Classification):
    def weights(self, targets: Tensor) -> Tensor | None:
        return tensor([0.0, 1.0])[: len(targets)]


def test_weights_of_rows_hold_at_every_exit():
    minimised, _ = ExitLoss(ExitSettings(train="sum"), 1, SecondCounts()).of(
        logits_of([[LN3, 0.0]], [[0.0, -LN3]]), LABELS[:1].repeat(2), [2], torch.ones(2, 1), no_loss_yet(2)
    )
    assert minimised.tolist() == pytest.approx([MIDDLE + HIGH])


@pytest.mark.parametrize(
    ("round", "weight"), [(1, math.exp(-5 * (299 / 300) ** 2)), (150, math.exp(-1.25)), (300, 1.0), (900, 1.0)]
)
def test_every_exit_learns_from_the_best_with_a_weight_that_grows_to_one(round: int, weight: float):
    # Losses ln 4/3 and ln 2: exit 1 teaches with (3/4, 1/4). KL to (1/2, 1/2) is 3/4 ln 3/2 + 1/4 ln 1/2.
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    logits = logits_of([[LN3]], [[0.0]], grad=True)
    minimised, reported = ExitLoss(ExitSettings(train="distill"), round, Classification()).of(
        logits, LABELS[:1], [1], torch.ones(2, 1), no_loss_yet(2)
    )
    assert minimised.tolist() == pytest.approx([LOW + MIDDLE + weight * divergence], rel=1e-5)
    assert reported.tolist() == pytest.approx([(LOW + MIDDLE) / 2])
    minimised.sum().backward()
    # The teacher has only the gradient of its cross-entropy, 3/4 - 1; the other one has q - p beside it, 1/2 - 3/4.
    torch.testing.assert_close(logits.grad[:, 0, 0], tensor([-0.25, -0.5 - 0.25 * weight]))


def test_the_teacher_is_the_exit_with_the_lowest_running_loss_of_its_lane():
    # 0.8 * 0.1 + 0.2 ln 2 = 0.219 against 0.8 * 1 + 0.2 ln 4/3: in lane 0 exit 2 teaches although exit 1 is better
    # now. In lane 1, which has seen nothing yet, exit 1 does.
    running = tensor([[1.0, torch.nan], [0.1, torch.nan]])
    logits = logits_of([[LN3], [LN3]], [[0.0], [0.0]])
    minimised, _ = ExitLoss(ExitSettings(train="distill"), 300, Classification()).of(
        logits, LABELS[:2], [1, 1], torch.ones(2, 2), running
    )
    from_second = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    from_first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert minimised.tolist() == pytest.approx([LOW + MIDDLE + from_second, LOW + MIDDLE + from_first])
    expected = [[0.8 + 0.2 * LOW, LOW], [0.08 + 0.2 * MIDDLE, MIDDLE]]
    torch.testing.assert_close(running, tensor(expected))


def test_the_distillation_is_the_mean_over_the_samples_of_each_lane():
    # Lane 0 has two samples like the one of lane 1.
    first, second = tensor([LN3, 0.0]).expand(3, 2), torch.zeros(3, 2)
    minimised, _ = ExitLoss(ExitSettings(train="distill"), 300, Classification()).of(
        torch.stack([first, second]), LABELS[:3], [2, 1], torch.ones(2, 2), no_loss_yet(2, 2)
    )
    from_first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert minimised.tolist() == pytest.approx([LOW + MIDDLE + from_first] * 2)


# Through the engine: one step of one batch, by hand with autograd on a model of one lane.


def trained(
    method: TuningMethod, train: str, sizes: tuple[int, ...], *, lanes: int, round: int = 1, **client: object
) -> dict[int, Trained]:
    settings = ClientSettings(**({"batch_size": 4, "optimizer": Sgd(momentum=0.0)} | client))
    engine, _ = tiny_engine(
        method, tiny_data(), lanes=lanes, client=settings, exits=ExitSettings(train=train), num_hidden_layers=3
    )  # fmt: skip
    jobs = jobs_for(sizes, start_of(engine))
    jobs = [replace(job, exits=stream(0, "exits", job.client_id)) for job in jobs]
    return {result.client_id: result for result in engine.train(jobs, 0.05, round)}


def one_step(train: str, rows: Tensor, data: Examples) -> tuple[Params, float]:
    """Delta and loss of one SGD step over all of `rows`, at all exits."""
    backbone, lanes = tiny_backbone(num_hidden_layers=3), Lanes(1)
    spec = ACCUMULATOR.apply(backbone, lanes, stream(0, "tuning"))
    by_exit = logits_at(exit_blocks(backbone.module), lambda: backbone.logits(data.inputs.fetch(rows)), {1, 2, 3})
    losses = [torch.nn.functional.cross_entropy(logits, data.targets.values[rows]) for logits in by_exit.values()]
    loss = torch.stack(losses).sum()
    if train == "distill":
        best = min(range(3), key=lambda index: losses[index].item())
        teacher = by_exit[best + 1].detach().log_softmax(1)
        for logits in by_exit.values():
            divergence = (teacher.exp() * (teacher - logits.log_softmax(1))).sum(1).mean()
            loss = loss + math.exp(-5 * (1 - 200 / 300) ** 2) * divergence
    parameters = [backbone.module.get_parameter(name) for name in spec]
    grads = torch.autograd.grad(loss, parameters)
    deltas = {name: -0.05 * grad[0] for name, grad in zip(spec, grads, strict=True)}
    return deltas, sum(exit_loss.item() for exit_loss in losses) / 3


@pytest.mark.parametrize("train", ["sum", "distill"])
def test_a_step_at_all_exits_is_that_of_plain_autograd(train: str):
    # Batches of 4, 2 and 3 rows side by side: the shorter ones are padded.
    sizes = (4, 2, 3)
    results = trained(ACCUMULATOR, train, sizes, lanes=3, round=200, local_steps=1)
    for client_id, rows in enumerate(torch.arange(9).split(sizes)):
        expected, loss = one_step(train, rows, tiny_data())
        assert_close(results[client_id].delta, expected, rtol=1e-3, atol=1e-6)
        assert results[client_id].train_loss == pytest.approx(loss, rel=1e-5)


def test_random_exits_are_drawn_for_each_batch_from_the_stream_of_the_client():
    # Without momentum and decay an exit head moves only in the steps for which it was drawn.
    result = trained(ExitHeads(), "random", (4,), lanes=1, local_steps=30, batch_size=4)[0]
    moved = {name.split(".")[2] for name, delta in result.delta.items() if delta.abs().max() > 0}
    assert moved == {"0", "1", "2"}
    draws = stream(0, "exits", 0)
    expected = [int(torch.randint(3, (), generator=draws)) for _ in range(30)]
    single = trained(ExitHeads(), "random", (4,), lanes=1, local_steps=1)[0]
    moved = {name.split(".")[2] for name, delta in single.delta.items() if delta.abs().max() > 0}
    assert moved == {str(expected[0])}
    assert len(set(expected)) == 3


@pytest.mark.parametrize("train", ["deepest", "random", "sum", "distill"])
@pytest.mark.parametrize("method", [ACCUMULATOR, ExitHeads()], ids=lambda method: method.name)
def test_lanes_do_not_matter(method: TuningMethod, train: str):
    alone = trained(method, train, (5, 2, 9, 1, 4), lanes=1, local_epochs=2, optimizer=Sgd(momentum=0.9))
    beside = trained(method, train, (5, 2, 9, 1, 4), lanes=3, local_epochs=2, optimizer=Sgd(momentum=0.9))
    for client_id, result in alone.items():
        assert_close(result.delta, beside[client_id].delta, rtol=1e-3, atol=1e-5)
        assert result.train_loss == pytest.approx(beside[client_id].train_loss, rel=1e-4)


def test_dropout_of_a_client_does_not_depend_on_the_exits_that_others_draw():
    method = Combined(methods=(ExitHeads(), Prompt(num_virtual_tokens=2, dropout=0.5)))
    alone = trained(method, "random", (5, 8, 9), lanes=1, local_epochs=3)
    beside = trained(method, "random", (5, 8, 9), lanes=3, local_epochs=3)
    for client_id, result in alone.items():
        assert_close(result.delta, beside[client_id].delta, rtol=1e-3, atol=1e-5)


def test_evaluation_by_hand_at_every_exit():
    data = tiny_data(num_rows=300)
    engine, backbone = tiny_engine(ACCUMULATOR, data, num_hidden_layers=3, lanes=2)
    params = randomise(start_of(engine), stream(0, "noise"), scale=0.3)
    evaluation = engine.evaluator.evaluate(params, data)
    engine.bank.load(0, params)
    with torch.no_grad():
        engine.lanes.active = 1
        blocks = exit_blocks(backbone.module)
        answers = logits_at(blocks, lambda: backbone.logits(data.inputs.tensors), {1, 2, 3})
    right = [int((answers[number].argmax(1) == data.targets.values).sum()) for number in (1, 2, 3)]
    assert evaluation.by_exit["accuracy"] == tuple(count / 300 for count in right)
    assert len(set(right)) == 3
    assert evaluation.measures["accuracy"] == right[-1] / 300
    loss = torch.nn.functional.cross_entropy(answers[3], data.targets.values).item()
    assert evaluation.measures["loss_nats"] == pytest.approx(loss, rel=1e-5)


def test_a_model_without_exits_has_no_accuracies_by_exit():
    engine, _ = tiny_engine(Head(), tiny_data())
    assert engine.evaluator.evaluate(start_of(engine), tiny_data()).by_exit == {}


@pytest.mark.parametrize("train", ["random", "sum"])
def test_cached_features_of_the_embeddings_give_the_same_training(train: str):
    results = []
    for cache in (0, 2**24):
        engine, _ = tiny_engine(
            ACCUMULATOR, tiny_data(), lanes=2, cache_bytes=cache, exits=ExitSettings(train=train)
        )  # fmt: skip
        assert not engine.notes
        jobs = [replace(job, exits=stream(0, "exits", job.client_id)) for job in jobs_for((5, 3), start_of(engine))]
        results.append({result.client_id: result.delta for result in engine.train(jobs, 0.05)})
        by_exit = engine.evaluator.evaluate(start_of(engine), tiny_data()).by_exit["accuracy"]
        results[-1]["evaluation"] = {"at": tensor(by_exit)}
    for key, delta in results[0].items():
        assert_close(delta, results[1][key], rtol=1e-4, atol=1e-6)


def test_exits_of_another_task_learn_by_its_loss_and_its_distance():
    # Two exits, one lane, two samples: errors 1 and 2 at exit 1, 0 and 1 at exit 2.
    outputs = tensor([[[1.0], [4.0]], [[0.0], [3.0]]])
    total, mean = ExitLoss(ExitSettings(train="distill"), 300, Regression(offset=0.0, scale=1.0)).of(
        outputs, tensor([[0.0], [2.0]]), [2], torch.ones(2, 1), torch.full((2, 1), torch.nan)
    )
    # Losses (1 + 4) / 2 and 1 / 2; exit 2 teaches, and exit 1 is 1 away from it at both samples.
    assert mean.tolist() == [1.5]
    assert total.tolist() == [2.5 + 0.5 + 1.0]


# Depths of clients.


def test_without_tiers_every_client_runs_the_whole_model():
    assert ExitSettings().depths(Clients.of([3, 5]), 4, seed=0) == {3: 4, 5: 4}
    assert not ExitSettings().has_tiers
    assert ExitSettings(tiers=(2,)).has_tiers


def test_a_cycle_goes_by_place_in_the_list_of_clients():
    assert ExitSettings(tiers=(1, 2, 4)).depths(Clients.of([0, 1, 2, 3, 7]), 4, seed=0) == {
        0: 1,
        1: 2,
        2: 4,
        3: 1,
        7: 2,
    }


def test_a_shuffle_has_as_many_of_each_depth_and_depends_on_the_seed_alone():
    settings = ExitSettings(tiers=(1, 2, 4), assignment="shuffle")
    one, again, two = (settings.depths(Clients.of(range(30)), 4, seed) for seed in (0, 0, 1))
    assert one == again != two
    for depths in (one, two):
        assert sorted(depths) == list(range(30))
        assert sorted(depths.values()) == [1] * 10 + [2] * 10 + [4] * 10
    assert one != ExitSettings(tiers=(1, 2, 4)).depths(Clients.of(range(30)), 4, 0)


def test_a_file_gives_the_depth_of_every_client(tmp_path: Path):
    path = tmp_path / "tiers.json"
    path.write_text('{"0": 2, "1": 1, "5": 4}')
    assert ExitSettings(tiers_file=str(path)).depths(Clients.of([0, 1, 5]), 4, seed=0) == {0: 2, 1: 1, 5: 4}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"0": 2}', "has no depth for client 1"),
        ('{"0": 2, "1": 1, "0": 3}', "cannot be read: '0' stands there more than once"),
        ('{"0": 2, "1": 5}', "client 1 has depth 5; expected 1 to 4"),
        ('{"0": 0, "1": 1.5}', "client 0 has depth 0, client 1 has depth 1.5; expected"),
        ('{"0": 2, "1": true}', "client 1 has depth true"),
        ('{"0": 2, "1": "3"}', 'client 1 has depth "3"'),
        ("[1, 2]", "cannot be read"),
        ("{", "cannot be read"),
        ("[[0, 1], [1, 2]]", "cannot be read"),
        ('{"0": 2, "1": 1, "9": 3, "a": 1}', "names '9', 'a', but there are 2 clients, 0 to 1"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: str | None, problem: str):
    path = tmp_path / "tiers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        ExitSettings(tiers_file=str(path)).depths(Clients.of([0, 1]), 4, seed=0)
    [message] = caught.value.problems
    assert message.startswith(f"`exits.tiers_file` {str(path)!r}")
    assert problem in message
    assert 'a JSON object that maps clients to depths, such as {"0": 4, "1": 4}' in caught.value.hint


def test_a_file_may_call_clients_by_their_names(tmp_path: Path):
    path = tmp_path / "tiers.json"
    sites = Clients.of(range(3), {0: "ann", 1: "bob", 2: "7"})
    path.write_text('{"ann": 2, "1": 1, "7": 4}')
    assert ExitSettings(tiers_file=str(path)).depths(sites, 4, seed=0) == {0: 2, 1: 1, 2: 4}
    path.write_text('{"ann": 2, "carl": 1, "7": 9}')
    with pytest.raises(ConfigError) as caught:
        ExitSettings(tiers_file=str(path)).depths(sites, 4, seed=0)
    unknown_clients, without_depth, wrong_depths = caught.value.problems
    assert unknown_clients.endswith("names 'carl', but there are 3 clients: 'ann', 'bob', '7'")
    assert without_depth.endswith("has no depth for client 1 ('bob')")
    assert wrong_depths.endswith("client 2 ('7') has depth 9; expected 1 to 4 for every client")
    assert caught.value.hint == 'write a JSON object that maps clients to depths, such as {"ann": 4, "bob": 4}.'


def test_a_depth_that_the_model_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"`exits.tiers` has depth 5, but the model has 4 blocks") as caught:
        ExitSettings(tiers=(1, 5)).depths(Clients.of([0]), 4, seed=0)
    assert caught.value.hint == "use depths from 1 to 4."


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tiers": (1,), "tiers_file": "a.json"}, "give `tiers` or `tiers_file`, not both"),
        ({"assignment": "shuffle", "tiers_file": "a.json"}, "`assignment` is 'shuffle', but the depths are in"),
        ({"tiers": ()}, "tiers"),
        ({"tiers": (0,)}, "tiers"),
        ({"train": "all"}, "train"),
        ({"assignment": "sorted"}, "assignment"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, object], problem: str):
    with pytest.raises(ValidationError, match=problem):
        ExitSettings(**fields)
