"""Configurations: TOML, with `--set` on top, to frozen objects; every problem in one message.

A section is validated on its own, so that a typing error in one does not hide a wrong value in another; then
come the checks that look at several sections at once. Numbers that depend on the data are checked by those who
read the data.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tomli_w
import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fedelta.codecs.cast import Cast
from fedelta.data.augmentation import Augmentation
from fedelta.data.files import EMBEDDED
from fedelta.data.partition import Natural, PartitionSettings
from fedelta.data.sources import DataSource, check_source
from fedelta.engine.exits import ExitSettings
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError, ModelError
from fedelta.federation.personalize import Personalization
from fedelta.grid import parse_grid
from fedelta.models.source import ModelSource, locate
from fedelta.runtimes.simulation import SimulationSettings
from fedelta.runtimes.stability import Stability
from fedelta.settings import Settings
from fedelta.strategies import AnyLocalRule, AnyStrategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.local import Plain
from fedelta.strategies.means import Trimmed
from fedelta.strategies.scaffold import Scaffold
from fedelta.tasks.classification import Classification
from fedelta.tasks.table import AnyTask
from fedelta.tracking.settings import Tracking
from fedelta.tuning import AnyTuning
from fedelta.tuning.combined import expand, fields_of
from fedelta.tuning.lora import Lora

# Any, in this file: values of a TOML table before they are checked, and type annotations as objects.
Table = dict[str, Any]

# Sections that are one of several kinds, told apart by their `name`.
_NAMED = (
    "partition",
    "strategy",
    "strategy.mean",
    "local_rule",
    "client.optimizer",
    "client.schedule",
    "codec",
    "runtime",
)


class Config(Settings):
    """Everything that a run depends on.

    Args:
        seed: of every random stream of the run.
        byte_budget_mib: the run ends with the round in which its traffic reaches this many MiB.
        evaluate_every: rounds between evaluations on the test set; the last round is always evaluated.
        model, data, partition, augmentation, task, exits, tuning, strategy, local_rule, client, codec, runtime,
            stability, personalization, tracking: the sections.
    """

    # Strict once more: a value outside any section is checked on its own, where the class's rules do not reach.
    seed: int = Field(default=0, ge=0, strict=True)
    byte_budget_mib: float | None = Field(default=None, gt=0, strict=True, allow_inf_nan=False)
    evaluate_every: int = Field(default=1, ge=1, strict=True)
    model: ModelSource
    data: DataSource
    partition: Annotated[PartitionSettings, Field(discriminator="name")]
    augmentation: Augmentation = Augmentation()
    task: AnyTask = Classification()
    exits: ExitSettings = ExitSettings()
    tuning: Annotated[AnyTuning, Field(discriminator="name")] = Lora()
    strategy: Annotated[AnyStrategy, Field(discriminator="name")] = FedAvg()
    local_rule: Annotated[AnyLocalRule, Field(discriminator="name")] = Plain()
    client: ClientSettings = ClientSettings()
    codec: Cast = Cast()
    runtime: SimulationSettings = SimulationSettings()
    stability: Stability = Stability()
    personalization: Personalization = Personalization()
    tracking: Tracking = Tracking()

    def to_toml(self) -> str:
        """The configuration with every default written out; `load_config` reads it back to an equal one."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a TOML file.

    Args:
        path: of the file.
        overrides: `section.key=value`, as given to `--set`; values in TOML, or bare words; nothing drops the key.

    Raises:
        ConfigError: unreadable, or wrong in any number of ways, all named.
    """
    return parse_config(read_table(path), overrides, origin=str(path))


def read_table(path: str | Path) -> Table:
    """The content of a TOML file, not checked.

    Raises:
        ConfigError: unreadable, or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], origin=f"{path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"is not TOML: {error}"], origin=f"{path}") from error


def parse_config(table: Table, overrides: Iterable[str] = (), *, origin: str = "configuration") -> Config:
    """The configuration in a nested dictionary; arguments and errors as for `load_config`."""
    table = copy.deepcopy(table)
    problems = override(table, overrides)
    if "compare" in table:  # what `fedelta compare` makes of this configuration; one run has no use for it
        problems += parse_grid(table.pop("compare"))[1]
    if isinstance(strategy := table.get("strategy"), dict):
        strategy.setdefault("name", FedAvg().name)
    if "tuning" in table:
        table["tuning"] = expand(table["tuning"])
    sections: Table = {}
    for key, value in table.items():
        if key not in Config.model_fields:
            problems.append(_unknown(key, "", Config))
            continue
        field = Config.model_fields[key]
        try:
            checked: Any = Annotated[field.annotation, field]
            sections[key] = TypeAdapter(checked).validate_python(value)
        except ValidationError as error:
            problems += _explain(error.errors(), key, value)
    missing = [key for key, field in Config.model_fields.items() if field.is_required() and key not in table]
    problems += [f"section `[{key}]` is missing" for key in missing]
    problems += _cross_check(sections, unread=table.keys() - sections.keys())
    if problems:
        raise ConfigError(problems, origin=origin, hint="`fedelta list` names what can be chosen.")
    return Config(**sections)


