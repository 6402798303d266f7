"""Reads configurations: TOML, with `--set` applied, becomes frozen objects; one message lists all problems.

A section is validated on its own, so that a typing error in one does not hide a wrong value in another; then each
setting is asked for its problems with the others (`Settings.problems`). Numbers that depend on the data are checked by
those who read the data. A configuration is what was read, and stays so.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import tomli_w
from pydantic import Field, model_validator

from fedelta.aggregation.low_rank import Apart, LowRank
from fedelta.catalog import COMBINATIONS, LOCAL_RULES, LOW_RANK, PARTITIONERS, STRATEGIES, TUNING_METHODS
from fedelta.codecs.channel import Channel
from fedelta.data.augmentation import Augmentation
from fedelta.data.division import Partitioner
from fedelta.data.partition import Natural
from fedelta.data.sources import DataSource
from fedelta.engine.exits import ExitSettings
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError
from fedelta.federation.held_out import Personalization
from fedelta.grid import parse_grid
from fedelta.models.source import ModelSource
from fedelta.plugins import refuse_missing
from fedelta.privacy.settings import Privacy, adapted
from fedelta.record.missing import RUNS, is_run, runs_in
from fedelta.record.rundir import CONFIG, RunDirectory
from fedelta.runtimes.remote.settings import Deployment
from fedelta.runtimes.settings import RuntimeSettings
from fedelta.runtimes.stability import Stability
from fedelta.settings import Context, Settings
from fedelta.settings.base import Table, as_settings, out_of_bounds, problems_of, without_none
from fedelta.settings.override import override
from fedelta.settings.paths import IN_PYTHON
from fedelta.settings.reading import read_sections
from fedelta.settings.registry import Chosen
from fedelta.strategies.base import LocalRule, Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.local import Plain
from fedelta.tasks.choice import ChosenTask
from fedelta.tasks.classification import Classification
from fedelta.tracking.settings import Tracking
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import expand
from fedelta.tuning.lora import Lora

# What a run started from is not needed to go on with it, and may be gone.
WITHOUT_ADAPTER = ("model.adapter=",)

_SECTION = re.compile(r"`\[?(\w+)")
_IN_A_FILE = ("model", "data", "partition")
_TOML = "expected a TOML file, such as the recipe `demo`; `fedelta new DATA` writes one for your data."
_HINT = "`fedelta list` names what can be chosen; `--plugin FILE` adds methods of your own."


class Config(Settings):
    """The configuration of a run.

    Args:
        seed: of every random stream of the run.
        byte_budget_mib: the run ends with the round in which its traffic reaches this many MiB.
        evaluate_every: rounds between evaluations on the test set; the last round is always evaluated.
        model, data, partition: sections. What was given as objects, if they are left out (`fedelta.federate`); a file
            has to have them.
        augmentation, task, exits, tuning, strategy, aggregation, local_rule, client: sections with defaults.
        codec, privacy, runtime, stability, deployment, personalization, tracking: likewise.
    """

    # Strict again: values outside of sections are validated separately, without the class's rules.

    seed: int = Field(default=0, ge=0, strict=True)
    byte_budget_mib: float | None = Field(default=None, gt=0, strict=True, allow_inf_nan=False)
    evaluate_every: int = Field(default=1, ge=1, strict=True)
    # By default they are given as objects; a file has to name them.
    model: ModelSource = ModelSource(source=f"{IN_PYTHON}model")
    data: DataSource = DataSource(source=f"{IN_PYTHON}data")
    partition: Annotated[Partitioner, Chosen(PARTITIONERS)] = Natural()
    augmentation: Augmentation = Augmentation()
    task: ChosenTask = Classification()
    exits: ExitSettings = ExitSettings()
    tuning: Annotated[TuningMethod, Chosen(TUNING_METHODS, COMBINATIONS)] = Lora()
    strategy: Annotated[Strategy, Chosen(STRATEGIES)] = FedAvg()
    aggregation: Annotated[LowRank, Chosen(LOW_RANK)] = Apart()
    local_rule: Annotated[LocalRule, Chosen(LOCAL_RULES)] = Plain()
    client: ClientSettings = ClientSettings()
    codec: Channel = Channel()
    privacy: Privacy = Privacy()
    runtime: RuntimeSettings = RuntimeSettings()
    stability: Stability = Stability()
    deployment: Deployment = Deployment()
    personalization: Personalization = Personalization()
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _adapted(cls, sections: Mapping[str, Any]) -> dict[str, Any]:  # Any: sections
        return adapted({"strategy": cls.model_fields["strategy"].default, **sections})

    def to_table(self, instead: Mapping[str, object] = MappingProxyType({})) -> Table:
        """The configuration as a TOML table, with all defaults.

        Args:
            instead: settings that replace some sections, as the run changed them.
        """
        written = {name: as_settings(setting).model_dump(mode="json") for name, setting in instead.items()}
        # TOML has no null: a key with the value None is left out, and None is its default when it is read.
        return dict(without_none(self.model_dump(mode="json") | written))

    def to_toml(self, instead: Mapping[str, object] = MappingProxyType({})) -> str:
        """`to_table` as text; `load_config` reads back an equal configuration."""
        return tomli_w.dumps(self.to_table(instead))


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a TOML file.

    Args:
        path: of the file, or the name of a recipe that comes with the package, such as `demo`.
        overrides: `section.key=value`, as given to `--set`; values in TOML, or bare words; nothing drops the key.

    Raises:
        ConfigError: the file is unreadable or invalid; lists all problems.
    """
    return parse_config(read_table(path), overrides, origin=str(path))


