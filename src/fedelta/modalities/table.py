"""Every modality by its name.

A new one has a file of its own beside image.py, a line here, and, where its columns or settings need to be named, keys
in `[data]` (data/sources.py).
"""

from __future__ import annotations

from fedelta.modalities.audio import Recordings
from fedelta.modalities.base import Modality
from fedelta.modalities.image import Images
from fedelta.modalities.text import Texts

# Images before recordings, which go to image classifiers as well: a model of such a family takes images until it is
# told otherwise.
MODALITIES: dict[str, type[Modality]] = {kind.name: kind for kind in (Images, Recordings, Texts)}
