"""Which contracts there are for what, and how those that are broken are told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from fedelta.aggregation.means import Weighted
from fedelta.catalog import MEANS
from fedelta.data.label_skew import Dirichlet
from fedelta.data.partition import Iid
from fedelta.engine.optimizers import Sgd
from fedelta.errors import ContractError, InputError, PluginError
from fedelta.settings import Settings
from fedelta.strategies.fedavg import FedAvg
from fedelta.testing import check, contracts
from fedelta.tuning.combined import Combined
from fedelta.tuning.head import Head

FILE = """
from typing import ClassVar, Literal

from torch import Tensor

from fedelta.settings import Settings


class Half(Settings):
    name: Literal["half-file"] = "half-file"

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        grads_KP.mul_(0.5)


class Wild(Settings):
    name: Literal["wild-file"] = "wild-file"

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        raise IndexError("lane 7")
"""


def test_a_contract_is_shown_as_what_is_tried_and_what_has_to_hold():
    contract = contracts(Head(), models=["vit"])[-1]
    assert str(contract) == "Head 'head' on vit: in half precision a step goes nearly the same way"
    assert len({str(item) for item in contracts(FedAvg)}) == len(contracts(FedAvg))


def test_every_class_of_a_plugin_file_has_its_contracts(tmp_path: Path):
    (tmp_path / "rules.py").write_text(FILE)
    subjects = {contract.subject for contract in contracts(tmp_path / "rules.py")}
    assert subjects == {"Half 'half-file'", "Wild 'wild-file'"}


def test_all_broken_contracts_are_listed_with_the_line_of_the_plugin(tmp_path: Path):
    path = tmp_path / "rules.py"
    path.write_text(FILE)
    with pytest.raises(ContractError) as caught:
        check(str(path))
    assert caught.value.message.startswith("5 of 12 contracts are broken:\n  - Wild 'wild-file': it changes gradients")
    # One line: all of them end in the same way.
    assert caught.value.message.count("\n") == 1
    assert "It ends with IndexError: lane 7 (rules.py, line 20)." in caught.value.message


def test_a_contract_that_is_broken_is_an_assertion_that_failed():
    assert issubclass(ContractError, AssertionError)


def test_a_strategy_class_is_tried_with_every_mean_and_a_value_with_its_own():
    means = {contract.subject.split("mean ")[-1].split(" on ")[0] for contract in contracts(FedAvg)}
    assert means == {f"{name!r}" for name in MEANS if name in MEANS.built_in}
    assert not any("median" in str(contract) for contract in contracts(FedAvg()))


def test_a_partitioner_class_is_made_with_what_it_cannot_do_without():
    assert {contract.subject for contract in contracts(Dirichlet)} == {"Dirichlet 'dirichlet'"}
    check(Iid)


class _Nameless:
    """No settings."""


class Unknown(Settings):
    name: Literal["unknown"] = "unknown"


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (_Nameless, InputError, "_Nameless is not derived from `fedelta.Settings`"),
        (Unknown, InputError, "Unknown is of no kind that has contracts, expected one with `apply` and `merge`, or"),
        (Sgd, InputError, "Sgd is of no kind that has contracts"),
        (Combined, InputError, r"(?s)Combined cannot be made with its defaults: .*hint: pass a value of the class"),
        ("nowhere.py", PluginError, "nowhere.py' cannot be read"),
    ],
)
def test_what_has_no_contracts_is_refused(what: object, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        contracts(what)


def test_what_keeps_its_contracts_is_passed_in_silence(capfd: pytest.CaptureFixture[str]):
    check(Weighted)
    assert capfd.readouterr() == ("", "")
