"""The commands that use the model of a run: evaluate, personalize, predict, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedelta.cli.base import Overrides, Plugins, Quiet, RunPath, err_console, loading, out_console
from fedelta.errors import InputError
from fedelta.tables import table_of_personalization
from fedelta.terminal import client_bar

Client = Annotated[
    str | None, typer.Option(metavar="NAME", help="client whose model to use, if each keeps its own norms")
]


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
    with loading(plugin):
        from fedelta.catalog import TASKS
        from fedelta.evaluation import evaluate_adapter

    details = evaluate_adapter(config, adapter, overrides or (), predictions=predictions)
    losses = {task.loss.name for task in TASKS.values()}
    names = {name: f"evaluation_{name}" if name in losses else name for name in details.measures}
    print(json.dumps({names[name]: value for name, value in details.measures.items()}))


def personalize(directory: RunPath, overrides: Overrides = None, plugin: Plugins = None, quiet: Quiet = False) -> None:
    """Fine-tune a run's model on each held-out client; writes RUN/personalization.json, sends nothing."""
    with loading(plugin):
        from fedelta.experiment import Experiment
        from fedelta.personalization import personalize as fine_tune

    with client_bar(err_console, quiet) as on_result:
        record = fine_tune(directory, overrides or (), on_result=on_result)
    if quiet:
        return
    primary = Experiment.from_run(directory).config.task.primary
    out_console.print(table_of_personalization(str(directory), record, primary))


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
    with loading(plugin):
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
    with loading(plugin):
        from fedelta.inference.export import export_onnx
        from fedelta.inference.predict import Predictor

    numbers = None if exits is None else _numbers("--exits", exits)
    exported = export_onnx(Predictor.open(directory, client), out or directory / "onnx", numbers)
    for name, difference in exported.differences.items():
        print(f"{exported.directory / name}\t{difference:.1e}")


def _numbers(option: str, text: str) -> list[int]:
    """The whole numbers in `text`, with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"`{option}` is {text!r}, expected whole numbers with commas between them.", hint=f"{option} 2,4, say."
        ) from error
