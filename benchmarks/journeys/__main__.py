"""One small work written for three frameworks: "own CNN, own tensors, 10 clients, LoRA, 5 rounds, report".

    .venv/bin/python benchmarks/peers/environments.py .peers --environments pfl flower
    .venv/bin/python -m benchmarks.journeys --cache .peers

Runs every side in turns, counts its lines, and writes the table between two comments in docs/results/journeys.md.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from benchmarks.journeys.prepare import prepare
from benchmarks.peers.page import with_table
from benchmarks.peers.side import ROOT, Side, in_namespace, interpreter, surroundings

SIDES = {
    "ours": (
        Side("fedelta", "ours", None, 0, None),
        "yes, of every tensor and round",
        "HTML page: measures, traffic, classes, clients; run directory, adapter with model card",
    ),
    "flower": (
        Side("Flower and PEFT", "flower", "flower", 0, None, is_alone=True),
        "no; a deployed run has the total of its traffic",
        "measures by round in the result, which the script prints; no file",
    ),
    "pfl": (
        Side("pfl-research and PEFT", "pfl_research", "pfl", 0, None),
        "no",
        "CSV of measures by round, written by a callback",
    ),
}
PROGRAMS = Path(__file__).resolve().parent / "sides"
PAGE = ROOT / "docs" / "results" / "journeys.md"
BEGIN, END = "<!-- lines: begin -->", "<!-- lines: end -->"
_IS_BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """One run of a side.

    Args:
        seconds: from the start of its process to the end.
        accuracy: on the test set after the last round.
    """

    seconds: float
    accuracy: float


def main() -> None:
    """Runs all sides and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / ".peers", help="where the peers' environments are")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    runs: dict[str, list[Ended]] = {name: [] for name in SIDES}
    for _ in range(options.repeats):
        for name, (side, _, _) in SIDES.items():
            runs[name].append(run(side, options.cache.resolve()))
            print(side.title, runs[name][-1], flush=True)
    options.page.write_text(with_table(options.page.read_text(), table(runs), (BEGIN, END)))


def run(side: Side, environments: Path) -> Ended:
    """Runs a side in an empty folder.

    Raises:
        SystemExit: it failed; its output is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="journey") as folder:
        prepare(Path(folder) / "given.pt")
        environment = surroundings(side, folder, None) | {"JOURNEY_FILE": f"{folder}/given.pt"}
        alone = in_namespace() if side.is_alone else []
        command = [*alone, str(interpreter(side, environments)), str(PROGRAMS / f"{side.module}.py")]
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{side.title} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return Ended(seconds, float(done.stdout.split()[-1]))


def num_lines(source: str) -> int:
    """Number of lines of code: those with anything but space, comments and docstrings."""
    covered: set[int] = set()
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type not in _IS_BLANK:
            covered.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        if is_documented:
            covered.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(covered)


def table(runs: dict[str, list[Ended]]) -> str:
    """One line for each side."""
    lines = ["| | lines | seconds | accuracy | bytes reported | report |", "| --- | --: | --: | --: | --- | --- |"]
    for name, (side, sent, report) in SIDES.items():
        seconds = min(ended.seconds for ended in runs[name])
        accuracy = statistics.median(ended.accuracy for ended in runs[name])
        count = num_lines((PROGRAMS / f"{side.module}.py").read_text())
        lines.append(f"| {side.title} | {count} | {seconds:.1f} | {accuracy:.1%} | {sent} | {report} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
