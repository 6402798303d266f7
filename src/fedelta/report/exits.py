"""The exits of a run, for the section "Exits" of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import ValidationError

from fedelta.engine.exits import ExitSettings
from fedelta.errors import ConfigError, RunError
from fedelta.record.compute import Compute, area
from fedelta.record.history import History
from fedelta.record.ledger import ClientBytes
from fedelta.tasks.base import Measure


@dataclass(frozen=True)
class TierTraffic:
    """The clients that run the same number of blocks.

    Args:
        depth: number of their blocks.
        num_clients: number of clients in the tier, including those that were in no cohort.
        downlink_bytes: mean download of a client of the tier in a round with it; None if there was no such round.
        uplink_bytes: likewise for uploads.
    """

    depth: int
    num_clients: int
    downlink_bytes: float | None
    uplink_bytes: float | None


@dataclass(frozen=True)
class Exits:
    """The exits of a run, lowest first: E of them.

    Args:
        measure: the primary measure of the run.
        by_round: number of each evaluated round to the measure at each exit, [E].
        compute: the cost of an answer at each exit; empty if it was not measured.
        tiers: of the clients, by depth; empty if all run the whole model or depths are unknown.
        problem: why depths are unknown; empty if they are known.
    """

    measure: Measure
    by_round: Mapping[int, tuple[float, ...]]
    compute: Compute
    tiers: tuple[TierTraffic, ...] = ()
    problem: str = ""

    @cached_property
    def last(self) -> tuple[float, ...]:
        """The measure at each exit, [E], in the last evaluated round."""
        return self.by_round[max(self.by_round)]

    @property
    def flops_area(self) -> float | None:
        """`area` over FLOPs; None if unknown."""
        return area(self.last, self.compute.flops) if self.compute.flops else None

    @property
    def milliseconds_area(self) -> float | None:
        """`area` over milliseconds; None if unknown."""
        return area(self.last, self.compute.milliseconds) if self.compute.milliseconds else None


def read_exits(run: History) -> Exits | None:
    """The exits of `run`; None if it has none, or if no round was evaluated.

    Raises:
        RunError: section `[exits]` of its configuration is invalid.
    """
    name = run.primary.name
    by_round = {
        record["round"]: tuple(record["measures_by_exit"][name])
        for record in run.rounds
        if "measures_by_exit" in record
    }
    if not by_round:
        return None
    compute = run.compute or Compute(None, None)
    depths, problem = _depths(run, len(by_round[max(by_round)]))
    return Exits(run.primary, by_round, compute, _tiers(run, depths), problem)


def _depths(run: History, num_exits: int) -> tuple[dict[int, int], str]:
    """Client id to depth (empty without tiers), and why depths are unknown ("" if they are known)."""
    try:
        settings = ExitSettings.model_validate(run.config.get("exits", {}))
    except ValidationError as error:
        raise RunError(f"{str(run.path)!r}: `[exits]` is not valid: {error.errors()[0]['msg']}.") from error
    seed = run.config.get("seed")
    if not settings.has_tiers:
        return {}, ""
    if run.partition is None or not isinstance(seed, int):
        return {}, "the run does not tell its clients and its seed"
    # Depths depend on the positions among all clients, held-out ones included.
    try:
        depths = settings.depths(run.partition.clients, num_exits, seed)
    except ConfigError as error:  # the file of tiers may have been deleted
        return {}, "; ".join(error.problems)
    return {client_id: depths[client_id] for client_id in run.partition.counts}, ""


def _tiers(run: History, depths: Mapping[int, int]) -> tuple[TierTraffic, ...]:
    down, up = run.ledger.clients["down"], run.ledger.clients["up"]
    return tuple(
        TierTraffic(
            depth,
            num_clients,
            _mean(down[client] for client in depths if depths[client] == depth and client in down),
            _mean(up[client] for client in depths if depths[client] == depth and client in up),
        )
        for depth, num_clients in sorted(Counter(depths.values()).items())
    )


def _mean(sent: Iterable[ClientBytes]) -> float | None:
    """Mean bytes of a payload; None without any."""
    clients = list(sent)
    num_payloads = sum(client.num_payloads for client in clients)
    return sum(client.payload_bytes for client in clients) / num_payloads if num_payloads else None
