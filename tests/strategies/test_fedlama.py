"""FedLAMA by hand, from two curves to three windows, and whole runs of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tests.builders import adrift, assert_same_bits, kept
from tests.small import CONVOLUTIONAL, write_small
from tests.strategies.windowed import SPEC, START, training, walking
from torch import Tensor, tensor

from fedelta.config import load_config
from fedelta.engine.optimizers import AdamW, Sgd
from fedelta.errors import ConfigError
from fedelta.experiment import Experiment, Result
from fedelta.federation.rounds import Standing, federate
from fedelta.models.hub import build
from fedelta.models.source import ModelSource
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama, curves
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.full import Full
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel
from fedelta.tuning.prompt import Prompt

# The example by hand. Clients 0 and 1 have 1 and 3 examples: p = 1/4 and 3/4. Where they move by m0 and m1 the mean is
# (m0 + 3 m1) / 4; where they are D apart the clients are 3/4 D and 1/4 D from it: the squared distance of Eq. 2 is
# 1/4 * 9/16 D^2 + 3/4 * 1/16 D^2 = 3/16 D^2, which is 3 for D = 4 and 12 for D = 8.
WALKS = {
    # Window 1, rounds 1 and 2. a: mean 1, D = 8. b: means 0 and 2, D = 4 and 4. c: means 0, 0, 1 and 2, D = 4, 0, 0, 0.
    1: ({"a": 7, "b": (3, 5), "c": (3, 0, 1, 2)}, {"a": -1, "b": (-1, 1), "c": (-1, 0, 1, 2)}),
    # Window 2, rounds 3 and 4. a: mean 0, D = 4. b: means 1 and 1, D = 8 and 8. c: means 2, 0, 0, 0, D = 4, 0, 0, 0.
    2: ({"a": 3, "b": (7, 7), "c": (5, 0, 0, 0)}, {"a": -1, "b": (-1, -1), "c": (1, 0, 0, 0)}),
    3: ({"a": 1, "b": (1, 1), "c": (1, 1, 1, 1)}, {"a": 1, "b": (1, 1), "c": (1, 1, 1, 1)}),
}


def walk(round: int, client_id: int) -> Params:
    return {name: tensor(move).float() for name, move in WALKS[(round + 1) // 2][client_id].items()}


def test_three_layers_and_two_clients_through_two_windows_by_hand():
    strategy = FedLama(phi=2, tau=2, num_rounds=6, clients_per_round=2, crossing="excluded")
    running, runtime, engine = walking(strategy, walk)
    finished, between = [], []
    for outcome in federate(running, Standing(START, strategy.init(START, SPEC))):
        finished.append(outcome)
        between.append(adrift(runtime.site))
    servers = [{name: value.tolist() for name, value in outcome.params.items()} for outcome in finished]

    # Window 1: everything travels twice.
    assert servers[0] == {"a": 1, "b": [0, 2], "c": [0, 0, 1, 2]}
    assert servers[1] == {"a": 2, "b": [0, 4], "c": [0, 0, 2, 4]}
    assert between[:2] == [{}, {}]
    # Eq. 2 with tau_l = 2: d_a = 12 / (2 * 1), d_b = (3 + 3) / (2 * 2), d_c = 3 / (2 * 4)
    assert finished[1].logged["unit_discrepancy"] == (6.0, 1.5, 0.375)
    # Ascending c, b, a: d dim = 1.5, 3, 6, in all 10.5; dim = 4, 2, 1, in all 7.
    # delta = 1/7, 3/7, 1 and 1 - lambda = 3/7, 1/7, 0: only c is below.
    assert [outcome.logged["interval_rounds"] for outcome in finished[:2]] == [(1, 1, 1), (1, 1, 2)]

    # Window 2: after round 3 a and b travel, and c stays with each client as it has become.
    assert servers[2] == {"a": 2, "b": [1, 5], "c": [0, 0, 2, 4]}
    assert {
        client: {name: value.tolist() for name, value in tensors.items()} for client, tensors in between[2].items()
    } == {
        0: {"local/c": [5, 0, 2, 4], "anchor/c": [0, 0, 2, 4]},
        1: {"local/c": [1, 0, 2, 4], "anchor/c": [0, 0, 2, 4]},
    }
    assert [(plan.download[0], plan.upload[0]) for plan in runtime.plans[2:4]] == [
        (("a", "b", "c"), ("a", "b")), (("a", "b"), ("a", "b", "c")),
    ]  # fmt: skip
    # c has moved by 10 and 2: the mean is (10 + 3 * 2) / 4 = 4.
    assert servers[3] == {"a": 2, "b": [2, 6], "c": [4, 0, 2, 4]}
    assert between[3] == {}
    # tau_l = 2, and 4 for c, whose clients are 8 apart: d_a = 3 / 2, d_b = (12 + 12) / (2 * 2), d_c = 12 / (4 * 4)
    assert finished[3].logged["unit_discrepancy"] == (1.5, 6.0, 0.75)
    # Ascending c, a, b: d dim = 3, 1.5, 12, in all 16.5; delta = 2/11, 3/11, 1 and 1 - lambda = 3/7, 2/7, 0:
    # 3/11 = 0.273 is below 2/7 = 0.286, so that c and a are below.
    assert finished[3].logged["interval_rounds"] == (2, 1, 2)

    # Window 3, and what it costs: a travels 5 times, b 6, c 4. (1 * 5 + 2 * 6 + 4 * 4) / (7 * 6)
    assert [outcome.synced_fraction for outcome in finished] == [1, 1, 3 / 7, 1, 2 / 7, 1]
    assert finished[-1].state["num_syncs"].tolist() == [5, 6, 4]
    # At the end of a window no client has unsent tensors.
    assert all(job.local == {} for round, job in engine.jobs if round in (1, 3, 5))


def test_the_crossing_group_is_in_or_out():
    # The numbers of the first window: c is below, b is the crossing.
    both_curves = curves(tensor([6.0, 1.5, 0.375]).double(), tensor([1, 2, 4]))
    assert both_curves.order.tolist() == [2, 1, 0]
    torch.testing.assert_close(both_curves.delta, tensor([1 / 7, 3 / 7, 1.0]).double())
    torch.testing.assert_close(both_curves.one_minus_lambda, tensor([3 / 7, 1 / 7, 0.0]).double())
    assert both_curves.below("excluded").tolist() == [False, False, True]
    assert both_curves.below("included").tolist() == [False, True, True]


def test_a_group_on_the_crossing_is_not_below_it():
    # Two groups of one size: 1 - lambda = 1/2, 0. With d = 1 and 3 delta = 1/4, 1; with d = 1 and 1 it is 1/2, 1.
    assert curves(tensor([1.0, 3.0]).double(), tensor([1, 1])).below("excluded").tolist() == [True, False]
    assert curves(tensor([1.0, 1.0]).double(), tensor([1, 1])).below("excluded").tolist() == [False, False]
    assert curves(tensor([1.0, 1.0]).double(), tensor([1, 1])).below("included").tolist() == [True, False]


@pytest.mark.parametrize(("crossing", "expected"), [("excluded", [True, True, False]), ("included", [True] * 3)])
def test_without_any_discrepancy_everything_before_the_end_of_the_curve_is_below(crossing: str, expected: list[bool]):
    assert curves(torch.zeros(3).double(), tensor([5, 1, 2])).below(crossing).tolist() == expected


def test_a_layer_of_97_percent_travels_seldom_only_with_the_crossing():
    # The FEMNIST CNN: with the smallest d of all, fc1 has a sixth of the discrepancy, and leaves 1 - lambda = 2.7 %.
    sizes = tensor([832, 51_264, 6_424_576, 127_038])
    unit = tensor([3e-2, 3e-3, 1e-5, 1e-3]).double()
    assert curves(unit, sizes).below("excluded").tolist() == [False] * 4
    assert curves(unit, sizes).below("included").tolist() == [False, False, True, False]


def authors(unit: Tensor, sizes: Tensor) -> set[int]:
    """The loop of the authors' code: append, and stop at the first layer with (1 - lambda) < delta."""
    order = sorted(range(len(sizes)), key=lambda layer: float(unit[layer]))
    total, parameters, delta, one_minus_lambda, chosen = float(unit @ sizes.double()), int(sizes.sum()), 0.0, 1.0, set()
    for layer in order:
        delta += float(unit[layer] * sizes[layer]) / total
        one_minus_lambda -= int(sizes[layer]) / parameters
        chosen.add(layer)
        if one_minus_lambda < delta:
            break
    return chosen


