"""The key of a run's secret noise and cohorts, which is nowhere else: `checkpoint/privacy.key`, for its owner only.

Whoever has it can take the noise out of what the run has released. A run that goes on needs it, so that a round which a
kill has interrupted releases the same numbers once more.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedelta.durable import only_owner_may_read
from fedelta.errors import CheckpointError
from fedelta.record.origin import Origin

KEY = "checkpoint/privacy.key"


def read_key(run: Path) -> bytes:
    """The key of the run in a directory.

    Raises:
        CheckpointError: it is missing, or others than its owner may read it.
    """
    path = run / KEY
    try:
        key, is_ours = path.read_bytes(), only_owner_may_read(path)
    except OSError as error:
        raise CheckpointError(
            f"the key of the run's noise, {str(path)!r}, cannot be read: {error.strerror}.",
            hint="bring it back from a copy; without it the run cannot go on, since a round that was interrupted might "
            "be released a second time with other noise.",
        ) from error
    if not is_ours:
        raise CheckpointError(
            f"others than its owner may read {str(path)!r}, with which the noise can be taken out of the run's params.",
            hint=f"chmod 600 {path}",
        )
    return key


def check_key(run: Path, key: bytes, origin: Origin) -> None:
    """Raises if `key` is not that with which the run began.

    Raises:
        CheckpointError: it is another one.
    """
    if origin.files.get(KEY) != hashlib.sha256(key).hexdigest():
        raise CheckpointError(
            f"the key of the noise of run {str(run)!r} is not that with which it began.",
            hint=f"bring back {KEY} from a copy.",
        )
