"""One cell in a process of its own: `python -m fedelta.comparison.worker RUN FAILURE [PLUGIN...]`.

The configuration comes through standard input: a line with its length in bytes, then TOML. The input stays open; when
it ends, the comparison is gone, however it went, and so is this process. A run can be killed at any moment.
"""

from __future__ import annotations

import os
import sys
import threading
import tomllib
import traceback
from pathlib import Path

from fedelta.config import Config, parse_config
from fedelta.durable import write_atomic
from fedelta.errors import FedeltaError
from fedelta.experiment import Experiment
from fedelta.plugins import load_same
from fedelta.record.rundir import CONFIG

FAILED = 1


def main() -> int:
    """Reads what to run, and runs it; the exit code of the process."""
    run, failure = Path(sys.argv[1]), Path(sys.argv[2])
    load_same(sys.argv[3:])
    text = sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    return attempt(parse_config(tomllib.loads(text.decode())), run, failure)


def attempt(config: Config, run: Path, failure: Path) -> int:
    """Begins the run at `run`, or goes on where it stopped; returns 1, with the reason in `failure`, if it failed."""
    try:
        if (run / CONFIG).exists():
            Experiment.from_run(run).resume(run)
        else:
            Experiment(config, name=run.name).run(run)
    except FedeltaError as error:
        write_atomic(failure, f"{type(error).__name__}: {error}\n")
        return FAILED
    except Exception as error:  # noqa: BLE001 one cell must not take the others with it
        write_atomic(failure, f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
        return FAILED
    return 0


def _end_with_the_input() -> None:
    # Not through `sys.stdin`, whose lock Python wants back when it ends.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(FAILED)


if __name__ == "__main__":
    sys.exit(main())
