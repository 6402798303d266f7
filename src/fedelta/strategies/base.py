"""The protocols of a strategy, which plans rounds and combines the deltas of clients, and of its client side.

A strategy is a frozen value. What it needs from round to round is a `State`, which it returns and gets back, so that a
checkpoint holds all of it and a resumed run continues with the same bits. The client's side is a `LocalRule`, which
corrects the gradient of a step, or a `Steering`, which also keeps and sends tensors of the client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from fedelta.aggregation.base import Aggregation, Reads, Update
from fedelta.params import Params, ParamSpec
from fedelta.seeds import uniform_numbers

State = dict[str, Tensor]


@dataclass(frozen=True)
class RoundPlan:
    """Which clients take part in a round, and which tensors travel to and from each.

    For a tensor that is not in its download the client uses the value that it kept from the previous round. A tensor
    that is not in its upload stays with the client as long as the client is in every cohort.

    Args:
        round: number of the round, from 1.
        download: client id to the names of the tensors that it gets.
        upload: client id to the names of the tensors that it must send; the keys are the cohort.
        num_clients: N, the number of clients from which the cohort is drawn.
        num_holders: name of a tensor to the number of clients that hold it; None: all clients hold all tensors.
        due: names of the tensors that every client of the cohort must send as far as it holds them, also if the cohort
            is empty; None: those in `upload`. Noise is added to all of them.
        asks_squares: whether the strategy needs `Noised.squares` if the run has client-level privacy.
    """

    round: int
    download: Mapping[int, tuple[str, ...]]
    upload: Mapping[int, tuple[str, ...]]
    num_clients: int
    num_holders: Mapping[str, int] | None = None
    due: tuple[str, ...] | None = None
    asks_squares: bool = False

    @property
    def cohort(self) -> tuple[int, ...]:
        """Ids of the clients of this round, ascending."""
        return tuple(sorted(self.upload))


# How a cohort is drawn: "fixed", uniformly without replacement; "poisson", each client with the same probability,
# independently of all others, so that cohorts differ in size and may be empty; "cyclic": not drawn, see `turn`.
Sampling = Literal["fixed", "poisson", "cyclic"]


def uniform(
    clients_per_round: int,
    round: int,
    client_ids: Sequence[int],
    spec: ParamSpec,
    generator: Generator,
    *,
    sampling: Sampling = "fixed",
) -> RoundPlan:
    """A plan for a cohort drawn at random; every shared tensor travels both ways.

    Args:
        clients_per_round: size of the cohort, or with Poisson sampling its mean.
        round: number of the round, from 1.
        client_ids: clients to draw from.
        spec: what can travel.
        generator: draws the cohort.
        sampling: how.
    """
    cohort = drawn(clients_per_round, round, client_ids, generator, sampling)
    names_of = dict.fromkeys(cohort, spec.shared)
    return RoundPlan(round, download=names_of, upload=names_of, num_clients=len(client_ids), due=spec.shared)


def drawn(size: int, number: int, client_ids: Sequence[int], generator: Generator, sampling: Sampling) -> list[int]:
    """A cohort of `size` clients, or of this size in the mean, ascending.

    Args:
        size: of the cohort.
        number: of the cohort, from 1.
        client_ids: clients to draw from, in the order of their turns.
        generator: draws the cohort.
        sampling: how.
    """
    if sampling == "cyclic":
        return turn(size, number, client_ids)
    if sampling == "poisson":
        chosen = (uniform_numbers(generator, len(client_ids)) < size / len(client_ids)).tolist()
        return sorted(client_id for client_id, is_chosen in zip(client_ids, chosen, strict=True) if is_chosen)
    order = torch.randperm(len(client_ids), generator=generator).tolist()
    return sorted(client_ids[index] for index in order[:size])


def turn(size: int, number: int, client_ids: Sequence[int]) -> list[int]:
    """Cohort `number` (from 1), ascending, if clients take turns in the order of `client_ids`, in a circle.

    >>> [turn(2, number, [5, 6, 7, 8, 9]) for number in (1, 2, 3)]
    [[5, 6], [7, 8], [5, 9]]
    """
    places = range((number - 1) * size, number * size)
    return sorted(client_ids[place % len(client_ids)] for place in places)


ALL_ROWS = 2**31  # more than any pair has


@dataclass(frozen=True)
class Form:
    """How much of the low-rank pairs travels in a payload; by default all (federation/forms.py).

    Args:
        rank: rows of A and columns of B, at most.
        rows: rows and columns of the factors that are carried, at most; "dense": the one factor of their dense form.
    """

    rank: int = ALL_ROWS
    rows: int | Literal["dense"] = 0


_WHOLE = Form()


@dataclass(frozen=True)
class Whole:
    """The form of payloads that have all of every tensor; see `Forms` for its methods.

    Args:
        wire: every tensor that can travel.
    """

    wire: ParamSpec

    def spec_of(self, form: Form) -> ParamSpec:
        """All tensors."""
        return self.wire

    def form_in(self, payload: bytes) -> Form:
        """The whole."""
        return _WHOLE

    def form_of(self, params: Mapping[str, Tensor], rank: int | None) -> Form:
        """The whole."""
        return _WHOLE

    def narrowed(self, tensors: Params, form: Form) -> Params:
        """All tensors."""
        return tensors

    def widened(self, tensors: Params, form: Form) -> Params:
        """All tensors."""
        return tensors

    def limited(self, tensors: Params, form: Form) -> Params:
        """All tensors."""
        return tensors


@dataclass(frozen=True)
class Noised:
    """What client-level privacy tells a strategy about the noise of a round.

    Args:
        variances: tensor name to the variance of the noise in each element of `CombinedUpdates.mean`.
        squares: group to the noisy mean over clients of the squared norm of their delta; empty unless the plan
            `asks_squares`. It may be negative.
    """

    variances: Mapping[str, float]
    squares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CombinedUpdates:
    """The accepted replies of a round, combined by the aggregation.

    Args:
        mean: combined deltas of the trained tensors, float64, each over the clients that sent it; a tensor that too few
            clients sent is absent. With client-level privacy noisy, of all tensors that are due, each over the number
            of clients that were expected to send it.
        client_ids: ids of the accepted clients, ascending.
        updates: the single updates, by ascending client id, if the strategy reads "each"; else empty.
        noised: what is known of the noise; None without client-level privacy, with which `updates` are empty.
        center: the mean of every tensor for itself, from which distances of clients are measured; None: `mean`. With
            low-rank aggregation the pairs in `mean` are not the mean of those of the clients.
    """

    mean: Params
    client_ids: tuple[int, ...]
    updates: tuple[Update, ...] = ()
    noised: Noised | None = None
    center: Params | None = None


class Steering(Protocol):
    """The client's side of a strategy: tensors that a client keeps and sends, and how they correct its steps."""

    def extend(self, spec: ParamSpec) -> ParamSpec:
        """`spec`, followed by the tensors that travel in addition to those of the model."""

    def start(self, spec: ParamSpec) -> Params:
        """What a client remembers before its first round; `spec` is that of the model."""

    def offset(self, received: Params, remembered: Params) -> Params:
        """What is added to the gradient in every local step, by name of the model's tensors."""

    def beside(self, received: Params, delta: Params, step_length: float) -> Params:
        """What the client sends in addition to `delta`.

        Args:
            received: the decoded download.
            delta: local minus anchor.
            step_length: learning rate times effective steps; `-delta / step_length` is the mean gradient.
        """

    def remember(self, remembered: Params, sent: Params) -> Params:
        """What the client remembers once its reply is accepted; `sent` is the upload as the server decodes it."""


