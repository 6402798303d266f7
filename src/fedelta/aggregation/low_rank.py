"""Low-rank aggregation: which factors of LoRA's pairs clients train and send, and how their pairs become the server's.

A pair of client i changes the layer by s B_i A_i. The mean of what clients have learned is the mean of the products,

    P = sum_i p_i B_i A_i,    p_i = n_i / n, or 1 / M with `strategy.mean.name = "uniform"`

and plain averaging, each factor for itself, gives (sum_i p_i B_i) (sum_i p_i A_i) instead. Section `[aggregation]`
chooses what is done about it; `strategy.mean` and the strategy stay what they are for all other tensors. The factor s
is the same for all clients, also if their ranks differ (`tuning.rank_by_client`): that of the server's pair, so that
products can be added up.

The methods in this folder that combine both factors (`joins`) need A and B of a client in one upload, which is so
because they are of one group.

Shapes: R rank, I columns of A (for a convolution with all kernel positions), O rows of B, S rows that are carried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from fedelta.aggregation.means import Uniform, Weighted
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Context, Settings
from fedelta.tuning.combined import Combined
from fedelta.tuning.lora import Lora, carried_shapes, carry

Factor = Literal["lora_A", "lora_B"]
FACTORS: tuple[Factor, Factor] = ("lora_A", "lora_B")
# The names of the factors that are carried beside a pair.
CARRIED = ("carried_A", "carried_B")


class Pair(NamedTuple):
    """One client's pair in a layer, in float64.

    Args:
        share: p_i; the shares of a round are 1 together.
        a_RI: A. Of a client with a lower rank than the server, the last rows are zero.
        b_OR: B, with zeros in the last columns likewise.
    """

    share: float
    a_RI: Tensor  # noqa: N815  as all matrices
    b_OR: Tensor  # noqa: N815


class Joined(NamedTuple):
    """The pair of the server after a round, and what else the layer changes by.

    Args:
        a_RI: A.
        b_OR: B.
        carried: factors [S, I] and [O, S] whose product, times s, is added to the frozen layer; None for nothing.
    """

    a_RI: Tensor  # noqa: N815  as all matrices
    b_OR: Tensor  # noqa: N815
    carried: tuple[Tensor, Tensor] | None = None


class LowRank(Protocol):
    """A choice of section `[aggregation]`."""

    @property
    def name(self) -> str:
        """Its name in configurations."""

    @property
    def fixes(self) -> Factor | None:
        """The factor that nobody trains or sends: every client has made the same one from the seed."""

    @property
    def keeps(self) -> Factor | None:
        """The factor that each client trains and keeps to itself."""

    @property
    def joins(self) -> bool:
        """Whether `join` combines the pairs; if not, each factor is averaged for itself by `strategy.mean`."""

    @property
    def carries(self) -> bool:
        """Whether the frozen layers change: `join` gives factors that are carried beside the pair."""

    def resting(self, turn: int) -> Factor | None:
        """The factor that no client trains or sends in this turn, counted from 1; a turn is a round, or a window."""

    def join(self, pairs: Sequence[Pair], generator: Generator, *, ordered: bool) -> Joined | None:
        """The server's pair after a round; None if that of plain averaging is exactly right.

        Args:
            pairs: of the clients that sent the layer, by ascending client id.
            generator: a stream of the round and the layer.
            ordered: whether the first r rows of A and columns of B must be the best pair of every lower rank r.
        """

    def problems(self, context: Context) -> list[str]:
        """Conflicts with other sections."""


class Factors(Settings):
    """Defaults of the methods: both factors are trained, sent and averaged in every round."""

    fixes: ClassVar[Factor | None] = None
    keeps: ClassVar[Factor | None] = None
    joins: ClassVar[bool] = False
    carries: ClassVar[bool] = False

    def resting(self, turn: int) -> Factor | None:
        """None: both factors are trained in every turn."""
        return None

    def join(self, pairs: Sequence[Pair], generator: Generator, *, ordered: bool) -> Joined | None:
        """None: factors are averaged for themselves."""
        return None

    def problems(self, context: Context) -> list[str]:
        """Reports sections with which the method cannot be right; see `conflicts`."""
        return conflicts(context)


class Apart(Factors):
    """Averages each factor for itself, as every other tensor.

    With `tuning.rank_by_client` this is *naive zero padding*: the rows and columns that a client lacks count as zeros.

    Source: Zhang et al. 2024 (FedIT, arXiv 2305.05644); zero padding as the baseline in Cho et al. 2024 (HetLoRA, arXiv
    2401.06432).
    """

    name: Literal["plain"] = "plain"

    def problems(self, context: Context) -> list[str]:
        """None: it also does for tuning methods without pairs."""
        return []


def paths_of(names: Iterable[str]) -> tuple[str, ...]:
    """Paths of the layers with a pair, in order."""
    return tuple(name.removesuffix(".lora_A") for name in names if name.endswith(".lora_A"))


def prepared(method: LowRank, module: nn.Module, spec: ParamSpec) -> ParamSpec:
    """`spec` as `sourced` gives it, of a model that is edited to fit: it has space for what is carried."""
    if method.carries:
        carry(module)
    spec = sourced(method, spec)
    for name, tensor in spec.tensors.items():
        module.get_parameter(name).requires_grad_(tensor.trained)
    return spec


def sourced(method: LowRank, spec: ParamSpec) -> ParamSpec:
    """`spec`, in which a factor that the method fixes comes from the seed, and one that it keeps does not travel.

    What is carried beside a pair follows it.
    """
    tensors: dict[str, TensorSpec] = {}
    for name, tensor in spec.tensors.items():
        tensors[name] = tensor
        path = name.removesuffix(".lora_B")
        if method.carries and path != name:
            shapes = carried_shapes(spec.tensors[f"{path}.lora_A"].shape, tensor.shape)
            for factor, shape in zip(CARRIED, shapes, strict=True):
                tensors[f"{path}.{factor}"] = TensorSpec(
                    shape, tensor.group, trained=False, shared=False, source="server"
                )
    for path in paths_of(spec):
        if method.fixes is not None:
            name = f"{path}.{method.fixes}"
            tensors[name] = replace(tensors[name], trained=False, shared=False, source="seed")
        if method.keeps is not None:
            name = f"{path}.{method.keeps}"
            tensors[name] = replace(tensors[name], shared=False)
    return ParamSpec(tensors)


def as_matrix(tensor: Tensor) -> Tensor:
    """A factor as a float64 matrix: A [R, I] with all kernel positions as columns, B [O, R]."""
    return tensor.double().flatten(1)


def stacked(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """The A of all clients one below the other [S, I], and p_i B_i one beside the other [O, S]: their product is P."""
    return torch.cat([pair.a_RI for pair in pairs]), torch.cat([pair.share * pair.b_OR for pair in pairs], dim=1)


def averaged(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """sum_i p_i A_i and sum_i p_i B_i."""
    a_RI = torch.stack([pair.share * pair.a_RI for pair in pairs]).sum(0)
    return a_RI, torch.stack([pair.share * pair.b_OR for pair in pairs]).sum(0)


def agree(pairs: Sequence[Pair]) -> bool:
    """Whether all clients have the same A or the same B, bit by bit; plain averaging then gives P exactly."""
    first = pairs[0]
    return all(torch.equal(pair.a_RI, first.a_RI) for pair in pairs) or all(
        torch.equal(pair.b_OR, first.b_OR) for pair in pairs
    )


def conflicts(context: Context) -> list[str]:
    """What the method of section `[aggregation]` cannot be right with."""
    method: LowRank = context.get("aggregation")
    name, problems = f"`aggregation.name` is {method.name!r}", []
    tuning, strategy, mean = (context.get(key) for key in ("tuning", "strategy.name", "strategy.mean"))
    methods = tuning.methods if isinstance(tuning, Combined) else (tuning,)
    if tuning is not None and not any(isinstance(part, Lora) for part in methods):
        problems.append(f"{name}, but `tuning.name` has no low-rank pairs; choose 'lora', or leave `[aggregation]` out")
    if method.carries and isinstance(tuning, Combined):
        problems.append(f"{name}, which adds to the layers of 'lora' alone; `tuning.name` must be 'lora'")
    if method.resting(1) and strategy == "fedluar":
        problems.append(
            f"{name}, which sends one factor at a time, but `strategy.name` is 'fedluar', which repeats the last "
            "update of what is not sent; choose 'fedavg' or 'fedlama'"
        )
    return problems + (_conflicts_of_joins(name, context, mean) if method.joins else [])


def _conflicts_of_joins(name: str, context: Context, mean: object) -> list[str]:
    """What a method that combines both factors cannot be right with."""
    problems, strategy = [], context.get("strategy.name")
    if strategy is not None and strategy not in _ADDING:
        problems.append(
            f"{name}, which replaces the pairs of the server, but `strategy.name` is {strategy!r}, which goes on from "
            f"the changes of single factors; choose one of {', '.join(map(repr, _ADDING))}, or 'ffa' as the aggregation"
        )
    elif strategy == "fedavg" and context.get("strategy.server_lr") != 1:
        problems.append(f"{name}, which replaces the pairs of the server; `strategy.server_lr` must be 1")
    if mean is not None and strategy in _ADDING and not isinstance(mean, Weighted | Uniform):
        problems.append(
            f"{name}, which needs the share of each client in the mean of products, but `strategy.mean.name` is "
            f"{context.get('strategy.mean.name')!r}; choose 'weighted' or 'uniform', or 'ffa' for a robust mean"
        )
    if context.get("privacy.unit") == "client":
        problems.append(
            f"{name}, which reads the pair of each client, but `privacy.unit` is 'client', under which only noisy sums "
            "are seen; choose 'ffa', with which the mean of products is such a sum"
        )
    return problems


# Strategies whose server params are the old ones plus the mean delta, and that need nothing else of it.
_ADDING = ("fedavg", "fedlama", "fedlama-auto")
