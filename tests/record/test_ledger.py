from __future__ import annotations

import dataclasses
import json
import os

import pytest

from fedelta.errors import RunError
from fedelta.federation.records import Transfer
from fedelta.record.files import JsonLines
from fedelta.record.ledger import ClientBytes, Ledger, opening_row

FIRST = [
    Transfer(1, 0, "down", 110, {"a": 60, "b": 40}),
    Transfer(1, 3, "down", 110, {"a": 60, "b": 40}),
    Transfer(1, 0, "up", 70, {"a": 60}),
    Transfer(1, 3, "up", 50, {"b": 40}),
]
SECOND = [Transfer(2, 3, "down", 110, {"a": 60, "b": 40}), Transfer(2, 3, "up", 110, {"a": 60, "b": 40})]


def on_disk(tmp_path) -> Ledger:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(opening_row(backbone_bytes=1000))
    return Ledger.read(path)


def test_totals_of_two_rounds_by_hand():
    ledger = Ledger(backbone_bytes=1000)
    ledger.append(FIRST)
    ledger.append(SECOND)
    assert ledger.downlink_bytes == 330  # 3 payloads of 110
    assert ledger.uplink_bytes == 230  # 70 + 50 + 110
    assert ledger.total_bytes == 560
    assert ledger.downlink_tensor_bytes == 300
    assert ledger.uplink_tensor_bytes == 200  # 60 + 40 + 100
    assert ledger.groups == {"down": {"a": 180, "b": 120}, "up": {"a": 120, "b": 80}}
    assert ledger.cumulative_bytes == {1: 340, 2: 560}  # 110 + 110 + 70 + 50, then 220 more
    assert ledger.rounds[1].uplink_bytes == 120
    assert ledger.rounds[1].downlink_bytes == 220
    assert ledger.num_transfers == 6
    assert ledger.transfers == {"down": 3, "up": 3}
    assert ledger.client_ids == {0, 3}
    assert ledger.clients == {
        "down": {0: ClientBytes(1, 110), 3: ClientBytes(2, 220)},
        "up": {0: ClientBytes(1, 70), 3: ClientBytes(2, 160)},  # 50 + 110
    }


def test_the_backbone_is_in_the_file_and_in_no_total(tmp_path):
    ledger = on_disk(tmp_path)
    assert ledger.backbone_bytes == 1000
    assert ledger.total_bytes == ledger.num_transfers == 0
    row = JsonLines(ledger.path).read()[0]
    assert (row["round"], row["direction"], row["payload_bytes"]) == (0, "down", 1000)


def test_a_ledger_read_back_equals_the_one_that_wrote_it(tmp_path):
    ledger = on_disk(tmp_path)
    ledger.append(FIRST)
    ledger.append(SECOND)
    assert Ledger.read(ledger.path) == ledger


def test_a_ledger_read_back_can_be_continued(tmp_path):
    whole = on_disk(tmp_path)
    whole.append(FIRST)
    resumed = Ledger.read(whole.path)
    resumed.append(SECOND)
    assert resumed.cumulative_bytes == {1: 340, 2: 560}
    assert len(JsonLines(whole.path).read()) == 7


def test_each_payload_is_a_row(tmp_path):
    ledger = on_disk(tmp_path)
    ledger.append(FIRST)
    assert JsonLines(ledger.path).read()[3] == {
        "round": 1,
        "client_id": 0,
        "direction": "up",
        "payload_bytes": 70,
        "tensor_bytes": 60,
        "groups": {"a": 60},
    }


def test_a_full_disk_changes_neither_file_nor_totals(tmp_path, monkeypatch):
    ledger = on_disk(tmp_path)
    ledger.append(FIRST)
    before = ledger.path.read_bytes()

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        ledger.append(SECOND)
    monkeypatch.undo()
    assert ledger.path.read_bytes() == before
    assert ledger.total_bytes == 340
    assert Ledger.read(ledger.path) == ledger


def test_a_ledger_without_its_first_row_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(RunError, match="does not start with the row of the backbone"):
        Ledger.read(path)
    JsonLines(path).append([{"round": 1}])
    with pytest.raises(RunError, match="does not start with the row of the backbone"):
        Ledger.read(path)


def test_a_row_that_lacks_fields_is_named_with_its_line(tmp_path):
    ledger = on_disk(tmp_path)
    JsonLines(ledger.path).append([{"round": 1, "client_id": 2, "direction": "sideways", "groups": {"a": "x"}}])
    message = "line 2: missing or wrong `payload_bytes`, `tensor_bytes`, `direction`, `groups`"
    with pytest.raises(RunError, match=message):
        Ledger.read(ledger.path)


def test_rows_count_alike_however_they_are_written(tmp_path):
    ledger = on_disk(tmp_path)
    ledger.append(FIRST)
    ledger.append(SECOND)
    other = tmp_path / "edited.jsonl"
    lines = ledger.path.read_text().splitlines(keepends=True)
    # Another order of keys, other spaces, and a key that comes twice, of which the last counts.
    lines[2] = json.dumps(dict(reversed(json.loads(lines[2]).items()))) + "\n"
    lines[3] = json.dumps(json.loads(lines[3]), separators=(",", ":")) + "\n"
    lines[4] = lines[4].replace('"client_id": 3, ', '"client_id": 3, "client_id": 3, ')
    lines[6] = lines[6].replace('"client_id": 3, ', '"client_id": 4, "client_id": 3, ')
    other.write_text("".join(lines))
    assert dataclasses.replace(Ledger.read(other), path=None) == dataclasses.replace(
        Ledger.read(ledger.path), path=None
    )
    assert Ledger.read(other).clients == ledger.clients


def test_a_row_like_another_one_is_read_to_its_beginning(tmp_path):
    ledger = on_disk(tmp_path)
    ledger.append(FIRST)
    lines = ledger.path.read_text().splitlines(keepends=True)
    ledger.path.write_text("".join([*lines, lines[1].replace('"client_id": 0', '"client_id": null')]))
    with pytest.raises(RunError, match="line 6: missing or wrong `client_id`"):
        Ledger.read(ledger.path)


def test_payloads_of_many_lengths_are_all_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("fedelta.record.ledger._MAX_KINDS", 2)
    ledger = on_disk(tmp_path)
    ledger.append([Transfer(1, client, "up", 100 + client, {"a": 50 + client}) for client in (0, 1, 2, 3, 0, 3)])
    again = Ledger.read(ledger.path)
    assert again == ledger
    assert again.uplink_bytes == 6 * 100 + 9  # 0 + 1 + 2 + 3 + 0 + 3 more
    assert again.clients["up"][3] == ClientBytes(2, 206)


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    ledger = on_disk(tmp_path)
    ledger.append(FIRST)
    with ledger.path.open("a") as file:
        file.write('{"round": 2, "client_id": 3, "dire')
    assert Ledger.read(ledger.path).num_transfers == 4
