"""The section "Clients": the number of examples of each class that clients hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.record.history import History
from fedelta.record.numbers import count
from fedelta.record.partition import Partition
from fedelta.report.elements import Picture, picture
from fedelta.report.plots import label_distribution


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
    return (
        f"{holders} {count(sum(sizes))} training examples of {count(len(partition.class_names))} {several}: "
        f"{count(min(sizes))} to {count(max(sizes))} examples and {num_held[0]} to {num_held[-1]} {several} each "
        f"(median {num_held[len(num_held) // 2]})."
    )
