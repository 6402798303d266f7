"""SCAFFOLD by hand, from a client's step to the server's control variate, and its payloads in a real round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.builders import (
    assert_close,
    assert_same_bits,
    jobs_for,
    kept,
    remembered,
    start_of,
    tiny_data,
    tiny_engine,
)
from tests.strategies.hand import PLAN, SPEC, params, step, updates
from tests.strategies.windowed import running
from torch import tensor

from fedelta.aggregation.base import Update
from fedelta.codecs.channel import Channel
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.federation.client import Site
from fedelta.federation.rounds import Federation, Standing, federate
from fedelta.params import ParamSpec, TensorSpec, add
from fedelta.runtimes.stability import Stability, Unstable
from fedelta.seeds import stream
from fedelta.strategies.base import Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.scaffold import Controls, Scaffold
from fedelta.tuning.head import Head


def federation(
    strategy: Strategy, *, lanes: int = 2, codec: str = "float32"
) -> tuple[Federation, dict[str, torch.Tensor], Site]:
    client = ClientSettings(batch_size=4, lr=0.05, local_epochs=2, optimizer=Sgd(momentum=0.0))
    engine, _ = tiny_engine(Head(), tiny_data(), lanes=lanes, client=client)
    partition = dict(enumerate(torch.arange(24).split([8, 8, 8])))
    site = Site(engine, partition, Channel(name=codec), seed=0, num_rounds=4, steering=strategy.steering)
    return running(strategy, site, site), start_of(engine), site


def test_control_variates_move_by_the_sum_over_the_cohort_divided_by_all_holders_of_the_tensor():
    # a is held by all 5 clients and sent by two: (2 + 4) / 5. b is held by 4 and sent by one: 3 / 4, and b itself is
    # the mean over that one.
    spec = ParamSpec({"a": TensorSpec((), "a"), "b": TensorSpec((), "b")})
    strategy, start = Scaffold(), {"a": tensor(0.0), "b": tensor(0.0)}
    plan = replace(PLAN, num_holders={"control/a": 5, "control/b": 4})
    sent = [
        Update(0, 9, {"a": tensor(1.0), "control/a": tensor(2.0)}),
        Update(1, 1, {"a": tensor(3.0), "b": tensor(6.0), "control/a": tensor(4.0), "control/b": tensor(3.0)}),
    ]
    new_params, state = step(strategy, strategy.init(start, spec), start, plan, sent, spec)
    assert {name: value.item() for name, value in new_params.items()} == {"a": 2.0, "b": 6.0}
    assert state["control/a"].item() == pytest.approx(6 / 5)
    assert state["control/b"].item() == 3 / 4


def test_a_client_by_hand():
    # c = 1, c_i = 0.25: every gradient is corrected by 0.75. The client moved by -3 in 2 steps of 0.5:
    # c_i+ - c_i = -1 - (-3) / 1 = 2, so c_i+ = 2.25
    received, remembered = {"a": tensor(9.0), "control/a": tensor(1.0)}, {"control/a": tensor(0.25)}
    assert Controls().offset(received, remembered) == {"a": tensor(0.75)}
    sent = Controls().beside(received, {"a": tensor(-3.0)}, step_length=2 * 0.5)
    assert sent == {"control/a": tensor(2.0)}
    assert Controls().remember(remembered, sent) == {"control/a": tensor(2.25)}


def test_the_new_control_variate_is_the_mean_of_the_gradients():
    # One client alone, c = c_i = 0, plain SGD: w - y = lr * (sum of gradients), so c_i+ is their mean.
    gradients = tensor([1.0, -4.0, 6.0])
    received = {"a": tensor(0.0), "control/a": tensor(0.0)}
    sent = Controls().beside(received, {"a": -0.1 * gradients.sum()}, step_length=3 * 0.1)
    torch.testing.assert_close(sent["control/a"], gradients.mean())


def test_the_server_by_hand():
    # a: 10 + 0.5 * (1 - 3) / 2 = 9.5. c: 2 + 2/5 * (4 + 8) / 2 = 4.4. Examples do not count.
    sent = [
        Update(0, 10, {"a": tensor(1.0), "control/a": tensor(4.0)}),
        Update(4, 30, {"a": tensor(-3.0), "control/a": tensor(8.0)}),
    ]
    state = {"control/a": tensor(2.0), "control/b": tensor([1.0, 1.0])}
    new_params, later = step(Scaffold(server_lr=0.5), state, params(), PLAN, sent, SPEC)
    assert_close(new_params, {"a": tensor(9.5), "b": tensor([1.0, 2.0])}, rtol=0, atol=0)
    assert_close(later, {"control/a": tensor(4.4), "control/b": tensor([1.0, 1.0])}, rtol=1e-6, atol=0)


def test_without_control_variates_and_with_equal_clients_the_server_is_fedavg():
    zero = {f"control/{name}": torch.zeros_like(tensor) for name, tensor in params().items()}
    equal = [Update(update.client_id, 8, update.delta) for update in updates()]
    strategy = Scaffold()
    sent = [Update(update.client_id, 8, update.delta | zero) for update in equal]
    result, state = step(strategy, strategy.init(params(), SPEC), params(), PLAN, sent, SPEC)
    assert_same_bits(result, step(FedAvg(), {}, params(), PLAN, equal, SPEC)[0])
    assert_same_bits(state, zero)


def quadratics(strategy: Strategy, seed: int) -> float:
    """Where a run on f_i(w) = s_i / 2 (w - m_i)^2 ends: ten clients, two of them a round, five steps of 0.02 each."""
    slopes, minima = torch.linspace(0.5, 2.0, 10).double(), torch.linspace(-3.0, 5.0, 10).double() ** 2
    spec = ParamSpec({"w": TensorSpec((), "w")})
    server = {"w": tensor(0.0, dtype=torch.float64)}
    steering = strategy.steering
    state = {name: value.double() for name, value in strategy.init(server, spec).items()}
    remembered: dict[int, dict[str, torch.Tensor]] = {}
    for round in range(1, 1501):
        plan = strategy.plan(state, round, range(10), spec, stream(seed, "cohort", round))
        sent = []
        for client in plan.cohort:
            control = remembered.get(client, steering.start(spec)) if steering else {}
            received = {**state, **server}
            offset = steering.offset(received, control)["w"] if steering else 0.0
            local = server["w"]
            for _ in range(5):
                local = local - 0.02 * (slopes[client] * (local - minima[client]) + offset)
            delta = {"w": local - server["w"]}
            if steering:
                beside = steering.beside(received, delta, 5 * 0.02)
                remembered[client] = steering.remember(control, beside)
                delta |= beside
            sent.append(Update(client, 1 + 7 * client, delta))
        server, state = step(strategy, state, server, plan, sent, spec)
    return server["w"].item()


def test_it_ends_at_the_optimum_whatever_the_cohorts_where_fedavg_wanders():
    # The optimum of the mean of all f_i: sum s_i m_i / sum s_i.
    slopes, minima = torch.linspace(0.5, 2.0, 10).double(), torch.linspace(-3.0, 5.0, 10).double() ** 2
    optimum = ((slopes * minima).sum() / slopes.sum()).item()
    settings = {"clients_per_round": 2, "num_rounds": 1500}
    for seed in range(3):
        assert abs(quadratics(Scaffold(**settings), seed) - optimum) < 1e-3
        assert abs(quadratics(FedAvg(**settings), seed) - optimum) > 0.1


def test_the_offset_enters_every_step_of_its_lane_alone():
    # Plain SGD: an offset o moves the client by -lr * o in each step, beside what its gradients do. Three lanes for
    # four clients, so that lanes are refilled and moved; client 1 alone is steered.
    client = ClientSettings(batch_size=4, lr=0.05, local_steps=1, optimizer=Sgd(momentum=0.0))
    deltas = []
    for offset in (0.0, 2.0):
        engine, _ = tiny_engine(Head(), tiny_data(num_rows=24), lanes=3, client=client)
        start = start_of(engine)
        jobs = [
            replace(job, offset={"classifier.bias": torch.full((3,), offset)} if job.client_id == 1 else {})
            for job in jobs_for([4, 8, 3, 9], start)
        ]
        deltas.append({trained.client_id: trained.delta for trained in engine.train(jobs, lr=0.05)})
    for client_id in range(4):
        difference = deltas[1][client_id]["classifier.bias"] - deltas[0][client_id]["classifier.bias"]
        torch.testing.assert_close(difference, torch.full((3,), -0.1 if client_id == 1 else 0.0), atol=1e-7, rtol=0)


def test_the_first_round_is_fedavg_and_the_second_is_not():
    results = {}
    for strategy in (FedAvg(clients_per_round=3, num_rounds=2), Scaffold(clients_per_round=3, num_rounds=2)):
        running, start, _ = federation(strategy)
        results[strategy.name] = list(federate(running, Standing(start, strategy.init(start, running.spec))))
    assert_same_bits(results["fedavg"][0].params, results["scaffold"][0].params)
    assert not torch.equal(
        results["fedavg"][1].params["classifier.bias"], results["scaffold"][1].params["classifier.bias"]
    )


@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_the_servers_control_variate_is_the_mean_of_all_clients_also_after_void_rounds(codec: str):
    strategy = Scaffold(clients_per_round=2, num_rounds=9, min_replies=2)
    running, start, site = federation(strategy, codec=codec)
    sizes = {client_id: len(rows) for client_id, rows in site.partition.items()}
    flaky = Unstable(running.runtime, Stability(vanish_fraction=0.3), site.engine.client, sizes, seed=0)
    finished = list(federate(replace(running, runtime=flaky), Standing(start, strategy.init(start, running.spec))))
    assert any(outcome.num_examples == 0 for outcome in finished)
    for name, server in finished[-1].state.items():
        # Of three clients; one that was never accepted has zeros.
        mean = torch.stack([control[name].double() for control in remembered(site).values()]).sum(0) / 3
        torch.testing.assert_close(server.double(), mean, atol=1e-6, rtol=1e-4)


def test_control_variates_are_groups_of_their_own_in_the_ledger_and_double_the_payload():
    strategy = Scaffold(clients_per_round=2, num_rounds=1)
    running, start, _ = federation(strategy)
    [outcome] = federate(running, Standing(start, strategy.init(start, running.spec)))
    for transfer in outcome.transfers:
        assert transfer.tensor_bytes["control/classifier"] == transfer.tensor_bytes["classifier"] == 4 * (16 * 3 + 3)
    assert len(outcome.transfers) == 4


def test_what_clients_remember_is_none_of_the_model():
    running, start, site = federation(Scaffold(clients_per_round=3, num_rounds=1))
    list(federate(running, Standing(start, running.strategy.init(start, running.spec))))
    assert sorted(remembered(site)) == [0, 1, 2]
    assert kept(site) == {}
    assert set(running.spec) == set(start)
    assert_same_bits(add(start, {}), start)


def test_lanes_do_not_change_what_is_remembered():
    runs = []
    for lanes in (1, 3):
        running, start, site = federation(Scaffold(clients_per_round=3, num_rounds=2), lanes=lanes)
        list(federate(running, Standing(start, running.strategy.init(start, running.spec))))
        runs.append(
            {
                f"{client}/{name}": t
                for client, control in sorted(remembered(site).items())
                for name, t in control.items()
            }
        )
    assert_close(*runs, rtol=1e-4, atol=1e-5)


def test_the_same_seed_draws_the_same_cohort_as_fedavg():
    ids = range(20)
    plans = [
        strategy(clients_per_round=4).plan({}, 1, ids, SPEC, stream(0, "cohort", 1)) for strategy in (FedAvg, Scaffold)
    ]
    assert plans[0].cohort == plans[1].cohort
    assert set(plans[1].upload[plans[1].cohort[0]]) == {"a", "b", "control/a", "control/b"}
