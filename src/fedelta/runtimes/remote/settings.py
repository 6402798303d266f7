"""Section `[deployment]`: how long the server of a deployment waits for its sites, and what they measure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedelta.runtimes.stability import Stability
from fedelta.settings import Context, Settings


class Deployment(Settings):
    """How a server works with its sites; a simulation ignores it.

    Args:
        min_sites: the run starts with at least as many sites; a round with fewer is counted and reported.
        start_seconds: how long the start waits for the registered sites; then it goes on with `min_sites` or ends.
        round_seconds: the deadline: how long a message may take at most, and how long a round waits for a site of
            which no earlier round is known.
        min_grace_seconds: how long a round waits for a site at least, and for one that has lost its connection.
        grace_factor: a round waits for a site this many times as long as the slowest of its last rounds took.
        wait_seconds: how long a round waits for more sites when fewer than `min_sites` are connected; once, until
            another site comes, but in every round in which there is none at all.
        evaluate: who measures the model after a round: the server on its test set, or the sites on theirs.
        site_measures: when each site measures the model on its own test set, beside `evaluate`: after the last round,
            never, or every so many rounds.
        max_message_mib: the longest message that is sent or accepted.
    """

    min_sites: int = Field(default=2, ge=1)  # one site alone learns nothing from others
    start_seconds: float = Field(default=300.0, gt=0)  # our choice: time to start a program at another place
    # Our choice. In its first round a site loads the model and computes what it caches, and its data may be large; an
    # unreachable site costs this once.
    round_seconds: float = Field(default=1800.0, gt=0)
    # It is noticed after 40 s that a site has vanished; the rest is for its way back.
    min_grace_seconds: float = Field(default=90.0, ge=0)
    # Our choice: twice the time would lose a site whose machine begins to do something else beside.
    grace_factor: float = Field(default=3.0, ge=1)
    wait_seconds: float = Field(default=600.0, ge=0)  # our choice: a restart of a machine or of a router
    evaluate: Literal["server", "sites"] = "server"
    site_measures: Literal["last", "never"] | Annotated[int, Field(ge=1)] = "last"
    max_message_mib: int = Field(default=512, ge=1)  # Flower needs six times as much memory at the server

    @model_validator(mode="after")
    def _grace_is_within_the_deadline(self) -> Deployment:
        if self.min_grace_seconds > self.round_seconds:
            raise ValueError(
                f"`min_grace_seconds` is {self.min_grace_seconds:g}, expected at most `round_seconds`, which is "
                f"{self.round_seconds:g}"
            )
        return self

    @property
    def max_message_bytes(self) -> int:
        """`max_message_mib` in bytes."""
        return self.max_message_mib * 2**20

    def problems(self, context: Context) -> list[str]:
        """Reports simulated failures in a deployment, which has real ones."""
        if context.get("runtime.name") != "flower" or context.get("stability") in (None, Stability()):
            return []
        problem = (
            "`[stability]` lets clients of a simulation fail, but `runtime.name` is 'flower', where the failures are "
            "real: remove the section"
        )
        return [problem]
