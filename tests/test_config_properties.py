"""Properties of every configuration: what is written is what is read, and a wrong value is named by its key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

from annotated_types import Ge, Gt, Lt
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from fedelta.catalog import (
    CODECS,
    LOCAL_RULES,
    MEANS,
    OPTIMIZERS,
    PARTITIONERS,
    SCHEDULES,
    STRATEGIES,
    TASKS,
    TUNING_METHODS,
)  # fmt: skip
from fedelta.config import parse_config
from fedelta.engine.exits import ExitSettings
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError
from fedelta.federation.held_out import Personalization
from fedelta.runtimes.stability import Stability
from fedelta.settings import Settings

Table = dict[str, object]


def scalars(field: FieldInfo) -> st.SearchStrategy[object] | None:
    """Values within the bounds of a field that holds one number or truth value; None for any other field."""
    least = next(
        (item.ge if isinstance(item, Ge) else item.gt for item in field.metadata if isinstance(item, Ge | Gt)), 0
    )
    most = next((item.lt for item in field.metadata if isinstance(item, Lt)), None)
    if field.annotation is int:
        return st.integers(least + 1, least + 5)
    if field.annotation is float:
        return st.floats(least, least + 2 if most is None else most, exclude_min=True, exclude_max=True)
    return st.booleans() if field.annotation is bool else None


@st.composite
def tables(draw: st.DrawFn, kind: type[Settings], **given: object) -> Table:
    """A table for a class: what is `given`, what it needs, and some of its other numbers."""
    table: Table = dict(given)
    for name, field in kind.model_fields.items():
        values = scalars(field)
        if name not in table and values is not None and (field.is_required() or draw(st.integers(0, 2)) == 0):
            table[name] = draw(values)
    return table


def chosen(registry: dict[str, type[Settings]], **given: object) -> st.SearchStrategy[Table]:
    """A table for one of the classes of a registry."""
    return st.sampled_from(list(registry)).flatmap(lambda name: tables(registry[name], name=name, **given))


@st.composite
def configurations(draw: st.DrawFn) -> Table:
    """A configuration that names its choices; most can be run, some have problems between their sections."""
    strategy = draw(chosen(STRATEGIES, clients_per_round=4, num_rounds=6, min_replies=1))
    if "mean" in STRATEGIES[strategy["name"]].model_fields:
        strategy["mean"] = draw(chosen(MEANS))
    client = draw(tables(ClientSettings, schedule=draw(chosen(SCHEDULES))))
    optimizers = ["sgd"] if strategy["name"] == "scaffold" else list(OPTIMIZERS)
    client["optimizer"] = draw(chosen({name: OPTIMIZERS[name] for name in optimizers}))
    tuning = draw(
        chosen(TUNING_METHODS) | st.sampled_from(["lora+bias", "exit-heads+adapter"]).map(lambda name: {"name": name})
    )
    return {
        "seed": draw(st.integers(0, 2**62)),
        "model": {"architecture": {"model_type": "vit", "hidden_size": 24}},
        "data": {"source": "digits", "client_column": "writer"},
        "partition": draw(chosen(PARTITIONERS, num_clients=8)),
        "task": draw(chosen(TASKS)),
        "exits": draw(tables(ExitSettings)),
        "tuning": tuning,
        "strategy": strategy,
        "local_rule": draw(chosen(LOCAL_RULES)),
        "client": client,
        "codec": {"down": draw(chosen(CODECS)), "up": draw(chosen(CODECS))},
        "stability": draw(tables(Stability)),
        "personalization": draw(tables(Personalization)),
    }


def problems_of(table: Table) -> tuple[str, ...]:
    """Why a table is refused; nothing where it is taken."""
    try:
        parse_config(table)
    except ConfigError as error:
        return error.problems
    return ()


def keys_of(table: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every value in a table that is no table itself."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from keys_of(value, (*path, key))
        else:
            yield (*path, key)


def with_value(table: Table, path: tuple[str, ...], value: object) -> Table:
    """A copy of a table with another value at a path."""
    key, *rest = path
    return table | {key: with_value(table[key], tuple(rest), value) if rest else value}


@settings(max_examples=60)
@given(table=configurations())
def test_what_is_written_is_what_is_read(table: Table):
    assume(not problems_of(table))
    config = parse_config(table)
    assert parse_config(tomllib.loads(config.to_toml())) == config


# Of no type that a key can have, or beyond all bounds.
WRONG = st.sampled_from([{"x": 1}, [[1, "a"]], "no such thing", -1e300, float("nan"), float("inf"), 2**70, [None], {}])


@settings(max_examples=120)
@given(table=configurations(), data=st.data())
def test_a_wrong_value_is_named_by_its_key_and_is_no_other_error(table: Table, data: st.DataObject):
    assume(not problems_of(table))
    whole = parse_config(table).to_table()
    path = data.draw(st.sampled_from([path for path in keys_of(whole) if path[0] != "model"]))
    value = data.draw(WRONG)
    problems = problems_of(with_value(whole, path, value))
    # A wrong name makes the keys beside it unknown or missing: these stand in the same table.
    places = [".".join(path[:length]) for length in range(1, len(path) + 1)]
    named = any(problem.startswith(f"`{place}") for problem in problems for place in places)
    assert named or not problems, problems
