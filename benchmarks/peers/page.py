"""docs/results/peers.md, and the table in docs/results/index.md, from the results of the benchmark.

    .venv/bin/python -m benchmarks.peers.page [--results FILE] [--page FILE] [--summary docs/results/index.md]

The benchmark writes the page itself; this writes it again, with `--summary` also the table between two comments there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.goals import OURS, Reached, best_peer, reached
from benchmarks.peers.side import ROOT, SIDES
from benchmarks.peers.works import WORKS

RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
PAGE = ROOT / "docs" / "results" / "peers.md"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
WHAT = {
    "round": "seconds a round",
    "first": "seconds of the first round of a run, which fills its cache, to those of a later round of",
    "memory": "peak memory",
}
Results = Mapping[str, object]


def main() -> None:
    """Writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--summary", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    options.page.write_text(page(results))
    if options.summary:
        options.summary.write_text(with_table(options.summary.read_text(), summary_table(results)))


def page(results: Results) -> str:
    """The whole page, in Markdown."""
    works = results["works"]
    parts = [_top(results), _behind(works), *(_section(name, works[name]) for name in WORKS if name in works)]
    if results["growth"]:
        parts.append(_growth(results["growth"]))
    parts.append(_sides(results))
    return "\n\n".join(parts) + "\n"