def test_the_choice_is_that_of_the_authors_code_and_without_its_last_that_of_the_paper():
    num_chosen = []
    for seed in range(50):
        generator = stream(seed, "curves")
        unit = torch.rand(9, generator=generator).double() ** 3
        sizes = torch.randint(1, 5000, (9,), generator=generator)
        below = {crossing: curves(unit, sizes).below(crossing) for crossing in ("included", "excluded")}
        chosen = {name: set(seldom.nonzero().flatten().tolist()) for name, seldom in below.items()}
        assert chosen["included"] == authors(unit, sizes)
        assert chosen["excluded"] == chosen["included"] - {
            max(chosen["included"], key=lambda layer: float(unit[layer]))
        }
        num_chosen.append(len(chosen["included"]))
    # delta < lambda, as the pseudo-code prints it, would always take all 9 but the last.
    assert sum(num_chosen) / 50 < 7


@pytest.mark.parametrize(
    ("preset", "num_classes", "num_groups", "in_kernels", "in_all"),
    [
        ("resnet20", 10, 23, 271_152, 272_762),
        ("wrn28-10", 100, 29, 36_518_832, 36_539_124),
        ("femnist-cnn", 62, 4, 6_601_504, 6_603_710),
    ],
)
def test_the_layers_of_the_papers_networks(
    preset: str, num_classes: int, num_groups: int, in_kernels: int, in_all: int
):
    names = tuple(map(str, range(num_classes)))
    backbone = build(ModelSource(architecture={"model_type": preset}), names, seed=0)
    spec = Full().apply(backbone, Lanes(1), stream(0))
    kernels = {name: tensor for name, tensor in spec.tensors.items() if len(tensor.shape) > 1}
    assert sum(tensor.numel for tensor in kernels.values()) == in_kernels
    assert (len(spec.sizes), sum(spec.sizes.values())) == (num_groups, in_all)
    assert list(spec.sizes) == list(spec.groups)
    for group, names in spec.groups.items():
        # One kernel first, and behind it what rides along: its bias, or the norm after it with its statistics.
        stem, *later_layers = names
        assert stem == f"{group}.weight"
        endings = [name.rpartition(".")[2] for name in later_layers]
        assert endings in (["bias"], ["weight", "bias", "running_mean", "running_var"])
        assert {spec.tensors[name].shape for name in later_layers} == {(kernels[stem].shape[0],)}
    assert sum(name.endswith("running_mean") for name in spec) == (0 if preset == "femnist-cnn" else num_groups - 1)


