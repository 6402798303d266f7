"""The layers of the server are the mean of those of the clients, whoever replies, whatever their ranks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedelta.aggregation.fedex import FedEx
from fedelta.aggregation.flora import Flora
from fedelta.aggregation.low_rank import CARRIED, FACTORS, LowRank, as_matrix, paths_of
from fedelta.aggregation.means import Uniform, Weighted
from fedelta.codecs.wire import decode
from fedelta.federation.base import Federation, Runtime
from fedelta.federation.records import Reply
from fedelta.federation.rounds import federate
from fedelta.params import Params
from fedelta.strategies.base import Form, RoundPlan
from fedelta.strategies.fedavg import FedAvg
from fedelta.testing.federations import played
from fedelta.tuning.lora import Lora

RANKS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 1}


@dataclass
class Overheard:
    """Runs clients, notes what travels, and loses the replies of some."""

    runtime: Runtime
    lost: Mapping[int, int]  # round to a place in its cohort
    downloads: dict[int, Mapping[int, bytes]] = field(default_factory=dict)
    replies: dict[int, list[Reply]] = field(default_factory=dict)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterable[Reply]:
        place = self.lost.get(plan.round)
        gone = None if place is None else plan.cohort[place]
        self.downloads[plan.round] = payloads
        self.replies[plan.round] = [reply for reply in self.runtime.run(plan, payloads) if reply.client_id != gone]
        return self.replies[plan.round]

    def accept(self, client_ids: Iterable[int]) -> None:
        self.runtime.accept(client_ids)

    def snapshot(self, folder: Path, round: int) -> str:
        return self.runtime.snapshot(folder, round)

    def restore(self, folder: Path, mark: str) -> None:
        self.runtime.restore(folder, mark)


def layer(params: Params, path: str) -> Tensor:
    """B A + D C, without s."""
    (a, b), (c, d) = ([as_matrix(params[f"{path}.{factor}"]) for factor in names] for names in (FACTORS, CARRIED))
    return b @ a + d @ c


def trained(federation: Federation, download: bytes, upload: bytes) -> Params:
    """The factors of a client after its steps, with zeros for rows that it lacks."""
    forms, channel = federation.forms, federation.channel
    form = forms.form_in(download)
    anchors, _ = decode(download, forms.spec_of(form), channel.down)
    delta, _ = decode(upload, forms.spec_of(Form(form.rank)), channel.up)
    local = {name: tensor + delta[name] if name in delta else tensor for name, tensor in anchors.items()}
    return forms.widened(local, form)


@pytest.mark.parametrize("method", [FedEx(), Flora()], ids=lambda method: method.name)
@pytest.mark.parametrize("ranks", [{}, RANKS], ids=["one rank", "ranks differ"])
@pytest.mark.parametrize("mean", [Weighted(), Uniform()], ids=lambda mean: mean.name)
@pytest.mark.parametrize("family", ["vit", "small-resnet"])
def test_every_layer_after_every_round_is_the_dense_mean_of_the_clients(
    method: LowRank, ranks: Mapping[int, int], mean: Weighted | Uniform, family: str, tmp_path: Path
):
    tuning = Lora(r=4, target_modules=("q", "v") if family == "vit" else "all-conv")
    strategy = FedAvg(clients_per_round=3, num_rounds=5, mean=mean)
    federation, standing, _ = played(strategy, tuning, family, aggregation=method, ranks=ranks)
    overheard = Overheard(federation.runtime, lost={2: 0, 4: 2})
    overheard.restore(tmp_path, "")
    federation = replace(federation, runtime=overheard)

    outcomes = list(federate(federation, standing))

    num_carried = 0
    for outcome in outcomes:
        replies = overheard.replies[outcome.round]
        assert len(replies) == (2 if outcome.round in (2, 4) else 3)
        weights = [1 if isinstance(mean, Uniform) else reply.num_examples for reply in replies]
        clients = [
            trained(federation, overheard.downloads[outcome.round][reply.client_id], reply.payload) for reply in replies
        ]
        for path in paths_of(standing.params):
            pairs = zip(weights, clients, strict=True)
            expected = sum(weight / sum(weights) * layer(client, path) for weight, client in pairs)
            assert isinstance(expected, Tensor)
            difference = layer(outcome.params, path) - expected
            assert float(difference.norm() / expected.norm()) < 1e-5
            num_carried += bool(torch.any(outcome.params[f"{path}.carried_B"]))
    assert num_carried > len(paths_of(standing.params))  # more than one round had something to carry
