"""`privacy.json`: what a run promises to whom, written before round 1 if it promises anything.

It holds what the configuration does not say: the calculated noise, how cohorts count, where the noise comes from.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from fedelta.errors import RunError
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.settings import Unit
from fedelta.record.files import FROM_A_COPY, Record, read_json

Source = Literal["seeded", "secure"]
# The noise of the FedPEFT authors, which bounds nothing.
WITHOUT_GUARANTEE = ("fedpeft-code", "fedpeft-text")
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Promise:
    """What a run guarantees; the content of `privacy.json`.

    Args:
        unit: what is protected: "example", "client" or "local".
        mechanism: the noise; those in `WITHOUT_GUARANTEE` guarantee nothing.
        delta: of the guarantee.
        noise_multiplier: standard deviation of the noise, in units of the clipping norm; given or calculated.
        clipping: "flat", "per-group" or "adaptive".
        clipping_norm: C before round 1.
        limit: the epsilon that no round may exceed; None without a limit.
        accountant: which bound is reported, "pld" or "rdp".
        cohort_rate: probability with which a client is in a cohort; 1 if the sampling is not counted on.
        randomness: where the noise comes from, "seeded" or "secure".
    """

    unit: str
    mechanism: str
    delta: float
    noise_multiplier: float
    clipping: str
    clipping_norm: float
    limit: float | None
    accountant: str
    cohort_rate: float
    randomness: str

    @classmethod
    def of(cls, guarantee: Guarantee, randomness: Source) -> Promise:
        """What `guarantee` promises with noise from `randomness`."""
        settings = guarantee.settings
        return cls(
            unit=settings.unit,
            mechanism=settings.mechanism,
            delta=settings.target_delta,
            noise_multiplier=guarantee.noise_multiplier,
            clipping=settings.clipping,
            clipping_norm=settings.clipping_norm,
            limit=guarantee.limit,
            accountant=settings.accountant,
            cohort_rate=guarantee.cohort_rate,
            randomness=randomness,
        )

    @property
    def is_kept(self) -> bool:
        """Whether the noise guarantees anything."""
        return self.mechanism not in WITHOUT_GUARANTEE

    def as_record(self) -> Record:
        """A dictionary that JSON can hold."""
        return asdict(self)


def read_promise(path: Path) -> Promise | None:
    """The promise in the file `path`; None if there is none.

    Raises:
        RunError: the file has other content.
    """
    if not path.exists():
        return None
    record = read_json(path)
    names = {field.name for field in fields(Promise)}
    texts = all(isinstance(record.get(name), str) for name in ("mechanism", "clipping", "accountant"))
    numbers = all(_is_positive(record.get(name)) for name in ("delta", "noise_multiplier", "clipping_norm"))
    limit = record.get("limit")
    if (
        record.keys() != names
        or record["unit"] not in get_args(Unit)[1:]
        or record["randomness"] not in get_args(Source)
        or not (texts and numbers and _is_positive(record["cohort_rate"]))
        or not (limit is None or _is_positive(limit))
    ):
        raise RunError(f"{str(path)!r} does not hold what a run writes about its privacy.", hint=FROM_A_COPY)
    return Promise(**record)


def other_promise(original: Promise | None, current: Promise | None) -> list[str]:
    """A sentence if a run no longer promises what it did when it began: its file or the accounting has changed."""
    if original == current:
        return []
    before, now = ({} if promise is None else promise.as_record() for promise in (original, current))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [
        f"`privacy.json` promises `{key}` = {before.get(key, 'absent')}, the settings make it {now.get(key, 'absent')}"
        for key in keys[:_NUM_SHOWN]
    ]


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
