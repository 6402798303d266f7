"""Section `[privacy]`: whom a run protects, how strongly, and by which noise.

Units of privacy, each with its neighbouring relation and the party that must be trusted:

    example   one example of one client, added or removed; nobody is trusted: uploads are private before they are sent
    client    one client with all of its data, added or removed; the server is trusted to clip and to add the noise
    local     all data of a client, replaced by any other; nobody is trusted
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from fedelta.aggregation.means import Uniform, UniformDeltas
from fedelta.settings import Context, Settings
from fedelta.strategies.base import is_private

Unit = Literal["none", "example", "client", "local"]
Clipping = Literal["flat", "per-group", "adaptive"]
# "fedpeft-code" and "fedpeft-text" are the noise of FedPEFT's authors, which guarantees nothing.
Mechanism = Literal["gaussian", "banded", "fedpeft-code", "fedpeft-text"]


class Privacy(Settings):
    """Differential privacy of a run: section `[privacy]`.

    Give `target_epsilon`, from which the noise is calculated before round 1, or `noise_multiplier`.

    Args:
        unit: what is protected; "none": nothing.
        target_epsilon: the epsilon that all rounds together may reach.
        target_delta: the delta of the guarantee.
        noise_multiplier: standard deviation of the noise, in units of `clipping_norm`.
        max_epsilon: with `noise_multiplier`: the round that would exceed it is not begun.
        clipping_norm: C, the largest Euclidean norm of what one example, or one client in one round, contributes.
        clipping: `flat` limits the norm over all tensors together; `per-group` limits each group to C / sqrt(number of
            groups); `adaptive`, for clients, moves C towards the quantile `target_quantile` of the norms.
        target_quantile: share of the clients whose norm should be below C, for adaptive clipping.
        clipping_lr: how fast C moves, for adaptive clipping.
        count_noise: standard deviation of the noise in the number of clients below C; None: clients_per_round / 20.
        mechanism: `gaussian`, independent noise in every round or step; `banded`, for clients that take turns, noise
            that takes back a part of the noise of earlier rounds (DP-FTRL); or FedPEFT's own, which guarantees nothing.
        bands: number of rounds whose noise is in a release, for banded noise.
        randomness: where noise comes from: `secure`, from the operating system; `seeded`, from the seed of the run, for
            tests and simulations; `auto`, secure in a deployment and seeded in a simulation.
        accountant: which bound `epsilon` is: `pld`, the tighter one, or `rdp`. Both are reported.
    """

    unit: Unit = "none"
    target_epsilon: float | None = Field(default=None, gt=0)
    target_delta: float = Field(default=1e-5, gt=0, lt=1)  # DP-SGD's usual choice; FedPEFT has 1e-3
    noise_multiplier: float | None = Field(default=None, gt=0)
    max_epsilon: float | None = Field(default=None, gt=0)
    clipping_norm: float = Field(default=1.0, gt=0)  # FedPEFT
    clipping: Clipping = "flat"
    target_quantile: float = Field(default=0.5, gt=0, lt=1)  # Andrew et al. 2021
    clipping_lr: float = Field(default=0.2, gt=0)  # Andrew et al. 2021
    count_noise: float | None = Field(default=None, gt=0)  # Andrew et al. 2021: clients_per_round / 20
    mechanism: Mechanism = "gaussian"
    bands: int = Field(default=4, ge=1)  # our choice: within 4 % of the best number, and cheap; see docs/privacy.md
    randomness: Literal["auto", "seeded", "secure"] = "auto"
    accountant: Literal["pld", "rdp"] = "pld"

    @property
    def is_on(self) -> bool:
        """Whether something is protected."""
        return self.unit != "none"

    @property
    def is_reproduction(self) -> bool:
        """Whether the noise is FedPEFT's own, which guarantees nothing."""
        return self.mechanism.startswith("fedpeft")

    def is_secure(self, *, is_deployed: bool) -> bool:
        """Whether there is noise, and from the operating system; see `randomness`."""
        return self.is_on and (self.randomness == "secure" or (self.randomness == "auto" and is_deployed))

    @model_validator(mode="after")
    def _one_strength(self) -> Privacy:
        if self.target_epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                "give `target_epsilon`, from which the noise is calculated, or `noise_multiplier`, not both; a run "
                "with a given noise ends before an epsilon with `max_epsilon`"
            )
        return self

    def problems(self, context: Context) -> list[str]:
        """Reports keys that have no effect or exclude each other, and what the strategy may not do."""
        if not self.is_on:
            return [*_without_unit(self)]
        strategy = context.get("strategy") if self.unit == "client" else None
        of_clients = [] if strategy is None else [*_of_clients(strategy, context), *_of_turns(self, strategy)]
        return [*_of_strength(self), *_of_clipping(self), *_of_mechanism(self), *of_clients]


def adapted(sections: Mapping[str, Any]) -> dict[str, Any]:  # Any: sections of a configuration
    """`sections` in which the strategy samples and weights as client-level privacy needs, where it is not told how.

    Amplification by sampling needs Poisson cohorts, banded noise needs clients that take turns, and the sensitivity of
    a mean is only known for uniform weights.
    """
    privacy, strategy = sections.get("privacy"), sections.get("strategy")
    if not isinstance(privacy, Privacy) or privacy.unit != "client" or not isinstance(strategy, Settings):
        return dict(sections)
    sampling = "cyclic" if privacy.mechanism == "banded" else "poisson"
    told, wanted = strategy.model_fields_set, {"sampling": sampling, "mean": Uniform()}
    changed = {key: value for key, value in wanted.items() if key in type(strategy).model_fields and key not in told}
    return {**sections, "strategy": strategy.model_copy(update=changed)}


