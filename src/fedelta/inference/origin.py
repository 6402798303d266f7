"""What a base model is called outside of this machine, and under which license it came."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from fedelta.models.bundles import bundled_path

_BUNDLED = "bundled:"
# Where huggingface_hub keeps a snapshot: `models--ORGANISATION--NAME/snapshots/COMMIT`.
_CACHED = re.compile(r"/models--(?P<name>[^/]+)/snapshots/[^/]+/?$")


@dataclass(frozen=True)
class Origin:
    """Where a base model comes from; "" for what is not known.

    Args:
        hub: its name on the hub.
        bundled: its name among the backbones of this package.
        folder: the last part of the directory that it was read from.
        parent: what its configuration says it was loaded from before it was saved: this model, or the one that it was
            fine-tuned from.
        license: of its model card.
    """

    hub: str = ""
    bundled: str = ""
    folder: str = ""
    parent: str = ""
    license: str = ""

    @property
    def name(self) -> str:
        """What to call it."""
        return self.hub or (f"{_BUNDLED}{self.bundled}" if self.bundled else self.folder)


def origin_of(source: str) -> Origin:
    """The origin of the model `source`: a directory, a hub name, `bundled:NAME`, or "" for none. Asks no hub."""
    if not source:
        return Origin()
    if source.startswith(_BUNDLED):
        name = source.removeprefix(_BUNDLED)
        return Origin(bundled=name, license=_license(bundled_path(name) / "README.md"))
    path = Path(source)
    if cached := _CACHED.search(str(path)):
        return Origin(hub=cached["name"].replace("--", "/"), license=_license(path / "README.md"))
    if path.is_dir():
        return Origin(folder=path.name, parent=_parent(path), license=_license(path / "README.md"))
    if not is_hub_name(source):
        return Origin(folder=path.name)
    from huggingface_hub import try_to_load_from_cache

    readme = try_to_load_from_cache(source, "README.md")
    return Origin(hub=source, license=_license(Path(readme)) if isinstance(readme, str) else "")


def is_hub_name(text: str) -> bool:
    """Whether `text` has the form of a name on the hub.

    >>> is_hub_name("google/vit-base-patch16-224"), is_hub_name("/home/me/vit"), is_hub_name("python:Net")
    (True, False, False)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # not in its `__all__`

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _parent(directory: Path) -> str:
    """`_name_or_path` of a configuration, if that is a hub name; transformers writes it up to version 4."""
    try:
        name = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return name if isinstance(name, str) and is_hub_name(name) and not Path(name).exists() else ""


def _license(readme: Path) -> str:
    """The license in the header of a model card; "" if there is none."""
    from huggingface_hub import ModelCard

    try:
        text = readme.read_text(encoding="utf-8")
        found = ModelCard(text, ignore_metadata_errors=True).data.get("license")
    # A card of somebody else may hold anything; its YAML raises errors of other packages too.
    except Exception:  # noqa: BLE001
        return ""
    return found if isinstance(found, str) else ""
