"""A plug-in that breaks its contract while it runs: an error that names it and what it broke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.plugins.conftest import STRANGER
from tests.small import SMALL
from torch import Generator, Tensor

import fedelta
from fedelta.aggregation.means import Weighted
from fedelta.assembly.run import Assembly, assemble
from fedelta.codecs.base import Packed
from fedelta.codecs.cast import Cast
from fedelta.config import parse_config, read_table
from fedelta.data.division import divide
from fedelta.data.partition import Iid
from fedelta.engine.optimizers import Constant
from fedelta.engine.work import ClientSettings
from fedelta.errors import FedeltaError, PluginError
from fedelta.federation.base import Standing
from fedelta.federation.contract import started
from fedelta.federation.rounds import federate
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.plugins import blame, suspect
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State
from fedelta.strategies.fedavg import FedAvg
from fedelta.tasks.base import Sums
from fedelta.tasks.classification import Classification
from fedelta.tasks.contract import answers_of, losses_of, sums_of, targets_of, values_of
from fedelta.tuning.contract import applied
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes

CHANGES: dict[str, Any] = {
    "other names": (lambda params: {"w": torch.zeros(1)}, r"lacks `.*` of the params; and 1 more"),
    "another name": (
        lambda params: params | {"w": torch.zeros(1)},
        "has `w` in the params, which was not there before",
    ),
    "shapes": (
        lambda params: {name: tensor.unsqueeze(0) for name, tensor in params.items()},
        r"has float32 \(1, .*expected float32",
    ),
    "types": (
        lambda params: {name: tensor.double() for name, tensor in params.items()},
        r"has float64 \(.* of the params, expected float32",
    ),
    "NaN": (
        lambda params: {name: tensor * torch.nan for name, tensor in params.items()},
        "holds NaN or infinity in `.*`, although all deltas are finite",
    ),
    "no tensors": (lambda params: dict.fromkeys(params, 1.0), "has float as `.*` of the params, expected a tensor"),
    "nothing": (lambda params: None, r"is NoneType, expected `\(params, state\)`"),
}


class Broken(FedAvg):
    """FedAvg whose params are changed once more."""

    name: Literal["broken"] = "broken"
    how: str = "nothing"

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        after = CHANGES[self.how][0](params)
        return after if after is None else (after, state)


class Adrift(FedAvg):
    """FedAvg that asks for what there is not."""

    name: Literal["adrift"] = "adrift"
    asks: tuple[str, ...] = ("w",)
    clients: tuple[int, ...] = (0, 1)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        names = dict.fromkeys(self.clients, self.asks or spec.shared)
        return RoundPlan(round, names, names, len(client_ids))


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    path = tmp_path_factory.mktemp("broken") / "small.toml"
    path.write_text(SMALL)
    return assemble(parse_config(read_table(path), ["tuning.name=head"]))


def one_round(assembly: Assembly, strategy: FedAvg) -> None:
    federation = replace(assembly.federation, strategy=strategy, has_plugin=True)
    next(federate(federation, Standing(assembly.params, strategy.init(assembly.params, assembly.spec))))


@pytest.mark.parametrize("how", CHANGES)
def test_an_update_that_returns_something_else_is_named(assembly: Assembly, how: str):
    fedelta.register(Broken)
    with pytest.raises(
        PluginError, match=f"round 1, strategy 'broken' of plug-in '.*Broken': what `update` returned {CHANGES[how][1]}"
    ):
        one_round(assembly, Broken(how=how, clients_per_round=3))


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (Adrift(), "names the tensor 'w', expected names of the specification or of the state"),
        (Adrift(asks=(), clients=(0, 77)), "asks client 77, expected clients of the federation"),
        (Adrift(asks=(), clients=()), "asks clients .* expected the same and not none"),
    ],
)
def test_a_plan_for_what_there_is_not_is_named(assembly: Assembly, strategy: Adrift, problem: str):
    fedelta.register(Adrift)
    with pytest.raises(PluginError, match=f"round 1, strategy 'adrift' of plug-in .* what `plan` returned {problem}"):
        one_round(assembly, strategy)


class Total:
    """A running mean that comes to something else."""

    def __init__(self, result: object) -> None:
        self.result = result

    def add(self, update: object) -> None:
        pass

    def finish(self, generator: Generator) -> Any:
        return self.result


class Odd(Weighted):
    """A mean that comes to a tensor of another name."""

    name: Literal["odd"] = "odd"
    is_empty: bool = False

    def start(self, spec: ParamSpec) -> Any:
        return Total({} if self.is_empty else {"w": torch.zeros(1)})


@pytest.mark.parametrize(
    ("is_empty", "problem"),
    [(False, r"has float32 \(1,\) as `w`"), (True, r"lacks \d+ of \d+ tensors that clients sent, first `")],
)
def test_a_mean_of_other_tensors_is_named(assembly: Assembly, is_empty: bool, problem: str):
    fedelta.register(Odd)
    with pytest.raises(PluginError, match=f"round 1, mean 'odd' of .* `finish` returned {problem}"):
        one_round(assembly, FedAvg(mean=Odd(is_empty=is_empty), clients_per_round=3))


class Part(Head):
    """Head tuning that describes something else."""

    name: Literal["part"] = "part"
    how: str = "nothing"

    def apply(self, backbone: Any, lanes: Lanes, generator: Generator) -> ParamSpec:
        spec = super().apply(backbone, lanes, generator)
        first, *_ = spec.tensors
        changes: dict[str, Any] = {
            "nothing": None,
            "empty": ParamSpec({}),
            "name": ParamSpec({"w": TensorSpec((1,), "w")}),
            "shape": ParamSpec({first: TensorSpec((7,), "w")}),
        }
        return changes[self.how]


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("nothing", "`apply` returned NoneType, expected a `ParamSpec`"),
        ("empty", "it has no tensors"),
        ("name", "`w` is no parameter of it"),
        ("shape", r"has shape \(2, .* in it, expected \(2, 7\) or \(7,\)"),
    ],
)
def test_a_specification_that_is_not_that_of_the_model_is_named(how: str, problem: str):
    from tests.builders import tiny_backbone

    fedelta.register(Part)
    with pytest.raises(PluginError, match=f"tuning method 'part' of plug-in .*{problem}") as caught:
        applied(Part(how=how), tiny_backbone("vit"), Lanes(2), torch.Generator())
    assert "return specification(backbone, tensors)" in (caught.value.hint or "")


class Loss(Classification):
    """Classification with another loss."""

    name: Literal["loss"] = "loss"
    how: str = "mean"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().losses(outputs, targets)
        return {"mean": losses.mean(), "detached": losses.detach(), "number": 1.0}[self.how]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("mean", r"a tensor \(\), expected a loss for each of 3 rows, \(3,\)"),
        ("detached", r"a tensor \(3,\) without a gradient"),
        ("number", "float, expected"),
    ],
)
def test_losses_of_another_shape_are_named(how: str, problem: str):
    fedelta.register(Loss)
    outputs = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(PluginError, match=f"task 'loss' of plug-in .*: `losses` returned {problem}"):
        losses_of(Loss(how=how), outputs, torch.tensor([0, 1, 0]))


class Mute(Classification):
    """Classification whose functions return what they are told."""

    name: Literal["mute"] = "mute"
    result: Any = None

    def targets(self, train: Any, test: Any) -> Any:
        return self.result

    def sums(self, outputs: Tensor, targets: Tensor) -> Any:
        return self.result

    def values(self, sums: Sums) -> Any:
        return self.result

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("result", "call", "problem"),
    [
        (None, lambda task: targets_of(task, None, None), "`targets` returned NoneType, expected a `ReadTargets`"),
        (
            1.0,
            lambda task: sums_of(task, torch.zeros(2, 2), torch.zeros(2)),
            "`sums` returned float, expected a `Sums`",
        ),
        (
            Sums({"accuracy": (torch.zeros(2), 2)}),
            lambda task: sums_of(task, torch.zeros(2, 2), torch.zeros(2)),
            "expected a number and its weight by name",
        ),
        (None, lambda task: values_of(task, Sums()), "`values` returned None, expected numbers by name"),
        ({"accuracy": 1.0}, lambda task: values_of(task, Sums()), "`accuracy` and `loss_nats` among them"),
        ({"accuracy": "1", "loss_nats": 1.0}, lambda task: values_of(task, Sums()), "expected numbers by name"),
        (
            {"accuracy": 1.0, "loss_nats": 1.0, "luck": 1.0},
            lambda task: values_of(task, Sums()),
            "returned a measure 'luck', expected those in `measured`",
        ),
        (None, lambda task: answers_of(task, torch.zeros(2, 2), (), None), "`answers` returned NoneType"),
        ([1], lambda task: answers_of(task, torch.zeros(2, 2), (), None), "returned 1 answers, expected a list"),
    ],
)
def test_a_result_of_a_task_that_breaks_its_protocol_is_named(result: Any, call: Any, problem: str):
    fedelta.register(Mute)
    with pytest.raises(PluginError) as caught:
        call(Mute(result=result))
    assert caught.value.message.startswith("task 'mute' of plug-in ")
    assert problem in caught.value.message


class Wild(Constant):
    """A schedule without numbers."""

    name: Literal["wild"] = "wild"  # type: ignore[assignment]
    value: Any = None

    def factor(self, round: int, num_rounds: int) -> float:
        return self.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("value", [None, "1", float("nan")])
def test_a_factor_that_is_no_number_is_named(value: object):
    fedelta.register(Wild)
    client = ClientSettings(schedule=Wild.model_construct(value=value))
    with pytest.raises(PluginError, match=r"schedule 'wild' of plug-in .*: `factor` returned .*, expected a finite"):
        client.lr_in(1, 2)


class Stateful(FedAvg):
    """FedAvg with a state that is none."""

    name: Literal["stateful"] = "stateful"  # type: ignore[assignment]
    state: Any = None

    def init(self, params: Params, spec: ParamSpec) -> State:
        return self.state  # type: ignore[no-any-return]


@pytest.mark.parametrize(("state", "problem"), [(None, "NoneType"), ({"step": 1.0}, "float as 'step'")])
def test_a_first_state_that_is_none_is_named(state: object, problem: str):
    fedelta.register(Stateful)
    with pytest.raises(PluginError, match=f"strategy 'stateful' of plug-in .*: `init` returned {problem}, expected"):
        started(Stateful(state=state), {}, ParamSpec({}))


class Texts(Cast):
    """A codec that writes and reads something else."""

    name: Literal["texts"] = "texts"  # type: ignore[assignment]

    def pack(self, name: str, tensor: Tensor, seed: int) -> Packed:
        return "numbers"  # type: ignore[return-value]


def test_a_codec_that_writes_no_bytes_is_named(assembly: Assembly):
    from fedelta.codecs.wire import encode

    fedelta.register(Texts)
    with pytest.raises(PluginError, match=r"codec 'texts' of plug-in .*: `pack` returned str for `.*`, expected bytes"):
        encode(assembly.params, assembly.spec, Texts())


class Uneven(Iid):
    """A partitioner that makes what it is told."""

    name: Literal["uneven"] = "uneven"
    rows: dict[int, list[int]]

    def divide(self, labels: Tensor, client_ids: Any, seed: int) -> dict[int, Tensor]:
        return {client: torch.tensor(rows, dtype=torch.int64) for client, rows in self.rows.items()}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({}, r"its clients are \[\], expected 0, 1, 2"),
        ({1: [0]}, r"its clients are \[1\], expected 0, 1, 2"),
        ({0: [0], 1: []}, "client 1 has no rows"),
        ({0: [1, 0]}, "rows of client 0 are not ascending numbers from 0 to 3"),
        ({0: [0, 4]}, "rows of client 0 are not ascending numbers from 0 to 3"),
        ({0: [0, 1], 1: [1, 2]}, "1 rows belong to more than one client"),
    ],
)
def test_a_partitioner_that_makes_no_division_is_named(rows: dict[int, list[int]], problem: str):
    fedelta.register(Uneven)
    with pytest.raises(PluginError, match=f"partitioner 'uneven' of plug-in .* made no division: .*{problem}"):
        divide(Uneven(num_clients=1, rows=rows), torch.zeros(4, dtype=torch.int64), None, seed=0)


class Listing(Iid):
    """A partitioner that changes the labels and returns a list."""

    name: Literal["listing"] = "listing"  # type: ignore[assignment]

    def divide(self, labels: Tensor, client_ids: Any, seed: int) -> Any:
        labels.zero_()
        return list(torch.arange(len(labels)).tensor_split(self.num_clients))


def test_a_partitioner_that_returns_a_list_is_named_and_cannot_change_the_labels():
    fedelta.register(Listing)
    labels = torch.tensor([1, 2])
    with pytest.raises(PluginError, match="made no division: it is list, expected a dictionary"):
        divide(Listing(num_clients=2), labels, None, seed=0)
    assert labels.tolist() == [1, 2]


def test_a_mistake_in_a_registered_class_is_blamed_on_it():
    fedelta.register(Stateful)
    blamed = None
    try:
        _ = {}[Stateful().name]
    except KeyError as error:
        blamed = blame(error)
    assert blamed is not None
    assert blamed.message.startswith(f"plug-in '{__name__}.Stateful' failed in `test_a_mistake_in_a_registered_")


def test_an_error_that_nothing_explains_names_the_plugins_in_use():
    error = AttributeError("'NoneType' object has no attribute 'add'")
    assert suspect(error) is None  # without plug-ins the traceback is what counts
    fedelta.load_plugin(STRANGER)
    suspected = suspect(error)
    assert suspected is not None
    assert "AttributeError: 'NoneType' object has no attribute 'add'" in suspected.message
    assert "with plug-in 'stranger.py' in use" in suspected.message
    assert suspect(FedeltaError("known")) is None


def test_a_mistake_in_the_code_of_a_plugin_is_an_error_with_its_line(fedelta: Any, tmp_path: Path):
    (tmp_path / "small.toml").write_text(SMALL)
    step = 'float(state["factor"])'
    lines = STRANGER.read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if step in text)
    (tmp_path / "mine.py").write_text(STRANGER.read_text().replace(step, 'float(state["faktor"])'))
    given = ("--plugin", tmp_path / "mine.py", "--set", "strategy.name=damped")
    for command in (
        ("run", tmp_path / "small.toml", "--out", tmp_path / "run", "--quiet"),
        ("check", tmp_path / "small.toml"),
    ):
        code, _, err = fedelta(*command, *given)
        assert code == 2
        assert f"error: plug-in 'mine.py' failed in `update`, line {line}: KeyError: 'faktor'" in err
        assert "Traceback" not in err


def test_a_plugin_cannot_end_a_command(fedelta: Any, tmp_path: Path):
    (tmp_path / "small.toml").write_text(SMALL)
    content = STRANGER.read_text().replace('"""A step by the factor, which shrinks."""', "raise SystemExit(0)")
    (tmp_path / "mine.py").write_text(content)
    given = ("--plugin", tmp_path / "mine.py", "--set", "strategy.name=damped")
    code, out, err = fedelta("run", tmp_path / "small.toml", "--out", tmp_path / "run", "--quiet", *given)
    assert (code, out) == (2, "")
    assert "error: plug-in 'mine.py' failed in `update`, line " in err
    assert "SystemExit: 0" in err
