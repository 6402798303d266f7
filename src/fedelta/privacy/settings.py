"""Section `[privacy]`: whom a run protects, how strongly, and by which noise.

Units of privacy, each with its neighbouring relation and the party that must be trusted:

    example   one example of one client, added or removed; nobody is trusted: uploads are private before they are sent
    client    one client with all of its data, added or removed; the server is trusted to clip and to add the noise
    local     all data of a client, replaced by any other; nobody is trusted
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from fedelta.aggregation.means import Uniform
from fedelta.settings import Context, Settings

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
        """Whether noise comes from the operating system; see `randomness`."""
        return self.randomness == "secure" or (self.randomness == "auto" and is_deployed)

    @model_validator(mode="after")
    def _one_strength(self) -> Privacy:
        if self.target_epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                "give `target_epsilon`, from which the noise is calculated, or `noise_multiplier`, not both; a run "
                "with a given noise ends before an epsilon with `max_epsilon`"
            )
        return self

    def problems(self, context: Context) -> list[str]:
        """Reports what contradicts the guarantee."""
        return []


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