def override(table: Table, overrides: Iterable[str]) -> list[str]:
    """Puts `section.key=value` strings into `table`, as `--set` does; returns what was wrong with them."""
    problems = []
    for override in sorted(overrides, key=lambda override: _names_first(override.partition("=")[0])):
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals or not key or key.endswith("."):
            problems.append(f"`--set {override}`: expected `section.key=value`")
        elif problem := _put(table, key, toml_value(text) if text else None, f"`--set {override}`"):
            problems.append(problem)
    return problems


def with_values(table: Table, values: Mapping[str, object]) -> tuple[Table, list[str]]:
    """A copy of `table` with `values` at their dotted keys, as `--set` puts them there; and what was wrong."""
    table = copy.deepcopy(table)
    problems = [_put(table, key, copy.deepcopy(values[key]), f"`{key}`") for key in sorted(values, key=_names_first)]
    return table, [problem for problem in problems if problem is not None]


def check_config(config: Config) -> None:
    """Refuses what is wrong between sections of a configuration that was made in Python.

    Raises:
        ConfigError: every problem in one message.
    """
    if problems := _cross_check({name: getattr(config, name) for name in Config.model_fields}, unread=set()):
        raise ConfigError(problems)


def with_absolute_paths(config: Config) -> Config:
    """The configuration with files and directories written in full, so that a run can be resumed from anywhere."""
    sections = {name: getattr(config, name) for name in _PATHS}
    return config.model_copy(
        update={
            name: section.model_copy(
                update={key: written(getattr(section, key)) for key, written in _PATHS[name].items()}
            )
            for name, section in sections.items()
        }
    )


def in_full(table: Table) -> Table:
    """A copy of an unchecked configuration with files and directories written in full."""
    table = copy.deepcopy(table)
    for name, paths in _PATHS.items():
        section = table.get(name)
        for key, written in paths.items():
            if isinstance(section, dict) and isinstance(section.get(key), str):
                section[key] = written(section[key])
    return table


def _absolute(source: str | None) -> str | None:
    """`source`, in full where it is a path that exists; a hub name and a bundled name stay as they are."""
    if source is None or source == EMBEDDED:
        return source
    full = _in_full(source)
    return full if full is not None and Path(full).exists() else source


def _in_full(path: str | None) -> str | None:
    """`path` from the root on; it need not exist."""
    if path is None:
        return None
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:  # the home of a user who is not known here
        return path


# Keys that hold a path, and how it is written in full.
_PATHS: dict[str, dict[str, Callable[[str | None], str | None]]] = {
    "model": {"source": _absolute, "adapter": _absolute},
    "data": {"source": _absolute, "test_source": _absolute},
    "exits": {"tiers_file": _in_full},
    "tracking": {"directory": _in_full},
}


def named_choices() -> dict[str, list[str]]:
    """Every key of a configuration that takes one of a few names, but `tuning.name`, and these names."""
    return {f"{path}.name": list(_members(_annotation(path))) for path in _NAMED}


def _annotation(path: str) -> Any:
    """What may stand at a dotted path; a field of a union is looked for in its first member."""
    annotation: Any = Config
    for key in path.split("."):
        members = list(_members(annotation).values())
        annotation = (members[0] if members else annotation).model_fields[key].annotation
    return annotation


def _names_first(path: str) -> bool:
    """Sorts names to the front: one drops the fields of another method, whichever of the two was given first."""
    return not path.strip().endswith(".name")


def _put(table: Table, path: str, value: object, origin: str) -> str | None:
    """Sets the key at the dotted `path`, or drops it when `value` is None; returns what was wrong."""
    *parents, key = path.split(".")
    for parent in parents:
        section: object = table.setdefault(parent, {})
        if not isinstance(section, dict):
            return f"{origin}: `{parent}` is a value, not a section"
        table = section
    if key == "name" and table.get("name", value) != value:
        # A new name drops the fields that only the old method had.
        kept = _fields_of(parents, value)
        for field in [field for field in table if field not in kept]:
            del table[field]
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
    return None


def _fields_of(parents: list[str], name: object) -> Iterable[str]:
    """Fields of the member `name` of the union at `parents`; none for a place or a name that is not known."""
    annotation: Any = Config
    for parent in parents:
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, Settings) else {}
        annotation = fields[parent].annotation if parent in fields else None
    member = _members(annotation).get(str(name))
    if member is None and parents == ["tuning"]:
        return fields_of(str(name).split("+"))
    return () if member is None else member.model_fields


