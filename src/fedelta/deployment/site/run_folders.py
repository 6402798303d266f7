"""The runs that a site takes part in, on its disk: what the server said of each, and what its clients remember.

    RUN/run.json    the recipe, and the site's part in the run
    RUN/skipped.csv examples of the site that could not be read and were left out, if there are any
    RUN/memory/     what clients remember (`MemoryStore`)

RUN is a hash of the run's id, which comes from the server and so must not be a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedelta.durable import write_atomic
from fedelta.runtimes.remote.store import MemoryStore

logger = logging.getLogger("fedelta")
_FILE = "run.json"
_SKIPPED = "skipped.csv"
_DAY = 86400


@dataclass(frozen=True)
class RunRecord:
    """What the server said of a run.

    Args:
        config: the recipe in TOML.
        prepare: manifest of the message that gave the site its clients; None before it came.
        keeps: whether clients have tensors of their own, which belong to the finished model.
        sizes: key of each of the site's clients to the number of examples that the server was told.
    """

    config: str
    prepare: Mapping[str, Any] | None = None  # Any: JSON values
    keeps: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFolders:
    """The folders of all runs.

    Args:
        folder: holds them.
    """

    folder: Path

    def read(self, run: str) -> RunRecord | None:
        """What is known of a run; None if nothing."""
        try:
            content = json.loads((self._of(run) / _FILE).read_text(encoding="utf-8"))
            return RunRecord(content["config"], content["prepare"], content["keeps"], content["sizes"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("what the server said of run %s cannot be read: %s", run, error)
            return None

    def write(self, run: str, record: RunRecord) -> None:
        """Keeps what the server said.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        self._of(run).mkdir(parents=True, exist_ok=True)
        write_atomic(self._of(run) / _FILE, json.dumps({"run": run, **asdict(record)}))

    def write_skipped(self, run: str, table: str) -> None:
        """Writes the list of the site's examples that were left out, which stays here.

        Args:
            run: its id.
            table: CSV.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        write_atomic(self._of(run) / _SKIPPED, table)

    def memories(self, run: str) -> MemoryStore:
        """What clients remember of a run."""
        return MemoryStore(self._of(run) / "memory")

    def delete(self, run: str) -> None:
        """Forgets a run."""
        shutil.rmtree(self._of(run), ignore_errors=True)

    def prune(self, keep_days: float) -> None:
        """Forgets the runs that nothing was written of for so long."""
        oldest = time.time() - keep_days * _DAY
        for folder in self.folder.glob("*/"):
            paths = [folder, *folder.glob("*"), *folder.glob("memory/*")]
            if max((path.stat().st_mtime for path in paths if path.exists()), default=0.0) < oldest:
                logger.info("run folder %s was not used for %g days and is deleted", folder.name, keep_days)
                shutil.rmtree(folder, ignore_errors=True)

    def _of(self, run: str) -> Path:
        return self.folder / hashlib.sha256(run.encode()).hexdigest()[:16]
