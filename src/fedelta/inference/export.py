"""Exports a tuned model as ONNX: one file with an output per exit, and one truncated model per selected exit.

Every file is run by onnxruntime on random inputs and compared with PyTorch before anything is written.

torch.onnx has two exporters. This module uses the older one, which traces: the newer one gives the same numbers, but
needs onnxscript and takes ten times as long, a minute for a model of twelve blocks. If a trace fixes a size by mistake,
such as that of a batch, the comparison notices, because it uses other sizes than the trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Generator, Tensor, nn

from fedelta import __version__
from fedelta.errors import FedeltaError, InputError, ModelError, listed
from fedelta.inference.anytime import check_exit
from fedelta.inference.directory import replace_directory
from fedelta.inference.predict import Predictor
from fedelta.modalities.base import Modality
from fedelta.models.hub import Backbone
from fedelta.record.files import Record, read_json, to_json
from fedelta.seeds import stream
from fedelta.tuning.exits import exit_blocks, logits_at

WHOLE, DESCRIPTION = "model.onnx", "export.json"
TOLERANCE = 1e-4  # largest difference of a logit between onnxruntime and PyTorch
_OPSET = 17  # the first with layer norm as one operator; supported by runtimes since 2022
# Number of examples, and maximum number of tokens: for the trace, and for the comparisons.
_TRACED, _COMPARED = (2, 6), ((1, 4), (3, 9))


@dataclass(frozen=True)
class Exported:
    """The result of `export_onnx`.

    Args:
        directory: that was written.
        differences: file name to the largest difference of its logits to those of PyTorch.
    """

    directory: Path
    differences: dict[str, float]


def export_onnx(predictor: Predictor, directory: str | Path, exits: Sequence[int] | None = None) -> Exported:
    """Writes `model.onnx`, an `exit-<number>.onnx` for each of `exits`, and `export.json` with their description.

    The sizes of batches and the lengths of texts are variable. Outputs are named `logits_1` and so on by exit, or
    `logits` if the model has no exits. A truncated model contains nothing above its exit.

    Args:
        predictor: of the model.
        directory: new, empty or an earlier export; written atomically.
        exits: numbered from 1; by default all.

    Raises:
        InputError: the extra `export` is not installed, `directory` holds other files, or there is no such exit.
        ModelError: the model has no exits although `exits` are given, or it cannot be exported.
        FedeltaError: an exported model differs from PyTorch by more than `TOLERANCE`.
    """
    _require()
    target = Path(directory).resolve()
    _refuse_foreign(target)
    backbone = predictor.backbone
    for number in exits or ():
        check_exit(backbone, number)
    numbers = range(1, len(exit_blocks(backbone.module)) + 1)
    selected = sorted(set(numbers if exits is None else exits))
    models = {WHOLE: _Answers(backbone, numbers)}
    models |= {f"exit-{number}.onnx": _Answers(backbone, [number]) for number in selected}
    contents: dict[str, str | bytes] = {}
    differences: dict[str, float] = {}
    for name, model in models.items():
        written = _export(model)
        contents[name], differences[name] = written, _largest_difference(name, model, written)
    description = _describe(predictor, models, differences)
    contents[DESCRIPTION] = to_json(description, indent=2) + "\n"
    replace_directory(target, contents)
    return Exported(Path(directory), differences)


class _Answers(nn.Module):
    """A model as a function of unnamed tensors, which is what an exporter takes.

    Args:
        backbone: the model.
        exits: whose logits it gives; none for those of a model without exits.
    """

    def __init__(self, backbone: Backbone, exits: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.module = backbone.module
        self.exits = exits
        # In the order of the arguments.
        self.input_names = list(_random_inputs(backbone, *_TRACED, stream(0)))
        # The exporter gives all parts the mode of the whole back; were that training, dropout would be on from then on.
        self.eval()

    @property
    def output_names(self) -> list[str]:
        """In the order of the results."""
        return [f"logits_{number}" for number in self.exits] or ["logits"]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Inputs to logits [B, C], one tensor per output."""
        inputs = dict(zip(self.input_names, tensors, strict=True))
        if not self.exits:
            return (self.backbone.logits(inputs),)
        found = logits_at(exit_blocks(self.module), lambda: self.backbone.logits(inputs), self.exits)
        return tuple(found[number] for number in self.exits)


