"""The commands of a site: site init, site check, site run."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fedelta.cli.base import err_console, flower_extra, out_console

site_commands = typer.Typer(
    help="A site of a deployment: init makes its folder, run joins the server.", no_args_is_help=True
)
Folder = Annotated[Path, typer.Argument(metavar="SITE", help="the folder of the site")]


@site_commands.command()
def init(  # noqa: PLR0917 the command line's, all options
    folder: Folder,
    name: Annotated[str, typer.Option(help="of the site, as it is called in records and reports")],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="where the server is")],
    ca: Annotated[Path, typer.Option(metavar="FILE", help="the server's ca.crt")],
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="data.source in its settings")] = None,
    clients: Annotated[
        str | None, typer.Option(metavar="0-31", help="which clients of the recipe's partition are here; for trials")
    ] = None,
) -> None:
    """Make a site's folder: a key, settings to complete, and the server's authority."""
    with flower_extra():
        from fedelta.deployment.site.folder import SETTINGS, Draft, create

    public = create(folder, Draft(name, server, data, clients), ca)
    out_console.print(f"{public}", soft_wrap=True)
    quoted = shlex.quote(str(folder))
    for line in (
        f"Send {public} to the operator of the server, who copies it to HUB/sites; that registers this site.",
        f"Complete {folder / SETTINGS}, and try it with: fedelta site check {quoted}",
        f"Then: fedelta site run {quoted}",
    ):
        err_console.print(line, soft_wrap=True)


@site_commands.command()
def check(folder: Folder) -> None:
    """Check a site's settings and data; asks nobody."""
    with flower_extra():
        from fedelta.deployment.site.check import Address
        from fedelta.deployment.site.check import check as lines

    for line in lines(folder):
        if not isinstance(line, Address):
            out_console.print(line, soft_wrap=True)


@site_commands.command()
def run(folder: Folder) -> None:
    """Check a site's data, join the server, and answer it until Ctrl-C."""
    with flower_extra():
        from fedelta.deployment.site.running import run_site
        from fedelta.runtimes.flower.programs import flower_version

        flower_version()

    try:
        run_site(folder, _show)
    except KeyboardInterrupt:
        sys.exit(130)


def _show(line: str) -> None:
    err_console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True, highlight=False)
