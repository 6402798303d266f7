"""Personalisation: held-out clients fine-tune the finished model on their data, and keep the result.

    rows of a client   = training part (70 %) + evaluation part (30 %), with the same share of each class where possible
    training part      = trial rows + selection rows
    for each rate      : fine-tune on the trial rows, measure on the selection rows
    with the best rate : fine-tune on the whole training part, measure on the evaluation part

Every fine-tuning starts from the server's params. The best rate has the best primary measure, then the lower loss, then
the smaller rate; for a model with exits the measure is the mean over the exits that the client trains.

Optimizer, local rule, exits and augmentation are those of the run.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084), authors' code for SpeechCommands. That code selects the rate on
the evaluation part, which makes its results too good; here the evaluation part has no influence on the model.
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
    """A client's rows, int64, divided into three parts.

    Args:
        trial: rows to train on with each learning rate.
        selection: rows to measure each learning rate on.
        evaluation: rows to measure the result on.
    """

    trial: Tensor
    selection: Tensor
    evaluation: Tensor

    @property
    def training(self) -> Tensor:
        """The rows of `trial` and `selection`, ascending, on which the client trains in the end."""
        return torch.cat([self.trial, self.selection]).sort().values


def split_rows(settings: Personalization, rows: Tensor, strata: Tensor, client_id: int, seed: int) -> Parts:
    """Divides a client's rows into parts; the result depends only on the arguments.

    Args:
        settings: the shares of the parts.
        rows: the client's rows, int64.
        strata: the kind of each row, for example its class; every part has the same share of each kind.
        client_id: number of the client.
        seed: of the run.
    """
    _, num_select, num_eval = settings.sizes(len(rows))
    training, evaluation = _drawn(strata, num_eval, stream(seed, _STREAM, "evaluation part", client_id))
    trial, selection = _drawn(strata[training], num_select, stream(seed, _STREAM, "selection part", client_id))
    return Parts(rows[training[trial]], rows[training[selection]], rows[evaluation])


@dataclass(frozen=True)
class HeldOut:
    """The held-out clients of a run, and what they start from.

    Args:
        engine: trains with the settings of `Personalization.training`.
        data: its `held_out` clients fine-tune; its training rows are those of the engine.
        params: the server's params.
        seed: of the run.
        round: number of the run's last round, which sets the weight of distillation (`exits.train = "distill"`).
        tiers: the depth of each client; None: every client runs the whole model.
    """

    engine: LaneEngine
    data: FederatedData
    params: Params
    seed: int
    round: int = 1
    tiers: Tiers | None = None


@dataclass(frozen=True)
class FineTuned:
    """The model that a client keeps.

    Args:
        params: the tuned tensors.
        lr: the selected learning rate.
        num_train: number of rows it was trained on.
        evaluation: measures on the evaluation part.
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
        client_id: number of the client.
        called: how messages name the client: its number, with its name if it has one.
        num_eval: number of rows of its evaluation part.
        before: measures of the server's model on the evaluation part.
        after: the fine-tuned model.
    """

    scope: Scope
    client_id: int
    called: str
    num_eval: int
    before: Evaluation
    after: FineTuned


def fine_tune(
    settings: Personalization, held_out: HeldOut, scopes: Mapping[Scope, frozenset[str]]
) -> Iterator[Personalized]:
    """Fine-tunes every held-out client in every scope and yields the results, scope by scope; nothing is sent.

    Args:
        settings: section `[personalization]`.
        held_out: the clients; each must have enough rows (`Personalization.check_sizes`).
        scopes: scope to the names of the tensors that it trains; all other tensors keep the server's values.

    Raises:
        RoundError: a client's loss is not finite with any learning rate.
    """
    tuning = _FineTuning(settings, held_out)
    before = {
        client: tuning.evaluate(client, held_out.params, parts.evaluation) for client, parts in tuning.parts.items()
    }
    for scope, names in scopes.items():
        for group in tuning.groups():
            rates = tuning.select_rates(group, names)
            jobs = [tuning.job("tune", client, tuning.parts[client].training, rates[client], names) for client in group]
            params_of = tuning.train(jobs)
            for client in group:
                called, parts, lr = held_out.data.clients.called(client), tuning.parts[client], rates[client]
                params = params_of[client, lr]
                evaluation = tuning.evaluate(client, params, parts.evaluation)
                if evaluation.not_finite:
                    raise _diverged(called, [lr])
                after = FineTuned(params, lr, len(parts.training), evaluation)
                yield Personalized(scope, client, called, len(parts.evaluation), before[client], after)


class _FineTuning:
    """Jobs, training and evaluation of held-out clients on the engine.

    Attributes:
        parts: client id to its rows in parts, ascending.
    """

    def __init__(self, settings: Personalization, held_out: HeldOut) -> None:
        self._settings, self._held_out = settings, held_out
        train, rows_of = held_out.data.train, held_out.data.held_out
        strata = strata_of(train.targets)
        self.parts = {
            client: split_rows(settings, rows, strata[rows], client, held_out.seed)
            for client, rows in sorted(rows_of.items())
        }
        # Evaluation reads these rows only, never augmented, so that the prefix cache holds no features of other rows.
        self._rows = torch.cat([*rows_of.values()]).sort().values
        inputs = RowsOf(train.inputs, self._rows)
        self._data = Examples(inputs, train.targets.select(self._rows))

    def groups(self) -> Iterator[list[int]]:
        """Client ids in groups that fill all lanes; clients of one depth are neighbours."""
        order = sorted(self.parts, key=lambda client: (self._depth(client) or 0, client))
        # In groups, because the result of every job holds a copy of the tuned tensors.
        size = -(-self._held_out.engine.lanes.num // len(self._settings.lrs))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def select_rates(self, clients: Iterable[int], names: frozenset[str]) -> dict[int, float]:
        """Client id to the learning rate that is best on its selection rows."""
        lrs, task = self._settings.lrs, self._held_out.engine.task
        if len(lrs) == 1:
            return dict.fromkeys(clients, lrs[0])
        jobs = [self.job("try", client, self.parts[client].trial, lr, names) for client in clients for lr in lrs]
        ranks: dict[int, list[tuple[float, float, float]]] = {}
        for (client, lr), params in self.train(jobs).items():
            evaluation = self.evaluate(client, params, self.parts[client].selection)
            value = self._primary_value(evaluation)
            ranks.setdefault(client, [])
            if not evaluation.not_finite:
                order = -value if task.primary.higher_is_better else value
                ranks[client].append((order, evaluation.measures[task.loss.name], lr))
        for client, client_ranks in ranks.items():
            if not client_ranks:
                raise _diverged(self._held_out.data.clients.called(client), lrs)
        return {client: min(client_ranks)[-1] for client, client_ranks in ranks.items()}

    def _primary_value(self, evaluation: Evaluation) -> float:
        """The primary measure; for a model with exits the mean over the exits that the client trains."""
        primary = self._held_out.engine.task.primary.name
        by_exit = evaluation.by_exit.get(primary)
        if by_exit is None:
            return evaluation.measures[primary]
        return fmean(by_exit[number - 1] for number in self._held_out.engine.exits.answers(len(by_exit)))

    def job(self, purpose: str, client: int, rows: Tensor, lr: float, names: frozenset[str]) -> Job:
        """A job that fine-tunes `client` on `rows`; its random streams are the same for every rate and scope."""
        held_out = self._held_out
        path = (_STREAM, purpose, client)
        trained = names if held_out.tiers is None else names & held_out.tiers.owned[held_out.tiers.depths[client]]
        return Job(
            client,
            rows,
            held_out.params,
            order=repeat(stream(held_out.seed, "batches", *path)),
            noise=stream(held_out.seed, "dropout", *path),
            augmentation=repeat(stream(held_out.seed, "augmentation", *path)),
            kept=tuple(held_out.params),
            depth=self._depth(client),
            exits=stream(held_out.seed, "exits", *path),
            lr=lr,
            moving=trained,
        )

    def train(self, jobs: Sequence[Job]) -> dict[tuple[int, float], Params]:
        """Client id and learning rate to the tensors after training, in ascending order."""
        engine = self._held_out.engine
        # An augmented row has the random crop of one job at a time, so the rates of a client train one after the other.
        passes = [[job for job in jobs if job.lr == lr] for lr in self._settings.lrs] if engine.is_augmented else [jobs]
        params_of = {
            (trained.client_id, trained.lr): trained.kept
            for jobs_of_pass in passes
            for trained in engine.train(jobs_of_pass, lr=0.0, round=self._held_out.round)
        }
        return dict(sorted(params_of.items()))

    def evaluate(self, client: int, params: Params, rows: Tensor) -> Evaluation:
        """The measures of `params` on `rows`, at the exits that the client has."""
        places = torch.searchsorted(self._rows, rows)
        return self._held_out.engine.evaluator.evaluate(params, self._data, places, self._depth(client))

    def _depth(self, client: int) -> int | None:
        return None if self._held_out.tiers is None else self._held_out.tiers.depths[client]


def _drawn(strata: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices into `strata` that are left, and `count` indices that are drawn; both ascending."""
    if not count:
        return torch.arange(len(strata)), torch.arange(0)
    drawn = stratified(strata, count, generator)
    is_left = torch.ones(len(strata), dtype=torch.bool)
    is_left[drawn] = False
    return is_left.nonzero().flatten(), drawn


def _diverged(client: str, lrs: Sequence[float]) -> RoundError:
    rates = ", ".join(f"{lr:g}" for lr in lrs)
    return RoundError(
        f"{client}: fine-tuning ends with a loss that is not finite, at the learning rate {rates}.",
        hint="give smaller rates: `--set personalization.lrs=[...]`.",
    )
