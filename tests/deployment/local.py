"""A deployment in this process: sites with clients of the small digits task, linked on a clock that only counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.runtimes.remote.local_link import LocalLink, LocalSite
from tests.small import SMALL

from fedelta.config import load_config
from fedelta.deployment.run.conduct import conduct
from fedelta.deployment.site.service import Service
from fedelta.deployment.site.settings import parse_site
from fedelta.record.rundir import CONFIG

AT = {"berlin": "0-2", "hamburg": "3-5"}
# The same rows as in `SMALL`, as the sites read them.
DATA = {"source": "digits", "max_train_examples": 120, "max_test_examples": 60}
DEPLOYMENT = """
[deployment]
start_seconds = 60
round_seconds = 600
min_grace_seconds = 20
wait_seconds = 30
"""


@dataclass
class Local:
    """A server's folder with a run, and sites that keep what they have on the disk.

    Args:
        folder: of everything.
        at: name of a site to its clients.
        text: the recipe.
        overrides: of the recipe.
        own: settings of a site that differ from those of the others.
    """

    folder: Path
    at: Mapping[str, str | None] = field(default_factory=lambda: AT)
    text: str = SMALL
    overrides: Sequence[str] = ()
    own: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    sites: dict[str, LocalSite] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.sites |= {name: LocalSite(self.service(name).answer) for name in self.at}
        self.run.mkdir(parents=True)
        recipe = self.folder / "recipe.toml"
        recipe.write_text(self.text + DEPLOYMENT)
        (self.run / CONFIG).write_text(load_config(recipe, self.overrides).to_toml())
        self.link = LocalLink(self.sites)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def service(self, name: str) -> Service:
        """A site's program, as it starts."""
        table = {"name": name, "state": str(self.folder / name), "clients": self.at[name], "data": DATA}
        table |= self.own.get(name, {})
        return Service(parse_site({key: value for key, value in table.items() if value is not None}, self.folder))

    def restart(self, name: str) -> None:
        """Kills a site's program, and starts it again."""
        self.sites[name].handler = self.service(name).answer
        self.sites[name].restart()

    def conduct(self) -> None:
        """Runs the experiment from where it is."""
        conduct(self.run, self.link, clock=self.link.clock)
