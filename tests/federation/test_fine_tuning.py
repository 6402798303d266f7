"""Personalisation: who is held out, how rows are divided, how a rate is selected, and what may move."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from tests.builders import assert_close, assert_same_bits, evaluated, start_of, tiny_backbone, tiny_data, tiny_engine
from torch import Tensor

from fedelta.catalog import Scope
from fedelta.data.augmentation import Augmentation
from fedelta.data.batches import Examples, FederatedData
from fedelta.engine.exits import ExitSettings
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import AdamW, Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.errors import ConfigError, RoundError
from fedelta.federation.fine_tuning import FineTuned, HeldOut, Personalized, _FineTuning, fine_tune, split_rows
from fedelta.federation.held_out import Personalization
from fedelta.federation.tiers import Tiers
from fedelta.models.hub import Backbone
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.tasks.labels import Labels
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import Combined
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.exits import owned_at
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.scopes import scopes_of

ACCUMULATOR = Combined(
    methods=(
        Accumulator(num_heads=2, mlp_width=8, head_width=6),
        Adapter(placement="parallel", shared=False, reduction_factor=4),
    )
)
CLIENT = ClientSettings(batch_size=4, lr=1.0, optimizer=AdamW(weight_decay=0.1))
ROWS = {2: torch.arange(0, 10), 5: torch.arange(10, 24), 7: torch.arange(24, 34)}
SETTINGS = Personalization(held_out=(2, 5, 7), lrs=(0.03, 0.01), local_epochs=2)


def bench(
    method: TuningMethod = ACCUMULATOR,
    settings: Personalization = SETTINGS,
    *,
    lanes: int = 4,
    client: ClientSettings = CLIENT,
    data: Examples | None = None,
    tiers: Tiers | None = None,
    augmentation: Augmentation | None = None,
    cache_bytes: int = 0,
) -> tuple[HeldOut, dict[Scope, frozenset[str]]]:
    """Three clients of a tiny model, and what they may train."""
    data = data or tiny_data(num_rows=34)
    engine, backbone = tiny_engine(
        method, data, lanes=lanes, client=settings.training(client), augmentation=augmentation, cache_bytes=cache_bytes
    )
    held_out = HeldOut(engine, federated(data), start_of(engine), seed=1, tiers=tiers)
    return held_out, scopes_of(backbone, engine.spec)


def federated(data: Examples) -> FederatedData:
    """Data whose only clients are those of `ROWS`, which are held out."""
    return FederatedData(data, data, ("a", "b", "c"), {}, ROWS)


def results(held_out: HeldOut, scopes: Mapping[Scope, frozenset[str]], settings: Personalization = SETTINGS):
    return {(result.scope, result.client_id): result for result in fine_tune(settings, held_out, scopes)}


def applied(method: TuningMethod, family: str = "vit") -> dict[Scope, frozenset[str]]:
    backbone = tiny_backbone(family)
    return scopes_of(backbone, method.apply(backbone, Lanes(1), stream(0)))


class Spy:
    """Stands in the place of an engine; writes down which rows were learned from and which were looked at."""

    def __init__(self, engine: LaneEngine, verdict: Mapping[float, tuple[float, float]] | None = None) -> None:
        self._engine, self._verdict = engine, verdict
        self.jobs: list[Job] = []
        self.evaluated: list[tuple[Params, Tensor]] = []
        self.lanes, self.is_augmented, self.exits = engine.lanes, engine.is_augmented, engine.exits
        self.task, self.evaluator = engine.task, self

    def train(self, jobs, lr, round=1):
        self.jobs += jobs
        for trained in self._engine.train(jobs, lr, round):
            # The tensors of a trial are its rate, so that `evaluate` knows whose turn it is.
            mark = {"rate": torch.tensor(trained.lr, dtype=torch.float64)}
            yield trained if self._verdict is None else replace(trained, kept=mark)

    def evaluate(self, params, data, rows, depth=None):
        self.evaluated.append((params, data.inputs.rows[rows]))
        if self._verdict is None:
            return self._engine.evaluator.evaluate(params, data, rows, depth)
        return evaluated(*self._verdict[float(params["rate"])]) if "rate" in params else evaluated(0.5, 1.0)


# How the rows of a client are divided


def test_parts_have_the_sizes_of_the_shares_and_cover_the_rows_once():
    # 14 rows: 0.7 * 14 = 9.8, so 10 to train on; 0.25 * 10 = 2.5, rounded up to 3 to select by; 4 to evaluate on.
    rows = torch.arange(100, 114)
    parts = split_rows(SETTINGS, rows, torch.tensor([0, 1] * 7), 3, seed=0)
    assert [len(part) for part in (parts.trial, parts.selection, parts.training, parts.evaluation)] == [7, 3, 10, 4]
    assert sorted(parts.training.tolist()) == sorted([*parts.trial.tolist(), *parts.selection.tolist()])
    assert sorted([*parts.training.tolist(), *parts.evaluation.tolist()]) == rows.tolist()


def test_parts_depend_on_the_seed_and_the_client():
    def evaluation(client: int, seed: int) -> list[int]:
        return split_rows(SETTINGS, torch.arange(60), torch.zeros(60).long(), client, seed).evaluation.tolist()

    assert evaluation(3, 0) == evaluation(3, 0)
    assert len({tuple(evaluation(client, seed)) for client in (3, 4) for seed in (0, 1)}) == 4


def test_each_class_keeps_its_share_in_each_part():
    # 20 rows of one class and 10 of another: 9 of 30 are evaluated on, 6 and 3 of them; of the 21 others 5 select
    # (0.25 * 21 = 5.25), of 14 and 7: 3.33 and 1.67, the one left over to the larger remainder.
    labels = torch.tensor([0] * 20 + [1] * 10)
    parts = split_rows(SETTINGS, torch.arange(30), labels, 0, seed=5)
    assert labels[parts.evaluation].bincount().tolist() == [6, 3]
    assert labels[parts.selection].bincount().tolist() == [3, 2]


def test_with_one_rate_nothing_is_given_up_for_selecting_it():
    parts = split_rows(Personalization(lrs=(0.1,)), torch.arange(10), torch.zeros(10).long(), 0, seed=0)
    assert (len(parts.trial), len(parts.selection), len(parts.evaluation)) == (7, 0, 3)


# What each scope trains


def test_scopes_of_an_accumulator_with_adapters():
    scopes = applied(ACCUMULATOR)
    token = "vit.layers.0.accumulator.token"
    assert scopes["token"] == {token}
    # Everything but the accumulator, which is what remains when there is no accumulator at all, without the head.
    alone = applied(Adapter(placement="parallel", shared=False, reduction_factor=4))["adapters"]
    assert len(scopes["adapters"]) == len(alone)
    accumulator = applied(ACCUMULATOR.methods[0])
    assert scopes["all"] - scopes["adapters"] == accumulator["all"]
    assert accumulator.keys() == {"all", "token"}
    assert "vit.layers.1.position" in accumulator["all"]


@pytest.mark.parametrize("family", ["vit", "distilbert"])
def test_adapters_of_a_model_without_exits_are_all_but_its_head(family: str):
    scopes, head = applied(Lora(r=2), family), applied(Head(), family)
    assert scopes.keys() == {"all", "adapters"}
    assert scopes["all"] - scopes["adapters"] == head["all"]
    assert head.keys() == {"all"}


def test_exit_heads_are_no_adapters():
    scopes = applied(Combined(methods=(ExitHeads(), Lora(r=2))))
    assert scopes["all"] - scopes["adapters"] == applied(ExitHeads())["all"]
    assert all(name.endswith(("lora_A", "lora_B")) for name in scopes["adapters"])


def test_a_scope_that_fits_nothing_is_refused_and_by_default_left_out():
    available = applied(Lora(r=2))
    assert list(Personalization().scopes(available, "lora")) == ["all", "adapters"]
    assert list(Personalization(tune=("adapters",)).scopes(available, "lora")) == ["adapters"]
    with pytest.raises(
        ConfigError, match=r"`personalization.tune` has 'token', of which tuning method 'lora'"
    ) as error:
        Personalization(tune=("all", "token")).scopes(available, "lora")
    assert "it has 'all', 'adapters'; 'token' needs an accumulator" in str(error.value.hint)
    # All that is trained are adapters: one scope of it is enough.
    assert list(Personalization().scopes(applied(Lora(r=2, train_head=False)), "lora")) == ["all"]


# What moves


@pytest.mark.parametrize("optimizer", [AdamW(weight_decay=0.1), Sgd(momentum=0.9, nesterov=True, weight_decay=0.1)])
def test_a_scope_moves_its_own_tensors_and_no_bit_of_the_others(optimizer):
    held_out, scopes = bench(client=CLIENT.model_copy(update={"optimizer": optimizer}))
    for (scope, _), result in results(held_out, scopes).items():
        moved = {name for name, tensor in result.after.params.items() if not torch.equal(tensor, held_out.params[name])}
        assert moved == scopes[scope]


def test_statistics_of_norms_stay_outside_of_the_scope():
    data = tiny_data("small-resnet", num_rows=12)
    engine, _ = tiny_engine(Full(), data, family="small-resnet", client=CLIENT)
    anchor, name = start_of(engine), engine.spec.statistics[0]
    moving = frozenset(engine.spec.names) - {name}
    job = Job(0, torch.arange(12), anchor, repeat(stream(0)), stream(1), moving=moving)
    (trained,) = engine.train([job], 0.01)
    assert {tensor_name for tensor_name, delta in trained.delta.items() if not delta.any()} == {name}


def test_what_one_client_may_move_is_forgotten_with_its_lane():
    # One lane after the other in the same place, and a lane that moves down when another is done.
    held_out, scopes = bench(lanes=2)
    engine, names = held_out.engine, scopes["token"]
    rows = {0: torch.arange(4), 1: torch.arange(4, 16), 2: torch.arange(16, 28)}
    moving: dict[int, Collection[str] | None] = {0: None, 1: names, 2: None}
    jobs = [
        Job(i, rows[i], held_out.params, repeat(stream(i)), stream(i), exits=stream(i), moving=moving[i]) for i in rows
    ]
    moved = {
        trained.client_id: {name for name, delta in trained.delta.items() if delta.any()}
        for trained in engine.train(jobs, 0.01)
    }
    assert moved[1] == names
    assert len(moved[0]) == len(moved[2]) > len(names)


def test_a_rate_of_its_own_is_the_rate_of_the_round_for_that_client():
    for optimizer in (Sgd(), AdamW()):
        client = CLIENT.model_copy(update={"optimizer": optimizer})
        deltas = {}
        for in_job in (True, False):
            held_out, _ = bench(Lora(r=2), client=client)
            for lr in (0.1, 0.02):
                job = Job(0, ROWS[2], held_out.params, repeat(stream(0)), stream(1), lr=lr if in_job else None)
                neighbour = replace(job, client_id=1, order=repeat(stream(2)), lr=0.5) if in_job else None
                trained = {
                    result.client_id: result
                    for result in held_out.engine.train([job, *([neighbour] if neighbour else [])], lr=lr)
                }
                deltas[in_job, lr] = trained[0].delta
                assert trained[0].lr == lr
        for lr in (0.1, 0.02):
            assert_close(deltas[True, lr], deltas[False, lr], rtol=1e-3, atol=1e-6)


# The algorithm


def test_only_the_training_part_is_learned_from_and_no_choice_looks_at_the_evaluation_part():
    held_out, scopes = bench()
    spy = Spy(held_out.engine)
    personalized = results(replace(held_out, engine=spy), {"all": scopes["all"]})
    parts = {
        client: split_rows(SETTINGS, rows, held_out.data.train.targets.values[rows], client, 1)
        for client, rows in ROWS.items()
    }
    for job in spy.jobs:
        client_parts = parts[job.client_id]
        assert torch.equal(job.rows, client_parts.training) or torch.equal(job.rows, client_parts.trial)
        assert not set(job.rows.tolist()) & set(client_parts.evaluation.tolist())
    for client, client_parts in parts.items():
        learned = [job for job in spy.jobs if job.client_id == client]
        # Each rate on the rows to try, then the selected one on all.
        assert [len(job.rows) for job in learned] == [len(client_parts.trial)] * 2 + [len(client_parts.training)]
        assert learned[-1].lr == personalized["all", client].after.lr
        looked_at = [
            set(rows.tolist()) for _, rows in spy.evaluated if set(rows.tolist()) <= set(ROWS[client].tolist())
        ]
        selection, evaluation = set(client_parts.selection.tolist()), set(client_parts.evaluation.tolist())
        # The server's model first, then the trials, then the client's own.
        assert looked_at == [evaluation, selection, selection, evaluation]
        assert personalized["all", client].after.num_train == len(client_parts.training)
        assert personalized["all", client].num_eval == len(evaluation)


@pytest.mark.parametrize(
    ("verdict", "best"),
    [
        ({0.3: (0.5, 9.0), 0.1: (0.4, 0.1), 0.2: (0.4, 0.1)}, 0.3),  # accuracy first
        ({0.3: (0.5, 2.0), 0.1: (0.5, 2.1), 0.2: (0.4, 0.1)}, 0.3),  # then the lower loss
        ({0.3: (0.5, 2.0), 0.1: (0.1, 0.1), 0.2: (0.5, 2.0)}, 0.2),  # then the smaller rate
        ({0.3: (0.9, float("nan")), 0.1: (0.1, 0.1), 0.2: (0.0, 0.0)}, 0.1),  # what diverged is no choice
    ],
)
def test_the_best_rate_has_the_highest_accuracy_then_the_lower_loss_then_is_the_smaller(verdict, best: float):
    settings = SETTINGS.model_copy(update={"lrs": tuple(verdict)})
    held_out, _ = bench(Lora(r=2), settings)
    spy = Spy(held_out.engine, verdict)
    personalized = results(replace(held_out, engine=spy), {"all": frozenset(held_out.params)}, settings)
    assert {result.after.lr for result in personalized.values()} == {best}


def test_with_exits_the_rate_is_selected_by_the_mean_over_those_that_learn():
    settings = SETTINGS.model_copy(update={"lrs": (0.1, 0.2)})
    held_out, _ = bench(settings=settings)

    class Exits(Spy):
        def evaluate(self, params, data, rows, depth=None):
            if "rate" not in params:
                return evaluated(0.5, 1.0, (0.5, 0.5))
            by_exit = {0.1: (0.1, 0.6), 0.2: (0.5, 0.5)}[float(params["rate"])]
            return evaluated(by_exit[-1], 1.0, by_exit)

    for train, best in (("sum", 0.2), ("deepest", 0.1)):
        spy = Exits(held_out.engine, {})
        spy.exits = ExitSettings(train=train)
        personalized = results(replace(held_out, engine=spy), {"all": frozenset(held_out.params)}, settings)
        assert {result.after.lr for result in personalized.values()} == {best}


def test_a_client_that_diverges_at_every_rate_is_named():
    settings = SETTINGS.model_copy(update={"lrs": (1e30, 1e32)})
    held_out, scopes = bench(Full(), settings, lanes=1, client=CLIENT.model_copy(update={"optimizer": Sgd()}))
    with pytest.raises(RoundError, match=r"client 2: fine-tuning ends .* rate 1e\+30, 1e\+32"):
        results(held_out, scopes, settings)


def test_fine_tuning_learns_what_a_client_has():
    # Every client has one class, which the server has never seen.
    data = tiny_data(num_rows=34)
    for label, rows in enumerate(ROWS.values()):
        data.targets.values[rows] = label
    settings = SETTINGS.model_copy(update={"lrs": (0.001, 0.1), "local_epochs": 6})
    held_out, scopes = bench(Lora(r=2), settings, data=data)
    personalized = results(held_out, {"all": scopes["all"]}, settings)
    assert all(result.after.evaluation.measures["accuracy"] == 1.0 for result in personalized.values())
    assert sum(result.before.measures["accuracy"] for result in personalized.values()) < 2


def without_params(result: Personalized) -> FineTuned:
    return replace(result.after, params={})


def same(left: Mapping[tuple[Scope, int], Personalized], right: Mapping[tuple[Scope, int], Personalized]) -> None:
    assert left.keys() == right.keys()
    for key, result in left.items():
        assert_same_bits(result.after.params, right[key].after.params)
        assert replace(result, after=without_params(result)) == replace(right[key], after=without_params(right[key]))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    original, repeated, reseeded = (results(replace(bench()[0], seed=seed), bench()[1]) for seed in (1, 1, 2))
    same(original, repeated)
    assert any(
        not torch.equal(result.after.params[n], reseeded[k].after.params[n])
        for k, result in original.items()
        for n in result.after.params
    )


@pytest.mark.parametrize("method", [ACCUMULATOR, Lora(r=2)], ids=["accumulator", "lora"])
def test_the_number_of_lanes_changes_results_within_float_tolerance_only(method: TuningMethod):
    in_one_lane, in_six_lanes = (results(*bench(method, lanes=lanes)) for lanes in (1, 6))
    assert in_one_lane.keys() == in_six_lanes.keys()
    for key, result in in_one_lane.items():
        assert result.after.lr == in_six_lanes[key].after.lr
        assert_close(result.after.params, in_six_lanes[key].after.params, rtol=1e-3, atol=1e-4)


def test_the_prefix_cache_changes_nothing():
    plain, cached = (results(*bench(Head(), cache_bytes=size)) for size in (0, 2**20))
    for key, result in plain.items():
        assert_close(result.after.params, cached[key].after.params, rtol=1e-4, atol=1e-5)


def test_augmented_rows_are_the_same_for_every_rate_whatever_the_lanes():
    # Batches of 3: client 2 is done first, and its lane would go to a second rate of client 5 in an epoch of the first.
    augmentation, client = Augmentation(crop_padding=1, flip=True), CLIENT.model_copy(update={"batch_size": 3})
    jobs = {}
    for lanes in (1, 3):
        held_out, scopes = bench(Lora(r=2), lanes=lanes, augmentation=augmentation, client=client)
        tuning = _FineTuning(SETTINGS, held_out)
        jobs[lanes] = tuning.train(
            [
                tuning.job("try", client_id, tuning.parts[client_id].trial, lr, scopes["all"])
                for client_id in (2, 5)
                for lr in SETTINGS.lrs
            ]
        )
    for key, params in jobs[1].items():
        assert_close(params, jobs[3][key], rtol=1e-3, atol=1e-4)


# Clients of different depth


def tiers_of(backbone: Backbone, held_out: HeldOut, depths: Mapping[int, int]) -> Tiers:
    owned = {depth: owned_at(backbone, held_out.engine.spec, depth, range(1, depth + 1)) for depth in (1, 2)}
    return Tiers(depths, owned)


def test_a_shallow_client_answers_at_its_exits_and_keeps_what_is_above():
    data = tiny_data(num_rows=34)
    engine, backbone = tiny_engine(ACCUMULATOR, data, lanes=4, client=SETTINGS.training(CLIENT))
    held_out = HeldOut(engine, federated(data), start_of(engine), seed=1)
    held_out = replace(held_out, tiers=tiers_of(backbone, held_out, {2: 1, 5: 2, 7: 1}))
    personalized = results(held_out, {"all": scopes_of(backbone, engine.spec)["all"]})
    exits = {client: len(result.after.evaluation.by_exit["accuracy"]) for (_, client), result in personalized.items()}
    assert exits == {2: 1, 5: 2, 7: 1}
    for (_, client), result in personalized.items():
        moved = {name for name, tensor in result.after.params.items() if not torch.equal(tensor, held_out.params[name])}
        above = {name for name in result.after.params if name.startswith("vit.layers.1.")}
        assert bool(moved & above) is (client == 5)


def test_evaluation_of_some_rows_to_a_depth_is_that_of_a_set_of_these_rows():
    data = tiny_data(num_rows=20)
    engine, _ = tiny_engine(ACCUMULATOR, data, client=CLIENT)
    rows = torch.tensor([3, 4, 11, 19])
    inputs = replace(data.inputs, tensors={name: tensor[rows] for name, tensor in data.inputs.tensors.items()})
    alone = engine.evaluator.evaluate(start_of(engine), Examples(inputs, Labels(data.targets.values[rows])))
    some = engine.evaluator.evaluate(start_of(engine), data, rows)
    shallow = engine.evaluator.evaluate(start_of(engine), data, rows, depth=1)
    assert some == alone
    assert shallow.by_exit["accuracy"] == some.by_exit["accuracy"][:1]
    assert shallow.measures["accuracy"] == some.by_exit["accuracy"][0]


def test_clients_train_at_the_exits_of_the_run():
    settings = SETTINGS.model_copy(update={"tune": ("all",)})
    params_of = {}
    for train in ("deepest", "sum"):
        held_out, scopes = bench(settings=settings)
        held_out.engine.exits = ExitSettings(train=train)
        params_of[train] = results(held_out, {"all": scopes["all"]})["all", 5].after.params
    assert any(not torch.equal(params_of["deepest"][name], params_of["sum"][name]) for name in params_of["sum"])