@pytest.mark.parametrize(
    ("method", "family", "client"),
    [
        (Lora(r=2), "vit", {}),
        (Lora(r=2), "bert", {"optimizer": AdamW(), "lr": 1e-3}),
        (Parallel(), "small-resnet", {"optimizer": Sgd(momentum=0.9)}),
        (Full(), "small-resnet", {"codec": "float16"}),
        (Prompt(num_virtual_tokens=2), "vit", {"lost": lambda round, client_id: (round + client_id) % 3 == 0}),
    ],
)
def test_with_phi_one_it_is_fedavg_to_the_last_bit(method: TuningMethod, family: str, client: dict[str, object]):
    fields = {"num_rounds": 4, "clients_per_round": 2}
    results = []
    for strategy in (FedLama(phi=1, tau=3, **fields), FedAvg(**fields)):
        settings = {"method": method, "family": family, "local_steps": 3} | client
        running, start, _ = training(strategy, **settings)
        results.append(list(federate(running, Standing(start, strategy.init(start, running.spec)))))
    for lama, plain in zip(*results, strict=True):
        assert_same_bits(lama.params, plain.params)
        assert (lama.cohort, lama.transfers, lama.rejections) == (plain.cohort, plain.transfers, plain.rejections)
        assert (lama.train_loss, lama.delta_norm) == (plain.train_loss, plain.delta_norm)
    assert not torch.equal(torch.stack([*results[0][-1].params.values()][:1]), torch.stack([*start.values()][:1]))


