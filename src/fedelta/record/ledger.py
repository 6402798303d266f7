"""The ledger: every byte that a run sends, by round, client, direction and group.

One row per payload. `payload_bytes` is the length of what was really serialised; `tensor_bytes` is the part
of it that is encoded tensors, and `groups` splits that part by group. The first row, of round 0, is the
frozen backbone, which every client needs once; it is kept apart from all totals.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from fedelta.errors import RunError
from fedelta.federation.records import Direction, Transfer
from fedelta.record.files import JsonLines, Record, to_json

# A row as `_rows` writes it: round, client and the rest, which many rows have in common.
_ROW = re.compile(rb'\{"round": (0|[1-9]\d*), "client_id": (0|[1-9]\d*), (.*)', re.DOTALL)
_MAX_KINDS = 10_000  # remembered ends of rows; a codec whose payloads vary in length has as many as rows


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
        log = JsonLines(path)
        lines = log.lines()
        first = log.parse(1, next(lines, b"{}"))
        if first.get("round") != 0 or not isinstance(first.get("payload_bytes"), int):
            raise RunError(f"{str(path)!r} does not start with the row of the backbone (round 0).")
        ledger = cls(backbone_bytes=first["payload_bytes"], path=path)
        ledger._read_rows(log, lines)
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
        for transfer in transfers:
            self._count(transfer)

    def _read_rows(self, log: JsonLines, lines: Iterator[bytes]) -> None:
        """Counts the rows after the first. Of those that differ in round and client only, one is parsed."""
        kinds: dict[bytes, Transfer] = {}
        in_rounds, of_clients = Counter[tuple[bytes, bytes]](), Counter[tuple[bytes, bytes]]()
        for number, line in enumerate(lines, start=2):
            row = _ROW.fullmatch(line)
            if row is None or row[3] not in kinds:
                transfer = _transfer(log.path, number, log.parse(number, line))
                if (
                    row is None
                    or len(kinds) >= _MAX_KINDS
                    or any(key in row[3] for key in (b'"round"', b'"client_id"'))
                ):
                    self._count(transfer)
                    continue
                kinds[row[3]] = transfer
            in_rounds[row[1], row[3]] += 1
            of_clients[row[2], row[3]] += 1
        for (round, kind), num in in_rounds.items():
            self._count_in_round(int(round), kinds[kind], num)
        for (client_id, kind), num in of_clients.items():
            self._count_of_client(int(client_id), kinds[kind], num)

    def _count(self, transfer: Transfer) -> None:
        self._count_in_round(transfer.round, transfer, 1)
        self._count_of_client(transfer.client_id, transfer, 1)

    def _count_in_round(self, round: int, kind: Transfer, num: int) -> None:
        """Adds `num` payloads like `kind` to the totals of all clients."""
        self.transfers[kind.direction] += num
        of_round = self.rounds.setdefault(round, RoundBytes())
        if kind.direction == "up":
            of_round.uplink_bytes += num * kind.payload_bytes
            self.largest_upload_bytes = max(self.largest_upload_bytes, kind.payload_bytes)
        else:
            of_round.downlink_bytes += num * kind.payload_bytes
        groups = self.groups[kind.direction]
        for group, num_bytes in kind.tensor_bytes.items():
            groups[group] = groups.get(group, 0) + num * num_bytes

    def _count_of_client(self, client_id: int, kind: Transfer, num: int) -> None:
        """Adds `num` payloads like `kind` to the totals of a client."""
        self.client_ids.add(client_id)
        of_client = self.clients[kind.direction].setdefault(client_id, ClientBytes())
        of_client.num_payloads += num
        of_client.payload_bytes += num * kind.payload_bytes


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
