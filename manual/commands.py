"""The page about every command of the command line, from what `--help` shows."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from fedelta.cli import app

_HEAD = """# Commands

Every command of `fedelta` with its arguments and options, as `fedelta COMMAND --help` shows them.

Results go to standard output, progress and errors to standard error. Exit codes are 0 (done), 1 (training failed), 2
(something that was given cannot be used) and 130 (stopped by Ctrl-C).
"""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *(_section(name, command) for name, command in commands().items())])


def commands() -> dict[str, typer.core.TyperCommand]:
    """Every command by the words that call it, such as `server init`."""
    return dict(_below("", typer.main.get_command(app)))


def _below(prefix: str, command: object) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    for name, child in command.commands.items():  # type: ignore[attr-defined]
        words = f"{prefix} {name}".strip()
        if isinstance(child, typer.core.TyperGroup):
            yield from _below(words, child)
        elif not child.hidden:
            yield words, child


def _section(name: str, command: typer.core.TyperCommand) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [_argument(parameter) for parameter in shown if parameter.param_type_name == "argument"]
    usage = " ".join(["fedelta", name, *arguments, "[OPTIONS]"])
    paragraphs = [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]
    lines = [f"## fedelta {name}", "", f"`{usage}`", "", *(f"{paragraph}\n" for paragraph in paragraphs)]
    rows = [f"| {_cell(_names(parameter))} | {_cell(getattr(parameter, 'help', '') or '')} |" for parameter in shown]
    return "\n".join([*lines, *(["| | |", "|---|---|", *rows, ""] if rows else [])])


def _argument(parameter: object) -> str:
    name = parameter.metavar or parameter.name.upper()  # type: ignore[attr-defined]
    several = "..." if parameter.nargs == -1 and not name.endswith("...") else ""  # type: ignore[attr-defined]
    return f"{name}{several}"


def _names(parameter: object) -> str:
    if parameter.param_type_name == "argument":  # type: ignore[attr-defined]
        return f"`{_argument(parameter)}`"
    options = [*parameter.opts, *parameter.secondary_opts]  # type: ignore[attr-defined]
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.upper()}"  # type: ignore[attr-defined]
    return ", ".join(f"`{option}{value}`" for option in options)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
