"""The command line. Results go to standard output, progress and errors to standard error.

Exit codes: 0 done; 1 training failed; 2 something given cannot be used; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedelta.errors import FedeltaError, InputError, PluginError
from fedelta.imports import collector_paused
from fedelta.terminal import (
    client_bar,
    escape_unprintable,
    round_bar,
    table_of_personalization,
    table_of_run,
    table_of_sizes,
)

if TYPE_CHECKING:
    from fedelta.experiment import Result
    from fedelta.tasks.base import Measure

app = typer.Typer(
    help="Federated fine-tuning of pre-trained models that sends almost nothing over the network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Names come from anywhere: square brackets in them are no markup.
out_console = Console(markup=False)
err_console = Console(stderr=True, markup=False)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="a TOML file, such as recipes/demo.toml")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override, e.g. --set tuning.r=4; repeatable"),
]
Client = Annotated[
    str | None, typer.Option(metavar="NAME", help="client whose model to use, if each keeps its own norms")
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="a Python file with methods of your own; repeatable"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar and no table")]


def main() -> None:
    """Entry point of the `fedelta` command."""
    # Both are read once, when torch and the tokenizers are imported. Threads that spin while they wait are harmless on
    # an idle machine; on a busy one they occupy cores that other threads need, and a round takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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
    except SystemExit as error:  # how every command ends, and a plug-in may not end one
        if "fedelta.plugins" in sys.modules:
            _fail_if_a_plugin_ended_it(error)
        raise
    except Exception as error:  # noqa: BLE001 raised again unless a plug-in made it
        _fail(_blamed(error), 2)


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the run directory; default runs/<name of CONFIG>")] = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Run an experiment."""
    with _loading(plugin):
        from fedelta.experiment import Experiment
        from fedelta.record.rundir import free_name

    experiment = Experiment.from_toml(config, overrides or ())
    path = out or free_name(Path("runs"), experiment.name)
    with _resumable(path, f"fedelta resume {path}"), round_bar(err_console, experiment.config, quiet) as on_round:
        result = experiment.run(path, on_round=on_round)
    _conclude(result, experiment.config.task.primary, quiet)


@app.command()
def resume(directory: RunPath, plugin: Plugins = None, quiet: Quiet = False) -> None:
    """Continue a run that was stopped or killed."""
    with _loading(plugin):
        from fedelta.experiment import Experiment

    experiment = Experiment.from_run(directory)
    with (
        _resumable(directory, f"fedelta resume {directory}"),
        round_bar(err_console, experiment.config, quiet) as on_round,
    ):
        result = experiment.resume(directory, on_round=on_round)
    _conclude(result, experiment.config.task.primary, quiet)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="one or more run directories")],
    out: Annotated[Path, typer.Option(help="the HTML file to write")] = Path("report.html"),
    plugin: Plugins = None,
) -> None:
    """Write one self-contained HTML page about one or more runs."""
    with _loading(plugin):
        from fedelta.report.writing import write_report

    if out.is_dir():
        raise InputError(f"`--out` is {str(out)!r}, a directory; expected a file such as {str(out / 'report.html')!r}.")
    write_report(runs, out)
    out_console.print(f"{out}", soft_wrap=True)


@app.command()
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
    with _loading(plugin):
        from fedelta.comparison.compare import compare as run_grid
        from fedelta.comparison.directory import ASKED, default_out
        from fedelta.comparison.display import Display, failure_of, print_table
        from fedelta.comparison.request import parse_over

    axes = parse_over(over or ())
    path = out or default_out(config)
    with (
        _resumable(path, f"fedelta compare {path / ASKED}"),
        nullcontext() if quiet else Display(err_console) as display,
    ):
        on_event = None if display is None else display.show
        comparison = run_grid(config, axes, path, overrides=overrides or (), processes=processes, on_event=on_event)
    if not quiet:
        print_table(comparison, out_console)
    if comparison.failures:
        raise failure_of(comparison)