def toml_value(text: str) -> object:
    """`text` as TOML has it after `key =`, or as a bare word.

    >>> toml_value("0.1"), toml_value("lora")
    (0.1, 'lora')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(errors: Iterable[ErrorDetails], section: str, value: object) -> list[str]:
    """Problems in our words, one for each place: where, what was found, what was expected."""
    explained: dict[str, str] = {}
    for error in errors:
        path, parent, own = _locate(section, value, error["loc"])
        kind, found, context = error["type"], error["input"], error.get("ctx", {})
        expectation = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if kind == "extra_forbidden":
            explained[path] = _unknown(path.rpartition(".")[2], path.rpartition(".")[0], parent)
        elif kind == "missing":
            explained[path] = f"`{path}` is missing"
        elif kind == "union_tag_not_found":
            explained[path] = f"`{path}.name` is missing, expected one of {', '.join(_members(own))}"
        elif kind == "union_tag_invalid":
            explained[path] = _unknown_choice(f"{path}.name", context["tag"], _members(own))
        elif kind == "value_error":
            explained[path] = f"`{path}`: {expectation}"
        elif path in explained:
            explained[path] += f" or {expectation}"
        else:
            explained[path] = f"`{path}` is {found!r}, expected: {expectation}"
    return list(explained.values())


def _locate(section: str, value: Any, location: Sequence[str | int]) -> tuple[str, Any, Any]:
    """Dotted path of a pydantic location, the annotation around its last part, and that part's own.

    Pydantic puts the chosen member of a union into the location; the user never wrote it there.
    """
    path = section
    parent: Any = Config
    own: Any = Config.model_fields[section].annotation
    for part in location:
        members = _members(own)
        if part in members:
            own = members[str(part)]
        elif isinstance(value, list) and isinstance(part, int):
            path, value, own = f"{path}.{part}", value[part], _item(own)
        elif isinstance(value, dict) or isinstance(part, int):
            path += f".{part}"
            value = value.get(part) if isinstance(value, dict) else None
            fields = own.model_fields if isinstance(own, type) and issubclass(own, Settings) else {}
            parent, own = own, fields[part].annotation if part in fields else None
    return path, parent, own


def _members(annotation: Any) -> dict[str, Any]:
    """Name to class of a union of settings, or of one that has a name; nothing for any other annotation."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    kinds = get_args(annotation) or (annotation,)
    classes = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]
    named = [kind for kind in classes if "name" in kind.model_fields]
    return {name: kind for kind in named for name in get_args(kind.model_fields["name"].annotation)}


def _item(annotation: Any) -> Any:
    """What a tuple annotation holds."""
    return (
        _item(get_args(annotation)[0])
        if get_origin(annotation) is Annotated
        else next(iter(get_args(annotation)), None)
    )


def _unknown(key: str, parent: str, owner: Any) -> str:
    """An unknown key, and the nearest that is known."""
    prefix = f"{parent}." if parent else ""
    known = list(owner.model_fields)
    nearest = get_close_matches(key, known, n=1)
    advice = f"did you mean `{prefix}{nearest[0]}`?" if nearest else f"known: {', '.join(known)}"
    return f"`{prefix}{key}` is unknown; {advice}"


def _unknown_choice(path: str, found: object, known: Iterable[str]) -> str:
    known = list(known)
    nearest = get_close_matches(str(found), known, n=1)
    elsewhere = [key for key, names in named_choices().items() if key != path and found in names]
    advice = f"; did you mean {nearest[0]!r}?" if nearest else ""
    advice = f"; {found!r} is a choice of `{elsewhere[0]}`" if elsewhere else advice
    return f"`{path}` is {found!r}, expected one of {', '.join(known)}{advice}"


def _cross_check(sections: Table, unread: Set[str]) -> list[str]:
    """What is wrong between sections that are fine on their own; one that could not be read is passed over."""
    problems: list[str] = []
    if "strategy" not in unread:
        problems += _check_strategy(sections.get("strategy", FedAvg()), sections)
    runtime, tuning = sections.get("runtime"), sections.get("tuning", Lora())
    if runtime is not None and runtime.lanes not in ("auto", 1) and tuning.max_lanes == 1:
        problems.append(f"`runtime.lanes` is {runtime.lanes}, but tuning method {tuning.name!r} has one lane, in place")
    if runtime is not None and runtime.device == "cuda" and not torch.cuda.is_available():
        problems.append("`runtime.device` is 'cuda', but torch finds no GPU here; expected 'cpu' or 'auto'")
    partition = sections.get("partition")
    if isinstance(partition, Natural) and "data" in sections and sections["data"].client is None:
        problems.append(
            "`partition.name` is 'natural', which needs `data.client_column`, or a field {client} in "
            "`data.file_pattern` for a folder of files"
        )
    return problems + _check_client(sections) + _check_held_out(sections, unread) + _check_paths(sections)