@pytest.mark.parametrize(
    ("method", "family"),
    [
        (Lora(r=2), "vit"),
        (Adapter(shared=False, reduction_factor=4), "vit"),
        (Bias(), "vit"),
        (Prompt(num_virtual_tokens=2), "deit"),
        (Parallel(), "small-resnet"),
        (Full(), "small-resnet"),
    ],
)
def test_groups_of_every_method_travel_at_intervals_of_their_own(method: TuningMethod, family: str):
    strategy = FedLama(phi=2, tau=2, num_rounds=6, clients_per_round=3)
    running, start, runtime = training(strategy, method=method, family=family)
    finished = list(federate(running, Standing(start, strategy.init(start, running.spec))))
    assert all(not outcome.rejections for outcome in finished)
    spec, intervals = running.spec, [outcome.logged["interval_rounds"] for outcome in finished]
    for round in (3, 5):
        seldom = {group for group, interval in zip(spec.sizes, intervals[round - 2], strict=True) if interval == 2}
        assert seldom
        for client_id, names in runtime.plans[round - 1].upload.items():
            assert set(names) == {name for name in spec.shared if spec.tensors[name].group not in seldom}
            assert set(runtime.plans[round].download[client_id]) == set(names)
        unsent = [name for name in spec.shared if spec.tensors[name].group in seldom]
        for name in unsent:
            assert torch.equal(finished[round - 1].params[name], finished[round - 2].params[name])
        # Bytes by group, in both directions: what did not travel is not in the ledger.
        for transfer in finished[round - 1].transfers:
            if transfer.direction == "up":
                assert set(transfer.tensor_bytes).isdisjoint(seldom)
                assert transfer.tensor_bytes == {
                    group: 4 * sum(spec.tensors[name].numel for name in names)
                    for group, names in spec.groups.items()
                    if group not in seldom
                }
        assert finished[round - 1].synced_fraction == pytest.approx(
            1 - sum(spec.sizes[group] for group in seldom) / sum(spec.sizes.values())
        )
    # Eq. 9, relative to what it is with every group in every round
    cost = sum(size * int(n) for size, n in zip(spec.sizes.values(), finished[-1].state["num_syncs"], strict=True))
    assert sum(outcome.synced_fraction for outcome in finished) == pytest.approx(cost / sum(spec.sizes.values()))


# Whole runs.

WINDOWS = ("client.local_epochs=", "strategy.name=fedlama", "strategy.tau=2")


def run(folder: Path, *overrides: str, text: str | None = None) -> Result:
    config = write_small(folder) if text is None else write_small(folder, text=text)
    return Experiment.from_toml(config, (*WINDOWS, *overrides)).run(folder / "run")


def records(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in (result.path / "rounds.jsonl").read_text().splitlines()]