def _set_keys(privacy: Privacy, *keys: str) -> list[str]:
    """Those of `keys` that do not have their default."""
    return [key for key in keys if getattr(privacy, key) != Privacy.model_fields[key].default]


def _without_unit(privacy: Privacy) -> Iterator[str]:
    if keys := _set_keys(privacy, *Privacy.model_fields):
        named = ", ".join(f"`privacy.{key}`" for key in keys)
        yield (
            f"{named} {'is' if len(keys) == 1 else 'are'} set, but `privacy.unit` is 'none', so that nothing is "
            f"protected; set it to 'example', 'client' or 'local'"
        )


def _of_strength(privacy: Privacy) -> Iterator[str]:
    if privacy.target_epsilon is None and privacy.noise_multiplier is None:
        yield (
            f"`privacy.unit` is {privacy.unit!r}, but neither `privacy.target_epsilon` nor `privacy.noise_multiplier` "
            f"is set; give the epsilon that the run may reach, or its noise"
        )
    if privacy.target_epsilon is not None and privacy.max_epsilon is not None:
        yield (
            "`privacy.max_epsilon` and `privacy.target_epsilon` are both set, but the noise that is calculated for a "
            "target keeps all rounds within it; remove `max_epsilon`, or replace the target by `noise_multiplier`"
        )


def _of_clipping(privacy: Privacy) -> Iterator[str]:
    if privacy.clipping != "adaptive":
        for key in _set_keys(privacy, "target_quantile", "clipping_lr", "count_noise"):
            yield f"`privacy.{key}` is set, but only `privacy.clipping` = 'adaptive' uses it, not {privacy.clipping!r}"
    elif privacy.unit != "client":
        yield (
            f"`privacy.clipping` is 'adaptive', which counts the clients of a round whose norm is below the clipping "
            f"norm: only for `privacy.unit` = 'client', not {privacy.unit!r}; use 'flat' or 'per-group'"
        )
    elif privacy.mechanism == "banded":
        yield (
            "`privacy.clipping` is 'adaptive', but the noise of `privacy.mechanism` = 'banded' is for one clipping "
            "norm in all rounds; use 'flat' or 'per-group'"
        )


def _of_mechanism(privacy: Privacy) -> Iterator[str]:
    name = f"`privacy.mechanism` is {privacy.mechanism!r}"
    if privacy.mechanism == "banded" and privacy.unit != "client":
        yield f"{name}, which is noise of the server: only for `privacy.unit` = 'client', not {privacy.unit!r}"
    if privacy.mechanism != "banded" and _set_keys(privacy, "bands"):
        yield f"`privacy.bands` is set, but only `privacy.mechanism` = 'banded' uses it, not {privacy.mechanism!r}"
    if not privacy.is_reproduction:
        return
    if privacy.unit != "example":
        yield f"{name}, which is noise of local steps: only for `privacy.unit` = 'example', not {privacy.unit!r}"
    if privacy.target_epsilon is None:
        yield (
            f"{name}, whose noise follows from `privacy.target_epsilon` and `privacy.target_delta`; give the target "
            f"instead of `privacy.noise_multiplier`"
        )
    if privacy.clipping != "flat":
        yield f"{name}, which has its own way to clip, but `privacy.clipping` is {privacy.clipping!r}; use 'flat'"


def _of_clients(strategy: Any, context: Context) -> Iterator[str]:  # Any: any strategy
    if not is_private(strategy):
        yield (
            f"`strategy.name` is {strategy.name!r}, for which no limit is known of how much one client changes the "
            f"result, as `privacy.unit` = 'client' needs; 'fedavg' has one"
        )
    elif strategy.mean.name not in (Uniform().name, UniformDeltas().name):
        yield (
            f"`strategy.mean.name` is {strategy.mean.name!r}, but how much one client changes it has no limit, as "
            f"`privacy.unit` = 'client' needs; use 'uniform', in which all clients count the same"
        )
    if strategy.min_replies > 1:
        yield (
            f"`strategy.min_replies` is {strategy.min_replies}, but with `privacy.unit` = 'client' every round counts, "
            f"because a void one would tell who was there; remove the key"
        )
    if context.get("byte_budget_mib") is not None:
        yield (
            "`byte_budget_mib` is set, but with `privacy.unit` = 'client' the bytes of a round tell how many clients "
            "were there; remove the key and set `strategy.num_rounds`"
        )


def _of_turns(privacy: Privacy, strategy: Any) -> Iterator[str]:  # Any: any strategy
    if privacy.mechanism != "banded":
        return
    if strategy.sampling != "cyclic":
        yield (
            f"`strategy.sampling` is {strategy.sampling!r}, but the noise of `privacy.mechanism` = 'banded' is for "
            f"clients that take turns; use 'cyclic'"
        )
    if strategy.cohort_rounds > 1:
        yield (
            f"`strategy.name` is {strategy.name!r}, whose cohorts stay for {strategy.cohort_rounds} rounds, but the "
            f"noise of `privacy.mechanism` = 'banded' is for clients that wait from one round to their next; use "
            f"'fedavg'"
        )