def _check_strategy(strategy: AnyStrategy, sections: Table) -> list[str]:
    problems = []
    partition, client = sections.get("partition"), sections.get("client")
    num_clients = None if partition is None else partition.num_clients
    if num_clients is not None and strategy.clients_per_round > num_clients:
        problems.append(
            f"`strategy.clients_per_round` is {strategy.clients_per_round}, "
            f"more than `partition.num_clients` = {num_clients}"
        )
    if strategy.min_replies > strategy.clients_per_round:
        problems.append(
            f"`strategy.min_replies` is {strategy.min_replies}, "
            f"more than `strategy.clients_per_round` = {strategy.clients_per_round}"
        )
    if isinstance(strategy, FedLamaAuto) and not strategy.has_budget and sections.get("byte_budget_mib") is None:
        problems.append(
            "`strategy.name` is 'fedlama-auto', which chooses intervals by a budget: give `strategy.share`, "
            "`strategy.tolerance` or `byte_budget_mib`"
        )
    if isinstance(strategy.mean, Trimmed) and strategy.mean.num_trimmed(strategy.clients_per_round) == 0:
        problems.append(
            f"`strategy.mean.fraction` is {strategy.mean.fraction}, which leaves out none of "
            f"`strategy.clients_per_round` = {strategy.clients_per_round}"
        )
    if client is not None and client.schedule.warmup_rounds > strategy.num_rounds:
        problems.append(
            f"`client.schedule.warmup_rounds` is {client.schedule.warmup_rounds}, "
            f"more than `strategy.num_rounds` = {strategy.num_rounds}"
        )
    return problems + _check_steps(strategy, client)


def _check_held_out(sections: Table, unread: Set[str]) -> list[str]:
    personal, partition, model = (sections.get(name) for name in ("personalization", "partition", "model"))
    if personal is None or not personal.num_held_out:
        return []
    problems = []
    if partition is not None and partition.num_clients is not None:
        problems = personal.problems(range(partition.num_clients))
        strategy = sections.get("strategy", FedAvg())
        left = partition.num_clients - personal.num_held_out
        if not problems and "strategy" not in unread and left < strategy.clients_per_round <= partition.num_clients:
            problems.append(
                f"`strategy.clients_per_round` is {strategy.clients_per_round}, but `[personalization]` holds out "
                f"{personal.num_held_out} of {partition.num_clients} clients, which leaves {left}"
            )
    if model is not None and model.batch_norm == "local":
        problems.append(
            "`[personalization]` holds out clients, but with `model.batch_norm` = 'local' every client keeps norms of "
            "its own from round to round, which a client that no round asks does not have"
        )
    return problems


def _check_steps(strategy: AnyStrategy, client: ClientSettings | None) -> list[str]:
    """A strategy that measures rounds in steps leaves nothing to say about that to `[client]`."""
    steps = strategy.local_steps
    if steps is None or client is None or (client.local_epochs is None and client.local_steps in (None, steps)):
        return []
    name = "local_epochs" if client.local_steps is None else "local_steps"
    problem = (
        f"`client.{name}` is {getattr(client, name)}, but a round of {strategy.name!r} is `strategy.tau` = {steps} "
        f"local steps; leave it out (`--set client.{name}=`)"
    )
    return [problem]


def _check_client(sections: Table) -> list[str]:
    client = sections.get("client")
    if client is None:
        return []
    if not isinstance(client.optimizer, Sgd):
        if isinstance(sections.get("strategy"), Scaffold):
            return ["`strategy.name` is 'scaffold', which corrects gradients; `client.optimizer.name` must be 'sgd'"]
        return []
    if client.optimizer.nesterov and client.optimizer.momentum == 0:
        return ["`client.optimizer.nesterov` needs `client.optimizer.momentum` above 0"]
    return []


def _check_paths(sections: Table) -> list[str]:
    """Directories that should be there and are not."""
    problems = []
    model = sections.get("model")
    if model is not None and model.source is None and model.architecture is None:
        problems.append('`model.source` is missing; for example "bundled:vit-micro"')
    if model is not None and model.source is not None:
        try:
            locate(model.source)
        except ModelError as error:
            problems.append(f"`model.source`: {error.message}")
    if model is not None and model.adapter is not None and not Path(model.adapter).is_dir():
        problems.append(f"`model.adapter` is {model.adapter!r}, which is no directory")
    if "data" in sections:
        problems += check_source(sections["data"])
    return problems


def _without_none(value: Any) -> Any:
    """TOML has no null: a key that is None is left out, and reading gives it its default, which is None."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
