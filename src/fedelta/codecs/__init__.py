"""How a delta becomes bytes."""

from __future__ import annotations

from fedelta.codecs.cast import Cast

CODECS = {"float32": Cast, "float16": Cast, "bfloat16": Cast}