def test_a_run_evaluates_the_latest_values_and_marks_the_rounds_in_which_everything_was_averaged(tmp_path: Path):
    evaluated = []
    result = run(tmp_path, "strategy.phi=3", "strategy.num_rounds=8")
    lines = records(result)
    assert [line["round"] for line in lines if line["synced_fraction"] == 1.0] == [1, 2, 3, 6, 8]
    assert len({tuple(line["cohort"]) for line in lines[3:6]}) == 1
    assert all(len(line["interval_rounds"]) == len(result.assembly.spec.sizes) for line in lines)
    assert all(isinstance(interval, int) for line in lines for interval in line["interval_rounds"])
    assert set(lines[2]["interval_rounds"]) == {1, 3}

    # Round by round, the server's value of every tensor is what was evaluated.
    def look(outcome: object, _ledger: object) -> None:
        evaluated.append((outcome.evaluation, repeated.assembly.evaluate(outcome.params)))

    repeated = Experiment.from_toml(write_small(tmp_path), (*WINDOWS, "strategy.phi=3", "strategy.num_rounds=8"))
    repeated.run(tmp_path / "again", on_round=look)
    assert all(reported == evaluated_value for reported, evaluated_value in evaluated)
    assert [reported.measures["accuracy"] for reported, _ in evaluated] == [
        line["measures"]["accuracy"] for line in lines
    ]
    fractions = [line["synced_fraction"] for line in lines]
    assert result.summary["relative_cost"] == pytest.approx(sum(fractions) / 8)


def test_fedavg_with_phi_times_the_steps_costs_one_phi_th(tmp_path: Path):
    # Six times tau steps for every client, in 6 rounds or in 2 three times as long.
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    often = run(tmp_path / "1", "strategy.phi=1", "strategy.num_rounds=6")
    seldom = run(tmp_path / "2", "strategy.phi=1", "strategy.num_rounds=2", "strategy.tau=6")
    assert 3 * seldom.summary["uplink_bytes"] == often.summary["uplink_bytes"]
    assert 3 * seldom.summary["downlink_bytes"] == often.summary["downlink_bytes"]
    assert often.summary["relative_cost"] == seldom.summary["relative_cost"] == 1.0


def test_norms_that_stay_with_their_client_are_no_part_of_windows(tmp_path: Path):
    result = run(
        tmp_path, "strategy.name=fedlama-auto", "strategy.share=0.5", "strategy.phi=2", "strategy.num_rounds=4",
        "tuning.name=full", "model.batch_norm=local", text=CONVOLUTIONAL,
    )  # fmt: skip
    spec, site = result.assembly.spec, result.assembly.site
    assert spec.kept
    assert all(list(tensors) == list(spec.kept) for tensors in kept(site).values())
    assert adrift(site) == {}
    assert set(result.ledger.groups["up"]) == set(result.ledger.groups["down"]) == set(spec.sizes)
    # The kernels alone travel, every second round.
    assert result.ledger.groups["up"] == {group: 2 * 3 * 4 * size for group, size in spec.sizes.items()}
    for name in spec.kept:
        assert torch.equal(result.params[name], result.assembly.params[name])


def test_a_method_with_one_group_has_nothing_to_gain(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="fedelta"):
        result = run(tmp_path, "tuning.name=head", "strategy.num_rounds=2")
    assert "strategy 'fedlama' has nothing to gain: tuning method 'head' has only one group" in caplog.text
    assert "'classifier'" in caplog.text
    assert result.summary["rounds"] == 2


def test_several_groups_are_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="fedelta"):
        Experiment.from_toml(write_small(tmp_path), WINDOWS).assembly  # noqa: B018
    assert "nothing to gain" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.phi=0",), "`strategy.phi`"),
        (("strategy.tau=0",), "`strategy.tau`"),
        (("strategy.crossing=maybe",), "`strategy.crossing`"),
        (("client.local_epochs=2",), "`client.local_epochs` is 2, but a round of 'fedlama' is `strategy.tau` = 2"),
        (("client.local_steps=5",), "`client.local_steps` is 5, but a round of 'fedlama' is `strategy.tau` = 2"),
        (("client.local_steps=5",), "remove the key (`--set client.local_steps=`)"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, overrides: tuple[str, ...], message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(write_small(tmp_path), (*WINDOWS, *overrides))
    assert message in str(caught.value)


def test_local_steps_that_say_the_same_are_fine(tmp_path: Path):
    config = load_config(write_small(tmp_path), (*WINDOWS, "client.local_steps=2"))
    assert config.client.local_steps == config.strategy.local_steps == 2
    assert FedLamaAuto(tau=5, tolerance=1.0).local_steps == 5