def _require() -> None:
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"exporting a model needs {' and '.join(f'`{name}`' for name in missing)}, which cannot be imported.",
            hint="pip install 'fedelta[export]'",
        )


def _refuse_foreign(target: Path) -> None:
    """Refuses to replace a directory that holds other files than those of an export."""
    names = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    foreign = sorted(set(names) - _written(target / DESCRIPTION))
    if target.exists() and not target.is_dir():
        foreign = [target.name]
    if foreign:
        raise InputError(
            f"{str(target)!r} is not a directory of exported models: it holds {listed(foreign, 3)}.",
            hint="set `--out` to a new or empty directory.",
        )


def _written(description: Path) -> set[str]:
    """Names of the files of an earlier export, from its description; empty without a valid description."""
    try:
        files = read_json(description)["files"]
        return {DESCRIPTION, *map(str, files)}
    except (FedeltaError, OSError, KeyError, TypeError):
        return set()


def _modality(backbone: Backbone) -> Modality:
    if backbone.modality is None:
        raise ModelError(
            "this backbone has no modality that describes its inputs.", hint="export the model of a run directory."
        )
    return backbone.modality


def _random_inputs(backbone: Backbone, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
    """Model inputs of `num` examples, texts with at most `length` tokens, on the model's device."""
    inputs = _modality(backbone).export_inputs(num, length, generator)
    device = next(backbone.module.parameters()).device
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@torch.no_grad()
def _export(model: _Answers) -> bytes:
    inputs = _random_inputs(model.backbone, *_TRACED, stream(0, "export"))
    axes = {name: dict(_modality(model.backbone).dynamic_axes) for name in inputs}
    of_outputs = {0: "batch"}
    if model(*inputs.values())[0].dim() > 2:  # an answer for each token
        of_outputs |= {1: "sequence"}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # Warnings about the older exporter, and about numbers in the model's code that become constants.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model, tuple(inputs.values()), Path(folder, WHOLE), dynamo=False, opset_version=_OPSET,
                input_names=list(inputs), output_names=model.output_names,
                dynamic_axes=axes | dict.fromkeys(model.output_names, of_outputs),
            )  # fmt: skip
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"{type(model.module).__name__} cannot be written as ONNX: {reason}") from error
        return Path(folder, WHOLE).read_bytes()


@torch.no_grad()
def _largest_difference(name: str, model: _Answers, written: bytes) -> float:
    """The largest difference between onnxruntime and PyTorch, over all outputs and two batches.

    Raises:
        FedeltaError: the difference is above `TOLERANCE`.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(written, providers=["CPUExecutionProvider"])
    largest = 0.0
    for num, length in _COMPARED:
        inputs = _random_inputs(model.backbone, num, length, stream(0, "comparison", num))
        # The file lacks inputs that the model does not read, such as token types in some families.
        input_names = {node.name for node in session.get_inputs()}
        outputs = session.run(
            model.output_names, {name: tensor.cpu().numpy() for name, tensor in inputs.items() if name in input_names}
        )
        for output, logits, expected in zip(model.output_names, outputs, model(*inputs.values()), strict=True):
            difference = (torch.from_numpy(logits) - expected.cpu()).abs().max().item()
            if not difference <= TOLERANCE:  # NaN is none
                raise FedeltaError(
                    f"`{output}` of the exported `{name}` differs from PyTorch by {difference:.2g} on a batch of "
                    f"{num}, expected at most {TOLERANCE:g}; nothing was written.",
                    hint="try another version of torch or onnxruntime, and please report the model.",
                )
            largest = max(largest, difference)
    return largest


def _describe(predictor: Predictor, models: Mapping[str, _Answers], differences: Mapping[str, float]) -> Record:
    """The content of `export.json`."""
    return {
        "fedelta_version": __version__,
        "class_names": list(predictor.class_names),
        "inputs": models[WHOLE].input_names,
        "preprocessing": dict(_modality(predictor.backbone).description),
        "files": {
            name: {"outputs": model.output_names, "largest_difference": differences[name]}
            for name, model in models.items()
        },
    }
