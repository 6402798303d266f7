"""Which tuning method works on which family of transformers: builds each small, tries all, and writes the matrix.

    .venv/bin/python -m benchmarks.families --out docs/families.md [--jobs 2] [--families bert vit] [--methods lora]

Every family is saved as a small checkpoint (`small.py`), opened as a user would, and tried with every method
(`probe.py`), in a new process with limits of time and memory. Results are kept as JSON in `--keep`, so that a
part can be repeated: `--families` and `--methods` say which.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import matrix, small

MEMORY_BYTES = 6 * 2**30
SECONDS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=None)
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=Path("build/families"), help="where results are kept, as JSON")
    parser.add_argument("--out", type=Path, help="the matrix in Markdown; of all results that are kept")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    _warm_up()
    chosen = options.families or [family for family in small.families() if family not in small.ELSEWHERE]
    run(chosen, options.methods, options.keep, options.jobs)
    if options.out:
        options.out.write_text(matrix.page(options.keep))


def run(families: Sequence[str], methods: Sequence[str] | None, keep: Path, jobs: int) -> None:
    """Tries every family in a new process, `jobs` at a time."""
    waiting, running = list(families), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            family = waiting.pop(0)
            running[_start(family, methods, keep)] = (family, time.monotonic())
        pid, status = os.wait()
        family, since = running.pop(pid)
        if status:
            facts = {"error": f"ended by status {status}: more than {SECONDS} s or {MEMORY_BYTES / 2**30:.0f} GiB"}
            (keep / f"{family}.json").write_text(json.dumps(facts))
        print(matrix.line(keep, family), f"{time.monotonic() - since:.1f} s", flush=True)


def _warm_up() -> None:
    """Loads what every family needs, before the first process is split off."""
    import logging
    import warnings

    import transformers

    from benchmarks import probe  # noqa: F401

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for family in ("bert", "vit"):
        with tempfile.TemporaryDirectory() as directory:
            small.save(family, Path(directory))


def _start(family: str, methods: Sequence[str] | None, keep: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        signal.alarm(SECONDS)
        _try_family(family, methods, keep / f"{family}.json")
        status = 0
    finally:
        os._exit(status)


def _try_family(family: str, methods: Sequence[str] | None, file: Path) -> None:
    import torch
    from benchmarks.probe import METHODS, probe, rows_for

    from fedelta.errors import InputError
    from fedelta.models.hub import build
    from fedelta.models.source import ModelSource

    known = json.loads(file.read_text()) if file.exists() else {}
    facts = {"cells": known.get("cells", {})}
    with tempfile.TemporaryDirectory() as directory:
        try:
            small.save(family, Path(directory))
        except Exception as error:  # noqa: BLE001 the configuration's fault, not fedelta's
            file.write_text(json.dumps({"unbuilt": f"{type(error).__name__}: {str(error)[:200]}"}))
            return
        try:
            backbone = build(ModelSource(source=directory, image_size=small.image_size(family)), small.CLASSES, seed=0)
            rows = rows_for(backbone)
            with torch.no_grad():
                backbone.logits(rows.fetch(torch.arange(len(rows))))
        except InputError as error:
            facts = {"refused": error.message.replace(directory, "DIRECTORY")}
        except Exception as error:  # noqa: BLE001 any error is a result
            facts = {"fault": f"{type(error).__name__}: {str(error)[:200]}"}
        else:
            facts["modality"] = backbone.modality.name
            facts["parameters"] = backbone.num_parameters
            for name in methods or METHODS:
                facts["cells"][name] = asdict(probe(backbone, name, rows))
    file.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