def summary_table(results: Results) -> str:
    """Seconds and memory of fedelta and of the best peer, work by work."""
    lines = [
        "| work | fedelta | best peer | ratio | goal | MiB | MiB of that peer |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for name, record in results["works"].items():
        sides, best = record["sides"], best_peer(record["sides"])
        if best is None or not sides.get(OURS, {}).get("seconds"):
            continue
        ours, theirs = _median(sides[OURS]), _median(sides[best])
        goal = next((f"{goal.limit:g}" for goal in WORKS[name].goals if goal.what == "round"), "")
        lines.append(
            f"| {record['title']} | {_seconds(ours)} | {_seconds(theirs)}, {SIDES[best].title} | {ours / theirs:.2g} "
            f"| {goal} | {sides[OURS]['peak_mib']:,.0f} | {sides[best]['peak_mib']:,.0f} |"
        )
    return "\n".join(lines)


def with_table(text: str, table: str, comments: tuple[str, str] = (BEGIN, END)) -> str:
    """`text` with `table` between the two comments, in place of what is there.

    Raises:
        ValueError: the comments are not there, once each, in this order.
    """
    first, last = comments
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in rest or last in after:
        raise ValueError(f"expected {first!r} and after it {last!r}, once each; put them around the table")
    return f"{before}{first}\n\n{table}\n\n{last}{after}"


def _top(results: Results) -> str:
    machine = results["machine"]
    return f"""# Speed: fedelta and other frameworks on the same work

    make bench-peers

The same network, weights, images, order of batches, optimizer (plain SGD) and steps on every side; all clients take
part in every round, and nobody evaluates. Before anything is timed, the params of each side after one or two rounds are
compared with those of a bare PyTorch loop, and a side that differs has no times. Then all sides are started, and take
turns, a round each, in an order that moves on; a round is from the word to begin to the word that all is done. Memory
is the highest sum of the proportional set sizes (PSS) of all processes of a side, 20 samples a second, from its start
to the end of the compared rounds, while no other side is there.

{machine["processor"]}, {machine["cpu_count"]} cores; torch {machine["torch"]}, Python {machine["python"]}. *Ratio* is
fedelta's median to that of the side; below 1 fedelta is faster."""


def _behind(works: Mapping[str, Results]) -> str:
    """Where fedelta is slower or larger than another side, bare loops among them, or misses a goal."""
    lines = []
    for name, record in works.items():
        sides = record["sides"]
        lines += [f"- {name}: {text}." for text in (_slower(sides), _larger(sides)) if text]
        lines += [f"- {name}: {_goal(one)}" for one in reached(WORKS[name], sides) if not one.is_met]
        for side, figures in sides.items():
            if figures["error"]:
                lines.append(f"- {name}: no times for {SIDES[side].title}: {figures['error']}.")
    text = (
        "\n".join(lines) if lines else "Nowhere in these works: it is the fastest, the smallest, and meets all goals."
    )
    return f"## Where fedelta is behind\n\n{text}"


def _slower(sides: Results) -> str:
    """All sides that take less time than fedelta."""
    seconds = {name: _median(figures) for name, figures in sides.items() if figures["seconds"]}
    ratios = _above_one(seconds, "as long as with")
    return f"a round takes {ratios}" if ratios else ""


def _larger(sides: Results) -> str:
    """All sides that take less memory than fedelta."""
    ratios = _above_one({name: figures["peak_mib"] for name, figures in sides.items() if figures["seconds"]}, "that of")
    return f"the peak of memory is {ratios}" if ratios else ""


def _above_one(values: Mapping[str, float], phrase: str) -> str:
    """How many times its value fedelta has, for each side with a smaller one, the smallest first."""
    others = sorted((value, name) for name, value in values.items() if value < values.get(OURS, 0))
    return ", ".join(f"{values[OURS] / value:.2f} times {phrase} {SIDES[name].title}" for value, name in others)


def _section(name: str, record: Results) -> str:
    sides = record["sides"]
    ours = _median(sides[OURS]) if sides.get(OURS, {}).get("seconds") else None
    lines = [
        f"## {name}: {record['title']}",
        "",
        "| side | seconds a round, median | range | ratio | peak MiB | largest difference of a parameter | loss |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for side, figures in sides.items():
        if figures["error"]:
            lines.append(f"| {SIDES[side].title} | {figures['error']} | | | | | |")
            continue
        median = _median(figures)
        low, high = min(figures["seconds"]), max(figures["seconds"])
        ratio = f"{ours / median:.2g}" if ours and side != OURS else ""
        lines.append(
            f"| {SIDES[side].title} | {_seconds(median)} | {_seconds(low)} to {_seconds(high)} | {ratio} "
            f"| {figures['peak_mib']:,.0f} | {figures['difference']:.0e} | {figures['loss']:.4f} |"
        )
    goals = [f"- {_goal(one)}" for one in reached(WORKS[name], sides)]
    return "\n".join([*lines, "", _made(record), "", *goals]).rstrip()


def _made(record: Results) -> str:
    repeats = record["repeats"]
    commit = f"commit {record['commit'][:10]}" if record.get("commit") else "commit unknown"
    return f"{repeats} round{'s' * (repeats > 1)} of each side, {record['date']}, {commit}: `{record['command']}`."


def _goal(one: Reached) -> str:
    return (
        f"{WHAT[one.goal.what]} {'' if one.goal.what == 'first' else 'against '}{SIDES[one.side].title}: "
        f"**{one.ratio:.2g}**, goal {one.goal.limit:g}, {'met' if one.is_met else 'not met'}."
    )


def _growth(rows: list[Results]) -> str:
    lines = [
        "## Growth: fedelta alone",
        "",
        "| | clients | cohort | workers | seconds a round, median | microseconds a client | peak MiB |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        median = statistics.median(row["seconds"])
        lines.append(
            f"| {row['title']} | {row['clients']:,} | {row['cohort']:,} | {row['workers']} | {_seconds(median)} "
            f"| {median / row['cohort'] * 1e6:,.0f} | {row['peak_mib']:,.0f} |"
        )
    return "\n".join(lines)


def _sides(results: Results) -> str:
    lines = ["## What each side does", ""]
    for name, side in SIDES.items():
        if not any(name in record["sides"] for record in results["works"].values()):
            continue
        lines.append(f"- **{side.title}**: {side.does}")
    lines += ["", "Versions: " + ", ".join(results["versions"]) + "."]
    lines += [f"\nLeft out: {name}, {reason}." for name, reason in results["left_out"].items()]
    lines.append("\nThe programs are in [benchmarks/peers/](../../benchmarks/peers/).")
    return "\n".join(lines)


def _median(figures: Results) -> float:
    return statistics.median(figures["seconds"])


def _seconds(value: float) -> str:
    """Three digits.

    >>> _seconds(12.3456), _seconds(0.0123456)
    ('12.3', '0.0123')
    """
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
