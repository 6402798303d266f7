"""The commands that look at a configuration before a run: inspect, check, list."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedelta.cli.base import ConfigPath, OnErrors, Overrides, Plugins, err_console, loading, out_console, with_on_error
from fedelta.errors import FedeltaError, InputError
from fedelta.tables import table_of_sizes


def inspect(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Show what would be tuned and sent, without training."""
    with loading(plugin):
        from fedelta.config import load_config
        from fedelta.inspection import inspect as look

    sizes = look(load_config(config, overrides or ()))
    if as_json:
        print(json.dumps(sizes.as_dict(), indent=2))
        return
    out_console.print(table_of_sizes(str(config), sizes))


def check(config: ConfigPath, overrides: Overrides = None, on_error: OnErrors = None, plugin: Plugins = None) -> None:
    """Check a configuration, its data and its model with a few training steps and an evaluation; writes nothing."""
    with loading(plugin):
        from fedelta.checking import check_configuration

    try:
        for line in check_configuration(config, with_on_error(overrides, on_error), err_console):
            print(line)
    except InputError:
        raise
    except FedeltaError as error:
        raise InputError(error.message, hint=error.hint) from error
    except OSError as error:
        raise InputError(f"{error.strerror or error}: {error.filename or config}") from error
    # Any error: a run would end with it too, only later.
    except Exception as error:
        from fedelta.plugins import suspect

        if (blamed := suspect(error)) is not None:
            raise blamed from error
        raise InputError(
            f"a run would fail with {type(error).__name__}: {error}",
            hint="this should have had a better message; please report it with the configuration.",
        ) from error


def list_names(
    section: Annotated[
        str | None,
        typer.Argument(metavar="SECTION", help="a section, method or key, such as tuning, strategy.fedlama, tuning.r"),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List everything that a configuration can name, or every key of a section."""
    with loading(plugin):
        from fedelta.choices import choices, sections_called

    if section is not None:
        from fedelta.settings.reference import described

        with loading(None):
            chosen = sections_called(section)
        for text in described(chosen, out_console.width):
            out_console.print(text, highlight=False, soft_wrap=True)
        return
    table = Table("section", "choices")
    for key, names in choices().items():
        table.add_row(key, ", ".join(names))
    out_console.print(table, Text("`fedelta list SECTION` describes every key of one, such as `fedelta list tuning`."))
