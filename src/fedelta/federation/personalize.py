"""Personalisation: clients that no round asked fine-tune the finished model on their own data, and keep the result.

    rows of a client   = training part (70 %) + evaluation part (30 %), each class in both where it has enough rows
    training part      = rows to try rates on + rows to select by
    for each rate      : fine-tune on the rows to try, measure on the rows to select by
    with the best rate : fine-tune on the whole training part, measure on the evaluation part

Each fine-tuning starts from the params of the server. The best rate has the best primary measure, of a model with exits
the mean over those that the client learns at; then the lower loss, then the smaller rate. In the authors' code the rate
is selected on the evaluation part, so that what it reports is too high; here no choice looks at it.

A client fine-tunes as it would train in a round: optimizer, local rule, exits and augmentation are those of the run.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084), authors' code for SpeechCommands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from statistics import fmean

import torch
from torch import Tensor

from fedelta.catalog import Scope
from fedelta.data.batches import Examples, FederatedData
from fedelta.data.splits import stratified
from fedelta.data.validation import RowsOf
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.work import Job
from fedelta.errors import RoundError
from fedelta.federation.held_out import Personalization
from fedelta.federation.tiers import Tiers
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.tasks.base import Evaluation
from fedelta.tasks.targets import strata_of

_STREAM = "personalization"


@dataclass(frozen=True)
class Parts:
    """The rows of a client, int64, each in one part only.

    Args:
        trial: for trying learning rates.
        selection: for selecting one.
        evaluation: for the result.
    """

    trial: Tensor
    selection: Tensor
    evaluation: Tensor

    @property
    def training(self) -> Tensor:
        """What the client may learn from."""
        return torch.cat([self.trial, self.selection]).sort().values


def split(settings: Personalization, rows: Tensor, strata: Tensor, client_id: int, seed: int) -> Parts:
    """The parts of a client; which row goes where depends on the seed, the client and its rows alone.

    Args:
        settings: shares.
        rows: of the client.
        strata: kind of each of these rows; the parts have the same share of each.
        client_id: whose they are.
        seed: of the run.
    """
    _, num_select, num_eval = settings.sizes(len(rows))
    training, evaluation = _drawn(strata, num_eval, stream(seed, _STREAM, "evaluation part", client_id))
    trial, selection = _drawn(strata[training], num_select, stream(seed, _STREAM, "selection part", client_id))
    return Parts(rows[training[trial]], rows[training[selection]], rows[evaluation])


@dataclass(frozen=True)
class Unseen:
    """The clients, and what they start from.

    Args:
        engine: trains as `Personalization.training` says.
        data: whose `unseen` they are; its training data are the same rows as the engine's.
        params: of the server.
        seed: of the run.
        round: the last of the run; weighs the teacher of `exits.train = "distill"`.
        tiers: how deep each client runs; None: all of them through the whole model.
    """

    engine: LaneEngine
    data: FederatedData
    params: Params
    seed: int
    round: int = 1
    tiers: Tiers | None = None


@dataclass(frozen=True)
class FineTuned:
    """The model that a client ends up with, and keeps.

    Args:
        params: of the model.
        lr: the learning rate that was selected.
        num_train: rows that it was trained on.
        evaluation: on the evaluation part.
    """

    params: Params
    lr: float
    num_train: int
    evaluation: Evaluation


@dataclass(frozen=True)
class Personalized:
    """The result of one client and one scope.

    Args:
        scope: what was trained.
        client_id: who.
        called: the same in words, with the client's name where it has one.
        num_eval: rows of its evaluation part.
        before: the server's model on the evaluation part.
        after: the client's own.
    """

    scope: Scope
    client_id: int
    called: str
    num_eval: int
    before: Evaluation
    after: FineTuned


def personalize(
    settings: Personalization, unseen: Unseen, scopes: Mapping[Scope, frozenset[str]]
) -> Iterator[Personalized]:
    """Yields each client of each scope, in the order of the scopes; nothing is sent.

    Args:
        settings: how.
        unseen: who; each large enough (`Personalization.check_sizes`).
        scopes: names of the tensors that each scope trains; every other tensor stays as it is.

    Raises:
        RoundError: a client diverges at every learning rate.
    """
    bench = _Bench(settings, unseen)
    before = {client: bench.evaluate(client, unseen.params, parts.evaluation) for client, parts in bench.parts.items()}
    for scope, names in scopes.items():
        for group in bench.groups():
            rates = bench.select_rates(group, names)
            jobs = [bench.job("tune", client, bench.parts[client].training, rates[client], names) for client in group]
            own = bench.train(jobs)
            for client in group:
                called, parts, lr = unseen.data.clients.called(client), bench.parts[client], rates[client]
                params = own[client, lr]
                evaluation = bench.evaluate(client, params, parts.evaluation)
                if evaluation.not_finite:
                    raise _diverged(called, [lr])
                after = FineTuned(params, lr, len(parts.training), evaluation)
                yield Personalized(scope, client, called, len(parts.evaluation), before[client], after)


class _Bench:
    """What the unseen clients are given to work with."""

    def __init__(self, settings: Personalization, unseen: Unseen) -> None:
        self._settings, self._unseen = settings, unseen
        train, rows_of = unseen.data.train, unseen.data.unseen
        strata = strata_of(train.targets)
        self.parts = {
            client: split(settings, rows, strata[rows], client, unseen.seed) for client, rows in sorted(rows_of.items())
        }
        # A view of their rows alone: what is kept of frozen modules is kept for these. Never augmented.
        self._places = torch.cat([*rows_of.values()]).sort().values
        inputs = RowsOf(train.inputs, self._places)
        self._data = Examples(inputs, train.targets.select(self._places))

    def groups(self) -> Iterator[list[int]]:
        """The clients, those of one depth side by side, as many at a time as keep every lane busy."""
        order = sorted(self.parts, key=lambda client: (self._depth(client) or 0, client))
        # Not all at once: every job leaves a copy of the tuned tensors.
        size = -(-self._unseen.engine.lanes.num // len(self._settings.lrs))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def select_rates(self, clients: Iterable[int], names: frozenset[str]) -> dict[int, float]:
        """The best learning rate of each client, by its selection part."""
        lrs, task = self._settings.lrs, self._unseen.engine.task
        if len(lrs) == 1:
            return dict.fromkeys(clients, lrs[0])
        jobs = [self.job("try", client, self.parts[client].trial, lr, names) for client in clients for lr in lrs]
        ranks: dict[int, list[tuple[float, float, float]]] = {}
        for (client, lr), params in self.train(jobs).items():
            found = self.evaluate(client, params, self.parts[client].selection)
            value = self._where_it_learns(client, found)
            ranks.setdefault(client, [])
            if not found.not_finite:
                order = -value if task.primary.higher_is_better else value
                ranks[client].append((order, found.measures[task.loss.name], lr))
        for client, own in ranks.items():
            if not own:
                raise _diverged(self._unseen.data.clients.called(client), lrs)
        return {client: min(own)[-1] for client, own in ranks.items()}

    def _where_it_learns(self, client: int, found: Evaluation) -> float:
        """Mean of the primary measure over the exits that the client learns at; without exits the measure itself."""
        primary = self._unseen.engine.task.primary.name
        by_exit = found.by_exit.get(primary)
        if by_exit is None:
            return found.measures[primary]
        return fmean(by_exit[number - 1] for number in self._unseen.engine.exits.answers(len(by_exit)))

    def job(self, purpose: str, client: int, rows: Tensor, lr: float, names: frozenset[str]) -> Job:
        """Fine-tuning of `client` on `rows`; random numbers are the same for every rate and every scope."""
        unseen = self._unseen
        path = (_STREAM, purpose, client)
        held = names if unseen.tiers is None else names & unseen.tiers.owned[unseen.tiers.depths[client]]
        return Job(
            client,
            rows,
            unseen.params,
            order=repeat(stream(unseen.seed, "batches", *path)),
            noise=stream(unseen.seed, "dropout", *path),
            augmentation=repeat(stream(unseen.seed, "augmentation", *path)),
            kept=tuple(unseen.params),
            depth=self._depth(client),
            exits=stream(unseen.seed, "exits", *path),
            lr=lr,
            moving=held,
        )

    def train(self, jobs: Sequence[Job]) -> dict[tuple[int, float], Params]:
        """Client and rate to the tensors after training, in ascending order."""
        engine = self._unseen.engine
        # An augmented row has the numbers of one job at a time, so that the rates of a client must not meet.
        passes = [[job for job in jobs if job.lr == lr] for lr in self._settings.lrs] if engine.is_augmented else [jobs]
        found = {
            (trained.client_id, trained.lr): trained.kept
            for each in passes
            for trained in engine.train(each, lr=0.0, round=self._unseen.round)
        }
        return dict(sorted(found.items()))

    def evaluate(self, client: int, params: Params, rows: Tensor) -> Evaluation:
        """The measures on `rows`, at the exits that the client has."""
        places = torch.searchsorted(self._places, rows)
        return self._unseen.engine.evaluate(params, self._data, places, self._depth(client))

    def _depth(self, client: int) -> int | None:
        return None if self._unseen.tiers is None else self._unseen.tiers.depths[client]


def _drawn(strata: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of `strata` that stay, and `count` that are drawn; both ascending."""
    if not count:
        return torch.arange(len(strata)), torch.arange(0)
    drawn = stratified(strata, count, generator)
    stays = torch.ones(len(strata), dtype=torch.bool)
    stays[drawn] = False
    return stays.nonzero().flatten(), drawn


def _diverged(client: str, lrs: Sequence[float]) -> RoundError:
    rates = ", ".join(f"{lr:g}" for lr in lrs)
    return RoundError(
        f"{client}: fine-tuning ends with a loss that is not finite, at the learning rate {rates}.",
        hint="give smaller ones: `--set personalization.lrs=[...]`.",
    )
