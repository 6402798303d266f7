"""The command `fedelta`: all its commands, and what it says when one fails."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Annotated

import typer

from fedelta.cli.audit import audit
from fedelta.cli.base import err_console
from fedelta.cli.deployment import attach, deploy, server_commands
from fedelta.cli.looking import check, inspect, list_names
from fedelta.cli.models import evaluate, export, personalize, predict
from fedelta.cli.new import new
from fedelta.cli.privacy import privacy
from fedelta.cli.runs import compare, report, resume, run
from fedelta.cli.site import site_commands
from fedelta.errors import FedeltaError, InputError, PluginError
from fedelta.machine import available_cores, is_limited
from fedelta.terminal import escape_unprintable

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="print the version", is_eager=True)] = False,
) -> None:
    """Federated fine-tuning of pre-trained models that sends almost nothing over the network."""
    if version:
        from fedelta import __version__

        print(f"fedelta {__version__}")
        raise typer.Exit


for command in (new, run, resume, report, compare, inspect, evaluate, personalize, predict, export, check, privacy):
    app.command()(command)
app.command("list")(list_names)
app.command()(deploy)
app.command()(attach)
app.command()(audit)
app.add_typer(server_commands, name="server")
app.add_typer(site_commands, name="site")


def main() -> None:
    """Entry point of the `fedelta` command."""
    # All are read once, when torch and the tokenizers are imported. Threads that spin while they wait are harmless on
    # an idle machine; on a busy one they occupy cores that other threads need, and a round takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if is_limited():  # OpenMP starts a thread for each core that it sees, which would all share the quota
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))
    if "torch" not in sys.modules:  # this process, and those that it starts, run nothing but this command
        os.environ.setdefault("FEDELTA_LIGHT_IMPORTS", "1")  # see `models/light.py`
    # At exit the interpreter searches all objects for reference cycles, which takes a second and has no use here.
    atexit.register(gc.freeze)
    escape_unprintable()
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(error, 2)
    except FedeltaError as error:
        _fail(error, 1)
    except OSError as error:
        _fail(FedeltaError(f"{error.strerror or error}: {error.filename or 'while writing'}"), 1)
    except (Exception, SystemExit) as error:  # noqa: BLE001 raised again unless a plug-in made it
        _fail(_blamed(error), 2)


def _blamed(error: Exception | SystemExit) -> PluginError:
    """The error that names the plug-in at fault; any other error, or the end of a command, is raised again."""
    if "fedelta.plugins" not in sys.modules:
        raise error
    from fedelta.plugins import blame, suspect

    blamed = blame(error) if isinstance(error, SystemExit) else suspect(error)
    if blamed is None:
        raise error
    return blamed


def _fail(error: FedeltaError, code: int) -> None:
    err_console.print(f"error: {error.message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if error.hint is not None:
        err_console.print(f"hint: {error.hint}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
