"""Makes an environment for each peer below a folder, with the versions in requirements/, and again when these change.

    python benchmarks/peers/environments.py FOLDER [--sides pfl flower] [--python312 python3.12]

BlazeFL 2.0.3 asks for Python 3.12. Where `--python312` is not given, it is installed for the Python that runs this,
which has to be 3.11 or newer: all of its code is valid there, and nothing of it is changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
NEEDS_PYTHON_312 = {"blazefl"}
MADE = ".made"
REASONS = "left-out.json"


def main() -> None:
    """Makes what is missing, and writes which environments could not be made, and why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--environments", nargs="+", choices=names, default=names)
    parser.add_argument("--python312", default="", help="interpreter for peers that ask for Python 3.12 or newer")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    reasons = {}
    for name in options.environments:
        python = options.python312 if options.python312 and name in NEEDS_PYTHON_312 else sys.executable
        if reason := made(name, options.folder / name, python):
            reasons[name] = reason
            print(f"{name} is left out: {reason}", file=sys.stderr)
    (options.folder / REASONS).write_text(json.dumps(reasons) + "\n")


def made(name: str, place: Path, python: str) -> str:
    """Makes the environment `name` at `place`; returns why that failed, or nothing."""
    if shutil.which(python) is None:
        return f"there is no interpreter {python!r}"
    pins = (REQUIREMENTS / f"{name}.txt").read_text()
    stamp = pins if python == sys.executable else f"{python}\n{pins}"
    if (place / MADE).exists() and (place / MADE).read_text() == stamp:
        return ""
    print(f"making the environment of {name} in {place}", flush=True)
    try:
        for command in commands(place, python, pins.splitlines()):
            subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(place, ignore_errors=True)
        return f"`{' '.join(map(str, error.cmd[-3:]))}` failed"
    (place / MADE).write_text(stamp)
    return ""


def commands(place: Path, python: str, pins: list[str]) -> list[list[str]]:
    """What is run to make an environment.

    torch goes first: given a choice of builds, pip then settles on it before anything that depends on torch can ask for
    another. A package that asks for a newer Python is last, without a look at what it asks for.
    """
    unchecked = [pin for pin in pins if pin.partition("==")[0] in NEEDS_PYTHON_312]
    torch = [pin for pin in pins if pin.startswith("torch==")]
    pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-qq"]
    rest = [pin for pin in pins if pin and pin not in unchecked]
    steps = [[python, "-m", "venv", "--clear", str(place)], [*pip, *torch], [*pip, *rest]]
    return [*steps, [*pip, "--no-deps", "--ignore-requires-python", *unchecked]] if unchecked else steps


if __name__ == "__main__":
    main()
