"""`check` runs round 1 on a few rows: what fails in a run fails there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.builders import ReadyInputs
from tests.small import CONVOLUTIONAL, SMALL, write_small
from torch import Tensor, nn

from fedelta.assembly.rehearsal import rehearse
from fedelta.assembly.run import Assembly, assemble
from fedelta.config import load_config
from fedelta.data.batches import Examples, FederatedData
from fedelta.errors import FedeltaError, ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.tasks.labels import Labels

WIDTH, CLASSES = 4, ("a", "b", "c")


class Net(nn.Module):
    """Tokens through an embedding of 10 positions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(10, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, len(CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = self.positions(torch.arange(int(attention_mask.sum(1).max())))
        return self.head((self.layer(places).sum(0) * attention_mask.float().mean(1, keepdim=True)).tanh())


class Remembers(Net):
    """Keeps what it has computed once, with its gradient."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if "kept" not in vars(self) or not torch.is_grad_enabled():
            self.kept = self.layer(self.positions.weight).mean(0)
        return self.head(self.kept * attention_mask.float().mean(1, keepdim=True))


class FailsInEvaluation(Net):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if len(input_ids) > 8:
            raise NotImplementedError("batches of this size")
        return super().forward(input_ids, attention_mask)


class PerToken(Net):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        result = super().forward(input_ids, attention_mask)
        return result[:, None].expand(-1, 5, -1)


class TwoOutputs(Net):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, attention_mask)[:, :2]


class Unsized(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(WIDTH)


def texts(lengths: list[int]) -> Examples:
    lengths_N1 = torch.tensor(lengths)[:, None]
    mask = (torch.arange(max(lengths)) < lengths_N1).long()
    return Examples(
        ReadyInputs({"input_ids": mask, "attention_mask": mask}), Labels(torch.arange(len(lengths)) % len(CLASSES))
    )


def assembled(
    tmp_path: Path, module: nn.Module, train: list[int], test: list[int], overrides: tuple[str, ...] = ()
) -> Assembly:
    partition = dict(enumerate(torch.arange(len(train)).split(8)))
    data = FederatedData(texts(train), texts(test), CLASSES, partition)
    config = load_config(
        write_small(tmp_path),
        ["tuning.name=bias", "tuning.r=", "runtime.cache_mib=0", f"partition.num_clients={len(partition)}", *overrides],
    )
    return assemble(config, backbone=Backbone(module.eval(), Anatomy(("head",))), data=data)


SHORT = [3, 4, 5] * 8


def test_a_sound_model_passes(tmp_path):
    outcome = rehearse(assembled(tmp_path, Net(), SHORT, SHORT))
    assert (outcome.round, len(outcome.cohort), outcome.rejections) == (1, 3, ())
    assert outcome.evaluation is not None


@pytest.mark.parametrize(
    ("module", "train", "test", "problem"),
    [
        (Net, [*SHORT[:-1], 11], SHORT, r"Net fails on input_ids \[\d+, 11\].*IndexError: index out of range"),
        (Net, SHORT, [*SHORT[:-1], 11], r"Net fails on input_ids \[\d+, 11\].*IndexError: index out of range"),
        (
            Remembers,
            SHORT,
            SHORT,
            r"the backward pass of Remembers fails .* second time|would mix|other outputs",
        ),
        (FailsInEvaluation, SHORT, SHORT, "FailsInEvaluation fails .*: NotImplementedError: batches of this size"),
        (PerToken, SHORT, SHORT, r"the loss of PerToken fails on outputs \[.*, 5, 3\], targets"),
        (TwoOutputs, SHORT, SHORT, "TwoOutputs gives 2 logits a row, but the data have 3 classes"),
        (Unsized, SHORT, SHORT, "Unsized has tensors without a shape, such as `layer.weight`"),
    ],
    ids=["longest of training", "longest of test", "second step", "evaluation", "outputs", "classes", "lazy"],
)
def test_what_would_fail_in_round_1_is_one_clear_error(module, train: list[int], test: list[int], problem, tmp_path):
    with pytest.raises(ModelError, match=problem):
        rehearse(assembled(tmp_path, module(), train, test, ("runtime.lanes=1",)))


def test_a_learning_rate_that_ends_a_run_ends_it(tmp_path):
    with pytest.raises(FedeltaError, match=r"usable|finite"):
        rehearse(assemble(load_config(write_small(tmp_path), ["client.lr=1e30"])))


@pytest.mark.parametrize("text", [SMALL, CONVOLUTIONAL], ids=["lora", "parallel"])
@pytest.mark.parametrize("strategy", ["fedlama", "scaffold", "fedadam"])
def test_every_kind_of_strategy_can_be_rehearsed(text: str, strategy: str, tmp_path):
    overrides = [f"strategy.name={strategy}", *(["client.local_epochs="] if strategy == "fedlama" else [])]
    outcome = rehearse(assemble(load_config(write_small(tmp_path, text=text), overrides)))
    assert len(outcome.cohort) == 3


def test_large_cohorts_are_cut(tmp_path):
    assembly = assembled(tmp_path, Net(), SHORT * 20, SHORT, ("strategy.clients_per_round=60",))
    assert len(rehearse(assembly).cohort) == 16