def _recipe(name: Path) -> Path | None:
    """The recipe of the package that is called `name`; None if there is none, or a file of this name."""
    if name.exists() or name.suffix or len(name.parts) != 1:
        return None
    return next((file for folder in _recipe_folders() if (file := folder / f"{name}.toml").is_file()), None)


def _recipe_folders() -> tuple[Path, Path]:
    """Where recipes are: in a wheel inside of the package, in a source tree beside it."""
    return Path(__file__).with_name("recipes"), Path(__file__).parents[2] / "recipes"


def _nearest_to(path: Path) -> str:
    """What may have been meant by a path where there is nothing."""
    recipes = sorted({file.stem for folder in _recipe_folders() for file in folder.glob("*.toml")})
    files = {str(file): file.name for file in sorted(path.parent.glob("*.toml"))} if path.parent.is_dir() else {}
    names = {**files, **{recipe: recipe for recipe in recipes}, **{str(run): run.name for run in runs_in(RUNS)}}
    close = [name for name, short in names.items() if get_close_matches(path.name, [short], n=1)]
    if close:
        return f"did you mean {' or '.join(map(repr, close[:3]))}?"
    return (
        f"looked in {str(path.absolute().parent)!r}; recipes that come with fedelta are {', '.join(recipes[:4])}, ..."
    )


def _instead_of_folder(path: Path) -> str:
    """What may have been meant by a folder in place of a configuration."""
    if is_run(path):
        return f"it is a run: `fedelta resume {path}` goes on with it, `{path / CONFIG}` is its configuration."
    return f"{_TOML.removesuffix('for your data.')}for data, such as `fedelta new {path}`."


def read_table(path: str | Path) -> Table:
    """The content of a TOML file, unchecked; of a recipe of the package if there is no file of this name.

    Raises:
        ConfigError: unreadable, or not TOML.
        PluginError: the file belongs to a run with plug-ins that are not loaded.
    """
    path = _recipe(Path(path)) or path
    if Path(path).name == CONFIG:
        refuse_missing(RunDirectory(Path(path).parent).plugins, f"run {str(Path(path).parent)!r}")
    try:
        # Some editors write a byte order mark, which TOML does not allow.
        table = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        hint = _nearest_to(Path(path)) if isinstance(error, FileNotFoundError) else None
        hint = _instead_of_folder(Path(path)) if isinstance(error, IsADirectoryError) else hint
        raise ConfigError([f"cannot be read: {error.strerror}"], origin=f"{path}", hint=hint) from error
    except RecursionError as error:
        raise ConfigError(["is too deep: expected a few levels of tables"], origin=f"{path}") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, and what Python says of 5,000 digits
        raise ConfigError([f"is not TOML: {error}"], origin=f"{path}", hint=_TOML) from error
    return table


def parse_config(table: Table, overrides: Iterable[str] = (), *, origin: str = "configuration") -> Config:
    """The configuration that a nested dictionary describes; arguments and errors as for `load_config`."""
    _refuse_out_of_bounds(table, origin)
    table = copy.deepcopy(table)
    problems = override(table, overrides, Config)
    _refuse_out_of_bounds(table, origin)
    if "compare" in table:  # only for `fedelta compare`
        problems += parse_grid(table.pop("compare"))[1]
    if isinstance(strategy := table.get("strategy"), dict):
        strategy.setdefault("name", Config.model_fields["strategy"].default.name)
    if "tuning" in table:
        table["tuning"] = expand(table["tuning"])
    sections, wrong = read_sections(table, Config)
    problems += wrong
    problems += [f"section `[{key}]` is missing" for key in _IN_A_FILE if key not in table]
    known = {
        key: sections.get(key, field.default)
        for key, field in Config.model_fields.items()
        if key in sections or not (key in table or key in _IN_A_FILE)
    }
    problems += problems_of(Context(adapted(known)))
    if problems:
        raise ConfigError(problems, origin=origin, hint=_hint(problems))
    return Config(**sections)


def _hint(problems: Sequence[str]) -> str:
    """What to do about problems of a configuration: of names, of paths, or of values."""
    if any("expected one of" in problem for problem in problems):
        return _HINT
    if all("does not exist" in problem for problem in problems):
        return "a path counts from the folder in which the command runs."
    sections = dict.fromkeys(match[1] for problem in problems for match in _SECTION.finditer(problem))
    known = [section for section in sections if section in Config.model_fields]
    return f"`fedelta list {known[0]}` describes its keys." if known else _HINT


def section_called(key: str, name: str) -> object:
    """The section `key` with the method `name` and its defaults, as a file with only this name would have it.

    Raises:
        ConfigError: there is no such method, or it has a setting without a default.
    """
    value: object = {"name": name}
    sections, problems = read_sections({key: expand(value) if key == "tuning" else value}, Config)
    if problems:
        raise ConfigError(problems, hint=_HINT)
    return sections[key]


def checked_section(key: str, section: object) -> None:
    """Refuses a value that is no section `key`.

    Raises:
        ConfigError: with what is expected.
    """
    _, problems = read_sections({key: section}, Config)
    if problems:
        raise ConfigError(problems, hint=_HINT)


def check_config(config: Config) -> None:
    """Refuses conflicts between sections of a configuration made in Python.

    Raises:
        ConfigError: every problem in one message.
    """
    if problems := problems_of(Context({name: getattr(config, name) for name in Config.model_fields})):
        raise ConfigError(problems)


def _refuse_out_of_bounds(table: Table, origin: str) -> None:
    if problems := out_of_bounds(table):
        raise ConfigError(problems, origin=origin)
