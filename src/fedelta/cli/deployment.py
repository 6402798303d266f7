"""The commands of a deployment's server: `fedelta server ...`, deploy and attach."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedelta.cli.base import Overrides, err_console, flower_extra, loading, out_console
from fedelta.errors import InputError

if TYPE_CHECKING:
    from fedelta.deployment.server.hub import Hub
    from fedelta.deployment.server.submissions import Submission

server_commands = typer.Typer(help="The server of a federation.", no_args_is_help=True, add_completion=False)

HubPath = Annotated[Path, typer.Argument(metavar="HUB", help="the server's folder")]

Deployed = Annotated[
    Path, typer.Argument(metavar="RUN|HUB", help="a deployment's run directory, or the server's folder")
]
HubOfRun = Annotated[
    Path | None, typer.Option("--server", metavar="HUB", help="the server's folder, if RUN is not in its `runs`")
]


@server_commands.command()
def init(
    hub: HubPath,
    host: Annotated[
        str | None,
        typer.Option(help="the name or address by which sites reach this machine; goes into the certificate"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="the port that sites connect to; default 9093")
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="only a new certificate, for the server that is there")
    ] = False,
) -> None:
    """Make the folder of a server: certificates, keys and settings."""
    with flower_extra():
        from fedelta.deployment.server import hub as folders

    if renew:
        if host is not None or port is not None:
            raise InputError(
                "`--renew` takes host and port from server.toml.",
                hint=f"change {str(folders.Hub(hub).settings_file)!r} first, and leave `--host` and `--port` out.",
            )
        folders.renew(folders.Hub.open(hub))
        out_console.print(f"new certificate; restart `fedelta server run {shlex.quote(str(hub))}`", soft_wrap=True)
        return
    if host is None:
        raise InputError(
            "`--host` is missing: the name or address by which sites reach this machine.",
            hint=f"`fedelta server init {shlex.quote(str(hub))} --host 127.0.0.1` for sites on this machine only.",
        )
    out_console.print(folders.handout(folders.create(hub, host, port or folders.DEFAULT_PORT)), soft_wrap=True)


@server_commands.command("run")
def run_server(hub: HubPath) -> None:
    """Run the server until Ctrl-C; unfinished deployments go on."""
    with flower_extra():
        from fedelta.deployment.server.hub import Hub
        from fedelta.deployment.server.running import run_server as serve

    try:
        serve(Hub.open(hub), lambda line: err_console.print(line, soft_wrap=True, highlight=False))
    except KeyboardInterrupt:
        err_console.print(
            "the server has ended; unfinished deployments go on with the next `fedelta server run`", soft_wrap=True
        )


@server_commands.command()
def sites(hub: HubPath, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """List the registered sites, and what each is doing."""
    with flower_extra():
        from fedelta.deployment.server.hub import Hub
        from fedelta.deployment.server.overview import local_time, overview

    shown = overview(Hub.open(hub))
    if as_json:
        print(json.dumps(asdict(shown), indent=2))
        return
    table = Table("site", "connection", "since", "in the running deployment")
    for site in shown.sites:
        table.add_row(site.name, site.connection, local_time(site.since), site.doing)
    out_console.print(table)
    for note in shown.notes:
        err_console.print(note, soft_wrap=True)


@server_commands.command()
def stop(run: Deployed, server: HubOfRun = None) -> None:
    """Stop a deployment; its finished rounds are kept, and `fedelta deploy RUN` goes on with it."""
    with flower_extra():
        from fedelta.deployment.server import attach as attaching

    hub, submission = attaching.find(run, server)
    attaching.stop(hub, submission.name)
    err_console.print(f"{submission.name} is stopped", soft_wrap=True)


def deploy(  # noqa: PLR0917 the command line's, all options
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE|RUN", help="a TOML file; or a stopped deployment, to go on with it")
    ],
    server: Annotated[Path, typer.Option(metavar="HUB", help="the folder of the server, which has to be running")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the run directory; default HUB/runs/<name of RECIPE>")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="submit only, and print the run directory")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress and no table")] = False,
) -> None:
    """Run an experiment on the sites of a server."""
    with flower_extra(), loading(None):
        from fedelta.deployment.server.hub import Hub
        from fedelta.deployment.server.submit import submit

    hub = Hub.open(server)
    submission = submit(hub, recipe, overrides or (), out)
    if detach:
        print(submission.run)
        return
    _follow(hub, submission, quiet)


def attach(
    run: Deployed,
    server: HubOfRun = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress and no table")] = False,
) -> None:
    """Follow a deployment until it is over."""
    with flower_extra():
        from fedelta.deployment.server.attach import find

    _follow(*find(run, server), quiet)


def _follow(hub: Hub, submission: Submission, quiet: bool) -> None:
    """Shows the progress of a deployment until it is over, and its results; Ctrl-C leaves it alone."""
    with loading(None):
        from fedelta.config import read_table
        from fedelta.deployment.server.attach import follow
        from fedelta.record.rundir import CONFIG
        from fedelta.tables import Finished, table_of_run
        from fedelta.tasks.choice import task_of
        from fedelta.terminal import deployment_bar

    run = Path(submission.run)
    try:
        with deployment_bar(err_console, run, quiet) as look:
            follow(hub, submission.name, look, lambda note: err_console.print(note, soft_wrap=True))
    except KeyboardInterrupt:
        again = shlex.join(["fedelta", "attach", str(run), "--server", str(hub.path)])
        err_console.print(f"\n{submission.name} goes on without this terminal; see it again: {again}", soft_wrap=True)
        sys.exit(130)
    if not quiet:
        primary = task_of(read_table(run / CONFIG)).primary
        out_console.print(table_of_run(Finished.read(run), primary, run / "report.html"))
