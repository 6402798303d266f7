"""Runs one cell in a new process: `python -m fedelta.comparison.worker RUN FAILURE [PLUGIN...]`.

The configuration comes through standard input: a line with its length in bytes, then TOML. The input stays open; when
it ends, the comparison is gone, however it went, and so is this process. A run can be killed at any moment.
"""

from __future__ import annotations

import os
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from fedelta.config import Config, parse_config
from fedelta.durable import write_atomic
from fedelta.errors import FedeltaError
from fedelta.experiment import Experiment
from fedelta.plugins import load_same, suspect
from fedelta.record.rundir import CONFIG

FAILED = 1


def main() -> int:
    """Reads the configuration and runs the cell; returns the exit code."""
    run, failure, *plugins = sys.argv[1:]
    text = sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    return run_cell(text.decode(), plugins, Path(run), Path(failure))


def run_cell(config: str, plugins: Sequence[str], run: Path, failure: Path) -> int:
    """Runs a cell in this process; returns its exit code.

    Args:
        config: the configuration as TOML.
        plugins: those that it needs, as `for_processes` gives them.
        run: the run directory; a run that is there already goes on.
        failure: file for the reason if the cell fails.
    """

    def read() -> Config:
        load_same(plugins)
        return parse_config(tomllib.loads(config))

    return _attempt(lambda: _run(read(), run), failure)


def attempt(config: Config, run: Path, failure: Path) -> int:
    """Like `run_cell`, in a process that has loaded the plug-ins."""
    return _attempt(lambda: _run(config, run), failure)


def _run(config: Config, run: Path) -> None:
    if (run / CONFIG).exists():
        Experiment.from_run(run).resume(run, writes_page=False)
    else:
        Experiment(config, name=run.name).run(run, writes_page=False)


def _attempt(action: Callable[[], None], failure: Path) -> int:
    """Runs `action`; returns 0, or 1 with the reason in the file `failure` if it fails."""
    try:
        action()
    except FedeltaError as error:
        write_atomic(failure, f"{type(error).__name__}: {error}\n")
        return FAILED
    # SystemExit too: a plug-in that calls `sys.exit(0)` has not finished the run.
    except (Exception, SystemExit) as error:  # noqa: BLE001 one cell must not take the others with it
        reason = suspect(error) or error
        write_atomic(failure, f"{type(reason).__name__}: {reason}\n\n{traceback.format_exc()}")
        return FAILED
    return 0


def _end_with_the_input() -> None:
    # Not through `sys.stdin`, whose lock Python needs at exit.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(FAILED)


if __name__ == "__main__":
    sys.exit(main())
