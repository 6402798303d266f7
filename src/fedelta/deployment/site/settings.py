"""The settings of a site, `site.toml`: where its server is, and what it reads for every recipe that arrives.

    name = "hamburg"
    server = "fl.example.org:9093"
    clients = "0-31"            # of the recipe's partition; leave it out if the data are the site's own

    [data]
    source = "data/scans"

Relative paths are relative to the folder of the file.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fedelta.data.sources import DataSource
from fedelta.deployment.naming import client_numbers, host_and_port, site_name
from fedelta.errors import ConfigError, listed
from fedelta.models.source import ModelSource
from fedelta.settings import Context, Settings
from fedelta.settings.base import Table, out_of_bounds, problems_of
from fedelta.settings.paths import FilePath, Source
from fedelta.settings.reading import read_sections
from fedelta.tasks.choice import ChosenTask

SITE_FILE = "site.toml"


def _client_numbers(value: object) -> object:
    """Client numbers, ascending, from a list of them or from a text such as `0-31, 40`."""
    if isinstance(value, str):
        value = client_numbers(value)
    if isinstance(value, list | tuple):
        if not value or not all(type(number) is int and number >= 0 for number in value):
            raise ValueError("expected one client or more, as whole numbers from 0")
        if repeated := [number for number, count in Counter(value).items() if count > 1]:
            raise ValueError(f"expected each client once, found {listed(repeated)} several times")
        return tuple(sorted(value))
    return value


class SiteModel(Settings):
    """The weights of this site: section `[model]`.

    Args:
        source: directory in Hugging Face form, or hub name, of the base model that recipes may ask for; models that
            come with fedelta need no entry.
    """

    source: Source | None = None


class SiteRuntime(Settings):
    """How this site's machine is used: section `[runtime]`; the other keys are those of a recipe.

    Args:
        threads: number of arithmetic threads; None for one on each core. Sites that share a machine should share its
            cores: they wait for each other if they have more threads together than there are cores.
    """

    threads: int | None = Field(default=None, ge=1)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    lanes: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    cache_mib: int = Field(default=1024, ge=0)  # as in a recipe


class WorkerSettings(Settings):
    """The process that keeps model and data loaded: section `[worker]`.

    Args:
        idle_minutes: the worker ends after this time without a message, and starts again with the next one.
        max_message_mib: larger messages are refused.
        keep_days: what clients remember of an unfinished run is deleted when it was not used for this time.
    """

    idle_minutes: float = Field(default=30, gt=0)  # our choice: rounds are seconds to minutes apart
    max_message_mib: int = Field(default=8192, ge=1)  # a model of two thousand million parameters in float32
    keep_days: float = Field(default=30, gt=0)  # our choice


class Protection(Settings):
    """What the site insists on, whatever a recipe says: section `[privacy]`.

    Args:
        unit: what every run must protect; None: runs need protect nothing. A site that asks for "example" or "client"
            also takes part in runs that protect "local", which is stricter. With "client" it trusts the server.
        max_epsilon: most that may be released about a client, or about one of its examples, in all runs together; the
            site counts it itself. None: no limit.
        max_delta: with which that epsilon is calculated.
        allow_measures: whether the site, although it has a `unit`, measures models on its test rows. No noise covers
            such measures.
    """

    unit: Literal["example", "client", "local"] | None = None
    max_epsilon: float | None = Field(default=None, gt=0)
    max_delta: float = Field(default=1e-5, gt=0, lt=1)  # as in a recipe
    allow_measures: bool = Field(default=False, strict=True)

    @model_validator(mode="after")
    def _limit_of_the_sites_own(self) -> Protection:
        if self.max_epsilon is not None and self.unit not in ("example", "local"):
            raise ValueError(
                f"`max_epsilon` is {self.max_epsilon:g} and `unit` {self.unit!r}: the site can only count what it "
                "releases itself, with `unit` 'example' or 'local'"
            )
        return self


class SiteSettings(Settings):
    """The settings of a site: `site.toml`.

    Args:
        name: of the site.
        server: host and port of the server.
        ca: certificate of the authority that the server's certificate is from.
        key: the site's private key.
        state: folder for what clients remember and for the worker's log and socket.
        clients: numbers of this site's clients in the partition of the recipe, of which every such site has the same
            data; None if the data are the site's own. Then its clients are those that the data name
            (`data.client_column`, `data.file_pattern`, `data.folders`), or the site is one client.
        allow_missing_classes: whether the site may take part although its data lack classes of other sites.
        plugins: files of plug-ins that recipes may name; they are executed here.
        data: what the site reads; a recipe cannot change it.
        task: what is predicted, classes unless it is given. If given, recipes are refused that have another task, or
            other values of the settings that it names.
        privacy: what the site insists on.
        model, runtime, worker: see there.
    """

    name: Annotated[str, AfterValidator(site_name)]
    server: Annotated[str, AfterValidator(host_and_port)] = "127.0.0.1:9093"
    ca: FilePath = "ca.crt"
    key: FilePath = "site.key"
    state: FilePath = "state"
    clients: Annotated[tuple[int, ...] | None, BeforeValidator(_client_numbers)] = None
    allow_missing_classes: bool = Field(default=False, strict=True)
    plugins: Annotated[tuple[FilePath, ...], Field(strict=False)] = ()
    data: DataSource
    task: ChosenTask | None = None
    privacy: Protection = Protection()
    model: SiteModel = SiteModel()
    runtime: SiteRuntime = SiteRuntime()
    worker: WorkerSettings = WorkerSettings()

    @property
    def is_partition(self) -> bool:
        """Whether the clients are some of the recipe's partition, so that its division of the data is used."""
        return self.clients is not None


def load_site(folder: str | Path, overrides: Table | None = None) -> SiteSettings:
    """The settings in the folder of a site.

    Args:
        folder: of the site; holds `site.toml`.
        overrides: values that replace those of the file, by top-level key.

    Raises:
        ConfigError: the file is missing or invalid; lists all problems.
    """
    path = Path(folder) / SITE_FILE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        hint = f"`fedelta site init {folder}` makes one." if isinstance(error, FileNotFoundError) else None
        raise ConfigError([f"cannot be read: {error.strerror}"], origin=str(path), hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"is not TOML: {error}"], origin=str(path)) from error
    return parse_site(table | (overrides or {}), folder, origin=str(path))


def parse_site(table: Table, folder: str | Path = ".", *, origin: str = "site settings") -> SiteSettings:
    """The settings that a table describes; relative paths are relative to `folder`.

    Raises:
        ConfigError: lists all problems.
    """
    if problems := out_of_bounds(table):
        raise ConfigError(problems, origin=origin)
    with contextlib.chdir(folder):  # so that relative paths are those of the file
        defaults: Table = {key: SiteSettings.model_fields[key].default for key in ("ca", "key", "state")}
        sections, problems = read_sections(defaults | table, SiteSettings)
        problems += problems_of(Context({"data": sections["data"]} if "data" in sections else {}))
    problems += list(_model_problems(sections))
    if problems:
        raise ConfigError(problems, origin=origin)
    return SiteSettings(**sections)


def _model_problems(sections: Table) -> Iterable[str]:
    model = sections.get("model")
    if isinstance(model, SiteModel) and model.source is not None:
        yield from ModelSource(source=model.source).problems(Context({}))
