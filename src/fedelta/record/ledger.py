"""The ledger: every byte that a run sends, by round, client, direction and group.

One row per payload. `payload_bytes` is the length of what was really serialised; `tensor_bytes` is the part
of it that is encoded tensors, and `groups` splits that part by group. The first row, of round 0, is the
frozen backbone, which every client needs once; it is kept apart from all totals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from fedelta.errors import RunError
from fedelta.federation.records import Direction, Transfer
from fedelta.record.files import JsonLines, Record, to_json


def opening_row(backbone_bytes: int) -> bytes:
    """The content of a new `ledger.jsonl`.

    Args:
        backbone_bytes: size of the frozen part of the model, which each client receives once.
    """
    row = {
        "round": 0,
        "client_id": None,
        "direction": "down",
        "payload_bytes": backbone_bytes,
        "tensor_bytes": backbone_bytes,
        "groups": {"backbone": backbone_bytes},
    }
    return f"{to_json(row)}\n".encode()


@dataclass
class RoundBytes:
    """Payload bytes of one round over all its clients."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Both directions."""
        return self.uplink_bytes + self.downlink_bytes


@dataclass
class ClientBytes:
    """Bytes to one client, or from it, so far."""

    num_payloads: int = 0
    payload_bytes: int = 0


@dataclass
class Ledger:
    """Running totals of all payloads, and the file with one row per payload.

    Only totals stay in memory: their size grows with the rounds, groups and clients, not with the payloads.

    Args:
        backbone_bytes: size of the frozen model, delivered once to each client; in no total.
        path: where `append` writes rows; None keeps the totals only. The file must start with `opening_row`.
    """

    backbone_bytes: int = 0
    path: Path | None = None
    transfers: dict[Direction, int] = field(default_factory=lambda: {"down": 0, "up": 0}, init=False)
    client_ids: set[int] = field(default_factory=set, init=False)
    rounds: dict[int, RoundBytes] = field(default_factory=dict, init=False)
    groups: dict[Direction, dict[str, int]] = field(default_factory=lambda: {"down": {}, "up": {}}, init=False)
    clients: dict[Direction, dict[int, ClientBytes]] = field(default_factory=lambda: {"down": {}, "up": {}}, init=False)
    largest_upload_bytes: int = field(default=0, init=False)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """The ledger in `path`, ready for `append`.

        Raises:
            RunError: the file is missing, empty, or a row lacks a field; the message names the line.
        """
        rows = JsonLines(path).read()
        if not rows or rows[0].get("round") != 0 or not isinstance(rows[0].get("payload_bytes"), int):
            raise RunError(f"{str(path)!r} does not start with the row of the backbone (round 0).")
        ledger = cls(backbone_bytes=rows[0]["payload_bytes"], path=path)
        ledger._count(_transfer(path, number, row) for number, row in enumerate(rows[1:], start=2))
        return ledger

    def __repr__(self) -> str:
        return f"Ledger({len(self.rounds)} rounds, {self.total_bytes:,} bytes, {len(self.client_ids)} clients)"

    @property
    def num_transfers(self) -> int:
        """Payloads of both directions so far."""
        return sum(self.transfers.values())

    @property
    def uplink_bytes(self) -> int:
        """Payload bytes from clients so far."""
        return sum(sent.uplink_bytes for sent in self.rounds.values())

    @property
    def downlink_bytes(self) -> int:
        """Payload bytes to clients so far."""
        return sum(sent.downlink_bytes for sent in self.rounds.values())

    @property
    def total_bytes(self) -> int:
        """Payload bytes of both directions so far."""
        return self.uplink_bytes + self.downlink_bytes

    @property
    def uplink_tensor_bytes(self) -> int:
        """The part of `uplink_bytes` that is encoded tensors."""
        return sum(self.groups["up"].values())

    @property
    def downlink_tensor_bytes(self) -> int:
        """The part of `downlink_bytes` that is encoded tensors."""
        return sum(self.groups["down"].values())

    @property
    def cumulative_bytes(self) -> dict[int, int]:
        """Round to the payload bytes of both directions up to its end, ascending."""
        total, cumulative = 0, {}
        for round in sorted(self.rounds):
            total += self.rounds[round].total_bytes
            cumulative[round] = total
        return cumulative

    def append(self, transfers: Sequence[Transfer]) -> None:
        """Adds the payloads of a round to the file, durably, and then to the totals.

        Raises:
            OSError: the disk is full; file and totals are as before.
        """
        if self.path is not None:
            JsonLines(self.path).append_text(_rows(transfers))
        self._count(transfers)

    def _count(self, transfers: Iterable[Transfer]) -> None:
        for transfer in transfers:
            self.transfers[transfer.direction] += 1
            self.client_ids.add(transfer.client_id)
            of_client = self.clients[transfer.direction].setdefault(transfer.client_id, ClientBytes())
            of_client.num_payloads += 1
            of_client.payload_bytes += transfer.payload_bytes
            of_round = self.rounds.setdefault(transfer.round, RoundBytes())
            if transfer.direction == "up":
                of_round.uplink_bytes += transfer.payload_bytes
                self.largest_upload_bytes = max(self.largest_upload_bytes, transfer.payload_bytes)
            else:
                of_round.downlink_bytes += transfer.payload_bytes
            groups = self.groups[transfer.direction]
            for group, num_bytes in transfer.tensor_bytes.items():
                groups[group] = groups.get(group, 0) + num_bytes


def _rows(transfers: Sequence[Transfer]) -> str:
    """A line of JSON for each payload. Most payloads of a round are alike, so what they have in common is made once."""
    ends: dict[object, str] = {}
    lines = []
    for transfer in transfers:
        groups, direction, num_bytes = transfer.tensor_bytes, transfer.direction, transfer.payload_bytes
        kind = (direction, num_bytes, *groups, *groups.values())
        if kind not in ends:
            row = {"direction": direction, "payload_bytes": num_bytes, "tensor_bytes": sum(groups.values())}
            ends[kind] = to_json({**row, "groups": groups})[1:]
        lines.append(f'{{"round": {transfer.round}, "client_id": {transfer.client_id}, {ends[kind]}\n')
    return "".join(lines)


def _transfer(path: Path, number: int, row: Record) -> Transfer:
    numbers = {key: row.get(key) for key in ("round", "client_id", "payload_bytes", "tensor_bytes")}
    wrong = [key for key, value in numbers.items() if not isinstance(value, int)]
    if row.get("direction") not in get_args(Direction):
        wrong.append("direction")
    groups = row.get("groups")
    if not isinstance(groups, dict) or not all(isinstance(value, int) for value in groups.values()):
        wrong.append("groups")
    if wrong:
        raise RunError(f"{str(path)!r}, line {number}: missing or wrong {', '.join(f'`{key}`' for key in wrong)}.")
    return Transfer(row["round"], row["client_id"], row["direction"], row["payload_bytes"], row["groups"])
