"""Goes on with a run with other settings than those that it began with: which ones may change, and what that means.

Only settings that change nothing that was computed so far may change: how long the run is, what it may send, how often
it is evaluated, and where and by how many processes the same is computed.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedelta.config import WITHOUT_ADAPTER, Config, load_config, parse_config, read_table
from fedelta.errors import InputError
from fedelta.plugins import provider_of
from fedelta.record.amending import Amendment
from fedelta.record.checkpoint import load
from fedelta.record.files import flatten
from fedelta.record.origin import is_free
from fedelta.record.rundir import RunDirectory
from fedelta.settings import Context
from fedelta.settings.base import Table, as_settings, departures_of

# With these a finished run has further rounds.
_LENGTH = ("strategy.num_rounds", "byte_budget_mib")
_AHEAD = (*_LENGTH, "evaluate_every")
_HINT = (
    "`strategy.num_rounds`, `byte_budget_mib`, `evaluate_every`, `runtime.workers`, `runtime.name`, `data.source`, "
    "`data.test_source`, `model.source`, and the sections `[tracking]` and `[personalization]` without its held-out "
    "clients may be set. For anything else start a new run; it can begin with this model: `model.adapter = ADAPTER`."
)


def other_config(run: RunDirectory, overrides: Iterable[str]) -> Config:
    """The configuration of a run with `section.key=value` overrides.

    Raises:
        InputError: they change what has been computed, cannot be read, or see `amendment_of`.
    """
    before = load_config(run.config, WITHOUT_ADAPTER)
    config = load_config(run.config, [*WITHOUT_ADAPTER, *overrides])
    changed = _different(before.to_table(), config.to_table())
    if refused := [key for key in changed if not _may_change(key)]:
        values = "; ".join(
            f"`{key}` is {_shown(changed[key][0])} there and would be {_shown(changed[key][1])}" for key in refused
        )
        raise InputError(f"run {str(run.path)!r} cannot go on with other settings: {values}.", hint=_HINT)
    amendment_of(run, config)  # refused before a progress bar is shown
    return config


def amendment_of(run: RunDirectory, config: Config) -> Amendment | None:
    """What changes if a run goes on with those settings of `config` that may change; None if nothing does.

    Raises:
        InputError: the run is longer already, or its privacy does not allow more rounds.
    """
    table, original = config.to_table(), load_config(run.config, WITHOUT_ADAPTER)
    changed = {key: texts for key, texts in _different(original.to_table(), table).items() if _may_change(key)}
    if not changed:
        return None
    checkpoint = load(run.checkpoint)
    _refuse_shorter(run, config, checkpoint.round)
    if "strategy.num_rounds" in changed:
        _refuse_other_noise(run, config)
    written = read_table(run.config)
    for key in changed:
        _copy(key, table, written)
    now = parse_config(written, WITHOUT_ADAPTER)
    ahead = {key: text for key, text in flatten(now.to_table()) if key in _AHEAD}
    settings = {key: text for key, text in checkpoint.origin.settings.items() if key not in _AHEAD} | ahead
    goes_on = any(key in changed for key in _LENGTH)
    departures = _departures(original, now, checkpoint.round) if goes_on and checkpoint.round else ()
    return Amendment(_text(now, written), settings, changed, departures, goes_on)


def _text(config: Config, written: Table) -> str:
    """The new content of `config.toml`; the adapter that the run started from stays named."""
    adapter = written["model"].get("adapter")
    model = config.model if adapter is None else config.model.model_copy(update={"adapter": adapter})
    return config.model_copy(update={"model": model}).to_toml()


def _may_change(key: str) -> bool:
    return key in _AHEAD or (is_free(key) and key != "model.adapter")


def _different(before: Table, now: Table) -> dict[str, tuple[str | None, str | None]]:
    """Dotted key to the texts of both values, None where the key is absent, of those that differ."""
    old, new = dict(flatten(before)), dict(flatten(now))
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _copy(key: str, source: Table, target: Table) -> None:
    """Gives `target` the value of `source` at a dotted key, or drops it."""
    *parents, last = key.split(".")
    for parent in parents:
        source, target = source.get(parent, {}), target.setdefault(parent, {})
    target.pop(last, None)
    if last in source:
        target[last] = source[last]


def _shown(text: str | None) -> str:
    return "not set" if text is None else text


def _refuse_shorter(run: RunDirectory, config: Config, rounds_done: int) -> None:
    if config.strategy.num_rounds < rounds_done:
        raise InputError(
            f"`strategy.num_rounds` is {config.strategy.num_rounds}, but run {str(run.path)!r} has done {rounds_done} "
            "rounds.",
            hint="expected a larger number. A shorter run has to start anew.",
        )


def _refuse_other_noise(run: RunDirectory, config: Config) -> None:
    """Refuses another number of rounds where the noise of the rounds so far was worked out for the planned ones."""
    privacy = config.privacy
    if not privacy.is_on or (privacy.target_epsilon is None and privacy.mechanism != "banded"):
        return
    key = "mechanism" if privacy.target_epsilon is None else "target_epsilon"
    raise InputError(
        f"the noise of run {str(run.path)!r} was calculated for its number of rounds (`privacy.{key}` is "
        f"{getattr(privacy, key)!r}): with other rounds its guarantee would be another one.",
        hint="start a new run with this number of rounds; a run with `privacy.noise_multiplier` and "
        "`privacy.max_epsilon` can go on as long as its limit allows.",
    )


def _departures(before: Config, now: Config, rounds_done: int) -> tuple[str, ...]:
    """In what the run differs from one that was planned like this from the start; empty: it has the same bits."""
    earlier, later = (
        Context({name: getattr(config, name) for name in Config.model_fields}) for config in (before, now)
    )
    departures = departures_of(earlier, later, rounds_done)
    if (provider := provider_of(as_settings(now.strategy))) is not None:
        departures.append(
            f"what strategy {now.strategy.name!r} of plug-in {provider.label!r} does with the number of rounds is not "
            "known"
        )
    return tuple(departures)
