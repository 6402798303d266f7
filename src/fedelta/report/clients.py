"""The section "Clients": the number of examples of each class that clients hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.record.history import History
from fedelta.record.numbers import count
from fedelta.record.partition import Partition
from fedelta.report.elements import Picture, picture
from fedelta.report.plots import label_distribution, share_of_clients


@dataclass(frozen=True)
class ClientSection:
    """The content of clients.html."""

    template: ClassVar[str] = "clients.html"
    title: str
    text: str
    distribution: Picture


def clients(runs: Sequence[History]) -> list[ClientSection]:
    """One section per partition by class; runs with equal partitions share a section."""
    names_by_partition: list[tuple[Partition, list[str]]] = []
    for run in runs:
        if run.partition is None or not run.partition.class_names:
            continue
        for partition, names in names_by_partition:
            if partition == run.partition:
                names.append(run.name)
                break
        else:
            names_by_partition.append((run.partition, [run.name]))
    return [
        _section(partition, f"p{index}", f"Clients of {', '.join(names)}" if len(runs) > 1 else "Clients")
        for index, (partition, names) in enumerate(names_by_partition)
    ]


def _section(partition: Partition, prefix: str, title: str) -> ClientSection:
    one, _ = partition.kind
    says = f"Examples and share of each {one} by client"
    return ClientSection(
        title, _sizes(partition), picture(label_distribution(partition), prefix, "", says=says, is_wide=True)
    )


def _sizes(partition: Partition) -> str:
    """A sentence on the numbers of examples and classes that the clients hold."""
    sizes = [sum(row) for row in partition.counts.values()]
    num_held = sorted(sum(number > 0 for number in row) for row in partition.counts.values())
    _, several = partition.kind
    holders = "1 client holds" if len(sizes) == 1 else f"{count(len(sizes))} clients hold"
    num_known, num_all = sum(map(any, zip(*partition.counts.values(), strict=True))), len(partition.class_names)
    known = f"{num_known} of {count(num_all)}" if num_known < num_all else count(num_all)
    middle = f" (median {num_held[len(num_held) // 2]})" if num_held[0] < num_held[-1] else ""
    return (
        f"{holders} {count(sum(sizes))} training examples of {known} {several}: "
        f"{_range(min(sizes), max(sizes))} examples and {_range(num_held[0], num_held[-1])} {several} each{middle}."
        f"{_others(partition)}"
    )


def _range(low: int, high: int) -> str:
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def _others(partition: Partition) -> str:
    """Sentences on clients that are held out, and on those that are not drawn."""
    num, every = len(partition.held_out), share_of_clients(partition)
    held_out = f" {count(num)} more {'is' if num == 1 else 'are'} held out." if num else ""
    return held_out + (f" One client in {every} is drawn." if every > 1 else "")