@app.command()
def inspect(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Show what would be tuned and sent, without training."""
    with _loading(plugin):
        from fedelta.config import load_config
        from fedelta.inspection import inspect as look

    sizes = look(load_config(config, overrides or ()))
    if as_json:
        print(json.dumps(sizes.as_dict(), indent=2))
        return
    out_console.print(table_of_sizes(str(config), sizes))


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG|RUN", help="a TOML file or a run directory")],
    overrides: Overrides = None,
    adapter: Annotated[Path | None, typer.Option(help="a PEFT adapter directory; of a RUN its own")] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a CSV file to write, with the answer to each example")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Measure a model on the test set of a configuration or a run; prints JSON."""
    with _loading(plugin):
        from fedelta.catalog import TASKS
        from fedelta.evaluation import evaluate_adapter

    details = evaluate_adapter(config, adapter, overrides or (), predictions=predictions)
    losses = {task.loss.name for task in TASKS.values()}
    names = {name: f"evaluation_{name}" if name in losses else name for name in details.measures}
    print(json.dumps({names[name]: value for name, value in details.measures.items()}))


@app.command()
def personalize(directory: RunPath, overrides: Overrides = None, plugin: Plugins = None, quiet: Quiet = False) -> None:
    """Fine-tune a run's model on each held-out client; writes RUN/personalization.json, sends nothing."""
    with _loading(plugin):
        from fedelta.experiment import Experiment
        from fedelta.personalization import personalize as fine_tune

    with client_bar(err_console, quiet) as on_result:
        record = fine_tune(directory, overrides or (), on_result=on_result)
    if quiet:
        return
    primary = Experiment.from_run(directory).config.task.primary
    out_console.print(table_of_personalization(str(directory), record, primary))


@app.command()
def predict(  # noqa: PLR0917 the command line's, all options
    directory: RunPath,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="image or sound files; texts for a text model")
    ],
    client: Client = None,
    exit: Annotated[int | None, typer.Option(help="the exit that answers, from 1; of a model with exits")] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="the deepest exit that answers within so many milliseconds on this machine")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="the first exit that gives a class this probability, above 0 and at most 1")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Classify images, recordings or texts with the model of a run."""
    with _loading(plugin):
        from fedelta.inference.costs import costs_of
        from fedelta.inference.predict import Predictor

    choices = {"--exit": exit, "--budget-ms": budget_ms, "--confidence": confidence}
    options = [name for name, value in choices.items() if value is not None]
    if len(options) > 1:
        raise InputError(f"{' and '.join(options)} exclude each other.", hint="give one of them, or none.")
    predictor = Predictor.open(directory, client)
    if budget_ms is not None:
        exit = costs_of(directory, predictor.backbone).deepest(budget_ms)
    for name, answer in zip(inputs, predictor.predict(inputs, exit=exit, confidence=confidence), strict=True):
        print("\t".join([name, *answer.cells, *([] if answer.exit is None else [str(answer.exit)])]))


@app.command()
def export(  # noqa: PLR0917 the command line's, all options
    directory: RunPath,
    onnx: Annotated[bool, typer.Option("--onnx", help="as ONNX, for onnxruntime and others")] = False,
    out: Annotated[Path | None, typer.Option(help="the directory to write; default RUN/onnx")] = None,
    exits: Annotated[
        str | None, typer.Option(metavar="2,4", help="the exits with a truncated model each; default all")
    ] = None,
    client: Client = None,
    plugin: Plugins = None,
) -> None:
    """Write the model of a run for other programs, checked against PyTorch."""
    if not onnx:
        raise InputError("no format was given to export to.", hint=f"`fedelta export {directory} --onnx`")
    with _loading(plugin):
        from fedelta.inference.export import export_onnx
        from fedelta.inference.predict import Predictor

    numbers = None if exits is None else _numbers("--exits", exits)
    exported = export_onnx(Predictor.open(directory, client), out or directory / "onnx", numbers)
    for name, difference in exported.differences.items():
        print(f"{exported.directory / name}\t{difference:.1e}")


@app.command()
def check(config: ConfigPath, overrides: Overrides = None, plugin: Plugins = None) -> None:
    """Check a configuration, its data and its model with a few training steps and an evaluation; writes nothing."""
    with _loading(plugin):
        from fedelta.checking import check_configuration

    try:
        for line in check_configuration(config, overrides or (), err_console):
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


@app.command("list")
def list_names(plugin: Plugins = None) -> None:
    """List everything that a configuration can name."""
    with _loading(plugin):
        from fedelta.choices import choices

    table = Table("section", "choices")
    for section, names in choices().items():
        table.add_row(section, ", ".join(names))
    out_console.print(table)


@contextmanager
def _resumable(path: Path, command: str) -> Iterator[None]:
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


def _conclude(result: Result, primary: Measure, quiet: bool) -> None:
    """Writes the report, and prints the table on standard output."""
    from fedelta.report.writing import write_report

    report_path = result.path / "report.html"
    write_report([result.path], report_path)
    if not quiet:
        out_console.print(table_of_run(result, primary, report_path))


def _blamed(error: Exception) -> PluginError:
    """The error that names the plug-in at fault; any other error is raised again with its traceback."""
    from fedelta.plugins import suspect

    blamed = suspect(error)
    if blamed is None:
        raise error
    return blamed


def _fail_if_a_plugin_ended_it(error: SystemExit) -> None:
    from fedelta.plugins import blame

    blamed = blame(error)
    if blamed is not None:
        _fail(blamed, 2)


@contextmanager
def _loading(plugins: list[Path] | None) -> Iterator[None]:
    """Loads the plug-in files first; imports inside this context run without garbage collection."""
    with collector_paused():
        if plugins:
            from fedelta.plugins import load_plugin

            for path in plugins:
                load_plugin(path)
        yield


def _numbers(option: str, text: str) -> list[int]:
    """The whole numbers in `text`, with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"`{option}` is {text!r}, expected whole numbers with commas between them.", hint=f"{option} 2,4, say."
        ) from error


def _fail(error: FedeltaError, code: int) -> None:
    err_console.print(f"error: {error.message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if error.hint is not None:
        err_console.print(f"hint: {error.hint}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
