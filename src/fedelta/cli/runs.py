"""The commands that train: run, resume, compare; and the page about runs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli.base import (
    ConfigPath,
    OnErrors,
    Overrides,
    Plugins,
    Quiet,
    RunPath,
    conclude,
    err_console,
    loading,
    out_console,
    resumable,
    with_on_error,
)
from fedelta.errors import InputError
from fedelta.terminal import round_bar

if TYPE_CHECKING:
    from fedelta.experiment import Experiment


def run(  # noqa: PLR0917 the command line's, all options
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the run directory; default runs/<name of CONFIG>")] = None,
    on_error: OnErrors = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Run an experiment."""
    with loading(plugin):
        from fedelta.experiment import Experiment
        from fedelta.record.rundir import free_name

    experiment = Experiment.from_toml(config, with_on_error(overrides, on_error))
    path = out or free_name(Path("runs"), experiment.name)
    if experiment.config.privacy.is_on and not quiet:
        _say_privacy(experiment)
    with resumable(path, f"fedelta resume {path}"), round_bar(err_console, experiment.config, quiet) as on_round:
        result = experiment.run(path, on_round=on_round, writes_page=False)
    conclude(result, experiment.config.task.primary, quiet)


def _say_privacy(experiment: Experiment) -> None:
    """Prints what a run on this machine promises, before it begins."""
    from fedelta.forecast import opening

    if experiment.config.runtime.name == "flower":  # refused with its own message
        return
    federation = experiment.assembly.federation
    if federation.privacy is not None:
        err_console.print(opening(federation.privacy, federation.strategy.num_rounds), markup=False, soft_wrap=True)


def resume(
    directory: RunPath,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="go on with another setting, e.g. --set strategy.num_rounds=60, also with a finished run; repeatable",
        ),
    ] = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Continue a run that was stopped or killed, or a finished one with more rounds."""
    with loading(plugin):
        from fedelta.experiment import Experiment

    experiment = Experiment.from_run(directory, overrides=overrides or ())
    if overrides and experiment.config.privacy.is_on and not quiet:
        _say_privacy(experiment)
    with (
        resumable(directory, f"fedelta resume {directory}"),
        round_bar(err_console, experiment.config, quiet) as on_round,
    ):
        result = experiment.resume(directory, on_round=on_round, writes_page=False)
    conclude(result, experiment.config.task.primary, quiet)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="one or more run directories")],
    out: Annotated[Path, typer.Option(help="the HTML file to write")] = Path("report.html"),
    plugin: Plugins = None,
) -> None:
    """Write one self-contained HTML page about one or more runs."""
    with loading(plugin):
        from fedelta.report.writing import write_report

    if out.is_dir():
        raise InputError(f"`--out` is {str(out)!r}, a directory; expected a file such as {str(out / 'report.html')!r}.")
    write_report(runs, out)
    out_console.print(f"{out}", soft_wrap=True)


def compare(  # noqa: PLR0917 the command line's, all options
    config: ConfigPath,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="an axis, e.g. --over tuning.name=head,lora; repeatable"),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="its directory; default runs/compare-<name of CONFIG>, or that of its compare.toml"),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="runs side by side; default as many as cores and memory allow")
    ] = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Run a grid of experiments, or continue it, and write its tables and a page."""
    with loading(plugin):
        from fedelta.comparison.compare import compare as run_grid
        from fedelta.comparison.directory import ASKED, default_out
        from fedelta.comparison.display import Display, failure_of, print_table
        from fedelta.comparison.request import parse_over

    axes = parse_over(over or ())
    path = out or default_out(config)
    with (
        resumable(path, f"fedelta compare {path / ASKED}"),
        nullcontext() if quiet else Display(err_console) as display,
    ):
        on_event = None if display is None else display.show
        comparison = run_grid(config, axes, path, overrides=overrides or (), processes=processes, on_event=on_event)
    if not quiet:
        print_table(comparison, out_console)
    if comparison.failures:
        raise failure_of(comparison)
