"""The commands that use the model of a run: evaluate, personalize, predict, export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli.base import Overrides, Plugins, Quiet, RunPath, err_console, loading, out_console
from fedelta.errors import InputError
from fedelta.tables import table_of_personalization
from fedelta.terminal import client_bar

if TYPE_CHECKING:
    from fedelta.inference.predict import Predictor

Client = Annotated[
    str | None, typer.Option(metavar="NAME", help="client whose model to use, if each keeps tensors of its own")
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
    """Fine-tune a run's model on each held-out client; writes RUN/personalization.json and the page, sends nothing."""
    with loading(plugin):
        from fedelta.experiment import Experiment, write_page
        from fedelta.personalization import personalize as fine_tune

    with client_bar(err_console, quiet) as on_result:
        record = fine_tune(directory, overrides or (), on_result=on_result)
    write_page(directory)
    if quiet:
        return
    primary = Experiment.from_run(directory).config.task.primary
    out_console.print(table_of_personalization(str(directory), record, primary))


def predict(  # noqa: PLR0917 the command line's, all options
    directory: RunPath,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="image or sound files; for a text model texts, or files of one a line"),
    ] = None,
    client: Client = None,
    exit: Annotated[int | None, typer.Option(help="the exit that answers, from 1; of a model with exits")] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="the deepest exit that answers within so many milliseconds on this machine")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="the first exit that gives a class this probability, above 0 and at most 1")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="what a language model answers; may be repeated")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="of an answer; default 256")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0, the default, draws nothing")] = None,
    top_p: Annotated[float | None, typer.Option(help="draw from the likeliest tokens with this probability")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="a text that ends an answer; may be repeated")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of what is drawn; default 0")] = None,
    plugin: Plugins = None,
) -> None:
    """Classify images, recordings or texts with the model of a run, or let a language model answer."""
    with loading(plugin):
        from fedelta.inference.costs import costs_of
        from fedelta.inference.predict import Predictor
        from fedelta.inference.text_files import texts_of

    choices = {"--exit": exit, "--budget-ms": budget_ms, "--confidence": confidence}
    options = [name for name, value in choices.items() if value is not None]
    if len(options) > 1:
        raise InputError(f"{' and '.join(options)} exclude each other.", hint="give one of them, or none.")
    given = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": stop, "seed": seed}
    drawing = {name: value for name, value in given.items() if value is not None}
    if prompt and (inputs or options):
        raise InputError(f"{(options or ['INPUT'])[0]} and --prompt exclude each other.", hint="leave one out.")
    if not prompt and not inputs:
        raise InputError("there is nothing to predict.", hint="give files or texts, or `--prompt` to a language model.")
    if drawing and not prompt:
        raise InputError("how an answer is drawn was given, but no prompt.", hint="give it with `--prompt`.")
    predictor = Predictor.open(directory, client)
    if prompt:
        _answer(predictor, prompt, drawing)
        return
    if budget_ms is not None:
        exit = costs_of(directory, predictor.backbone).deepest(budget_ms)
    modality = predictor.backbone.modality
    names = texts_of(inputs or []) if modality is not None and modality.name in ("text", "words") else inputs or []
    for name, answer in zip(names, predictor.predict(names, exit=exit, confidence=confidence), strict=True):
        print("\t".join([name, *answer.cells, *([] if answer.exit is None else [str(answer.exit)])]))


def _answer(predictor: Predictor, prompts: list[str], drawing: Mapping[str, object]) -> None:
    """Prints an answer to each prompt: as it comes if there is one, else each after its prompt, in a line."""
    from pydantic import ValidationError

    from fedelta.models.generation import Sampling

    try:
        sampling = Sampling.model_validate(
            {name: tuple(value) if isinstance(value, list) else value for name, value in drawing.items()}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"`--{str(problem['loc'][0]).replace('_', '-')}`: {problem['msg']}.") from error
    if len(prompts) > 1:
        for prompt, answer in zip(prompts, predictor.generate(prompts, sampling), strict=True):
            print(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False))
        return
    if sampling.stop:  # a piece may be part of a text that ends the answer
        print(predictor.generate(prompts, sampling)[0])
        return
    predictor.generate(prompts, sampling, on_text=lambda text: print(text, end="", flush=True))
    print()


def export(  # noqa: PLR0917 the command line's, all options
    directory: RunPath,
    onnx: Annotated[bool, typer.Option("--onnx", help="as ONNX, for onnxruntime and others")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="as a whole model of transformers")] = False,
    out: Annotated[Path | None, typer.Option(help="the directory to write; default RUN/onnx or RUN/merged")] = None,
    exits: Annotated[
        str | None, typer.Option(metavar="2,4", help="the exits with a truncated model each; default all")
    ] = None,
    client: Client = None,
    plugin: Plugins = None,
) -> None:
    """Write the model of a run for other programs; ONNX is checked against PyTorch."""
    if onnx == merged:
        problem = "--onnx and --merged exclude each other." if onnx else "no format was given to export to."
        raise InputError(problem, hint=f"`fedelta export {directory} --onnx`, or `--merged`")
    if merged:
        if exits is not None or client is not None:
            raise InputError(f"{'--exits' if exits else '--client'} does not go with --merged.", hint="leave it out.")
        with loading(plugin):
            from fedelta.inference.merged import write_merged

        print(write_merged(directory, out or directory / "merged"))
        return
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
