"""The command that writes a configuration for somebody's data: new."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli.base import Overrides, loading, out_console
from fedelta.errors import DataError, InputError

if TYPE_CHECKING:
    from fedelta.drafting import Found, Kind


def new(  # noqa: PLR0917 the command line's, all options
    source: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="a folder of images or recordings, or a table; asked for if absent"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the TOML file to write; default <name of DATA>.toml")] = None,
    kind: Annotated[
        str | None, typer.Option(help="images, recordings, texts, words or dialogues; by default told from the data")
    ] = None,
    model: Annotated[str | None, typer.Option(help="bundled:NAME, a directory or a hub name")] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="divide the rows among so many clients; default those that the data name")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Look at data and write a commented configuration for them; asks what is not given, on a terminal."""
    asks = source is None and sys.stdin.isatty()
    if asks:
        source = str(typer.prompt("data (a folder of images or recordings, or a table)"))
    if source is None:
        raise InputError("the data were not given, and there is no terminal to ask.", hint="fedelta new DATA")
    out = out or Path(f"{Path(source.rstrip('/')).stem or 'new'}.toml")
    if out.exists():
        raise InputError(f"{str(out)!r} exists already, and is not overwritten.", hint="give another with `--out`.")
    with loading(None):
        from fedelta.drafting import KINDS, draft

    chosen = next((name for name in KINDS if name == kind), None)
    if kind is not None and chosen is None:
        raise InputError(f"`--kind` is {kind!r}, expected one of {', '.join(KINDS)}.")
    if asks:
        found, overrides = _looked(source, chosen, overrides or [])
        out_console.print(f"found {found}", highlight=False, soft_wrap=True)
        model = model or typer.prompt("model (empty for a small one)", default="", show_default=False) or None
        if not found.num_clients and clients is None:
            clients = typer.prompt("number of clients to divide the rows among", default=8, type=int)
    text, found = draft(source, kind=chosen, model=model, clients=clients, overrides=overrides or ())
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written: {error.strerror or error}.") from error
    out_console.print(f"{found}\nwrote {out}; next: fedelta check {out}", highlight=False, soft_wrap=True)


def _looked(source: str, kind: Kind | None, overrides: list[str]) -> tuple[Found, list[str]]:
    """What the data are, and the overrides with the answer where folders can be read in several ways."""
    from fedelta.drafting import draft

    try:
        return draft(source, kind=kind, overrides=overrides)[1], overrides
    except DataError as error:
        if "data.folders" not in (error.hint or ""):
            raise
        out_console.print(error.message, highlight=False, soft_wrap=True)
    overrides = [*overrides, f"data.folders={typer.prompt('the levels of folders, from the top')}"]
    return draft(source, kind=kind, overrides=overrides)[1], overrides
