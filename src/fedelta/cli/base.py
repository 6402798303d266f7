"""What the commands share: their options, consoles, and what happens before and after a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedelta.errors import FedeltaError, InputError
from fedelta.imports import collector_paused
from fedelta.tables import table_of_run

if TYPE_CHECKING:
    from fedelta.tables import HasResults
    from fedelta.tasks.base import Measure


class OnError(StrEnum):
    """The values of `data.on_error`."""

    STOP = "stop"
    SKIP = "skip"


# Names come from anywhere: square brackets in them are no markup.
out_console = Console(markup=False)
err_console = Console(stderr=True, markup=False)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="a TOML file, such as recipes/demo.toml")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override, e.g. --set tuning.r=4; repeatable"),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="a Python file with methods of your own; repeatable"),
]
OnErrors = Annotated[
    OnError | None,
    typer.Option("--on-error", help="of examples that cannot be read: skip leaves them out (`data.on_error`)"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar and no table")]

_EXTRA = ("cryptography", "flwr", "httpx", "starlette", "uvicorn")


def with_on_error(overrides: list[str] | None, on_error: OnError | None) -> list[str]:
    """The overrides of a command with option `--on-error`."""
    return [*(overrides or ()), *([] if on_error is None else [f"data.on_error={on_error}"])]


@contextmanager
def loading(plugins: list[Path] | None) -> Iterator[None]:
    """Loads the plug-in files first; imports inside this context run without garbage collection."""
    with collector_paused():
        if plugins:
            from fedelta.plugins import load_plugin

            for path in plugins:
                load_plugin(path)
        yield


@contextmanager
def flower_extra() -> Iterator[None]:
    """Imports in this context may need the extra with Flower; says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise InputError(
            f"a deployment needs {error.name!r}, which is not installed.", hint="pip install 'fedelta[flower]'"
        ) from error


@contextmanager
def resumable(path: Path, command: str) -> Iterator[None]:
    """Prints how to resume a run that ends early; all rounds up to the last checkpoint are kept."""
    try:
        yield
    except KeyboardInterrupt:
        advice = f"; continue with: {command}" if path.exists() else ""
        err_console.print(f"stopped{advice}", markup=False, soft_wrap=True)
        sys.exit(130)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or path})"
        hint = f"when that is mended: `{command}`." if path.exists() else None
        raise FedeltaError(reason, hint=hint) from error


def conclude(result: HasResults, primary: Measure, quiet: bool) -> None:
    """Writes the report, and prints the table on standard output."""
    report_path = result.path / "report.html"
    with collector_paused():  # one search of all that a run has made takes as long as the page
        from fedelta.report.writing import write_report

        write_report([result.path], report_path)
    if not quiet:
        out_console.print(table_of_run(result, primary, report_path))
