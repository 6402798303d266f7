"""Every modality by its name.

A new modality needs a file beside image.py, a line here and, if its columns or settings have keys, fields of `[data]`
(data/sources.py).
"""

from __future__ import annotations

from fedelta.modalities.audio import Recordings
from fedelta.modalities.base import Modality
from fedelta.modalities.image import Images
from fedelta.modalities.text import Texts
from fedelta.modalities.words import Words

# Images before recordings: both go to image classifiers, which take images by default.
MODALITIES: dict[str, type[Modality]] = {kind.name: kind for kind in (Images, Recordings, Texts, Words)}