class Strategy(Protocol):
    """Draws cohorts, decides what travels, and combines deltas."""

    @property
    def name(self) -> str:
        """Its name in configurations."""

    @property
    def steering(self) -> Steering | None:
        """The client's side of the strategy; None if clients keep nothing for it."""

    @property
    def mean(self) -> Aggregation:
        """Combines the deltas of a round into one."""

    @property
    def reads(self) -> Reads:
        """What `update` needs: "sum" for the mean only, "each" for the single updates too."""

    @property
    def private(self) -> bool:
        """Whether it may be used with client-level privacy; see `is_private`.

        Then the params, and all that decides which tensors are due, must depend on clients through `combined.mean` and
        `combined.noised` only: not on who is in a cohort, who replied, or on single updates.
        """

    @property
    def num_rounds(self) -> int:
        """Number of rounds of the run."""

    @property
    def clients_per_round(self) -> int:
        """Size of a cohort, in the mean with Poisson sampling."""

    @property
    def sampling(self) -> Sampling:
        """How cohorts are drawn."""

    @property
    def cohort_rounds(self) -> int:
        """Number of rounds for which a cohort stays."""

    @property
    def min_replies(self) -> int:
        """Fewest usable replies with which a round counts."""

    @property
    def max_examples(self) -> int:
        """Upper limit of a client's weight, whatever number of examples it claims."""

    @property
    def local_steps(self) -> int | None:
        """Local steps per round, if the strategy sets them; None: section `[client]` does."""

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the state tensors that are recorded after each round, with one number per group."""

    @property
    def layerwise(self) -> bool:
        """Whether groups travel at different times, which saves nothing if only one group is tuned."""

    def within(
        self, budget_bytes: float, spec: ParamSpec, num_clients: int, exchange_bytes: Callable[[tuple[str, ...]], int]
    ) -> Strategy:
        """The strategy, adapted to a byte budget for the whole run; itself if it does not plan by budget.

        Args:
            budget_bytes: upper limit for the sum of all payloads.
            spec: what is tuned.
            num_clients: number of clients of the federation.
            exchange_bytes: gives the bytes of one download and one upload of the tensors with these names.

        Raises:
            ConfigError: no plan keeps to the budget.
        """

    def init(self, params: Params, spec: ParamSpec) -> State:
        """The state before round 1."""

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """The plan of `round`; `generator` draws the cohort."""

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The server params and the state after the round; must not change its arguments.

        `combined` holds no statistics of norms: the round loop averages them.
        """


def is_private(strategy: Strategy) -> bool:
    """Whether a strategy says of itself that it may be used with client-level privacy.

    A class that inherits `private`, but has a `plan` or `update` of its own, has not said so.
    """
    for kind in type(strategy).__mro__:
        if "private" in vars(kind):
            return strategy.private
        if "plan" in vars(kind) or "update" in vars(kind):
            return False
    return False


class LocalRule(Protocol):
    """A correction of the gradient in every local step, on stacked lanes.

    Shapes: K lanes, P trained scalars.
    """

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        """Changes `grads_KP` in place; called before the optimizer's step."""
