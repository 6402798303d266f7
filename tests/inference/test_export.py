"""Exported models: what is in the files, that they compute the same, and that nothing is half-written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tests.inference.adapters import inputs_of, write
from tests.inference.exits import ACCUMULATOR, predictor_of, random_images

from fedelta.errors import FedeltaError, InputError, ModelError
from fedelta.inference import export
from fedelta.inference.export import export_onnx
from fedelta.inference.predict import Predictor
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.lora import Lora

onnxruntime = pytest.importorskip("onnxruntime")


def run(path: Path, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    result = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(item) for name, item in zip(names, result, strict=True)}


def test_one_file_has_all_exits_and_one_each_ends_at_a_chosen_exit(tmp_path):
    predictor = predictor_of(ACCUMULATOR, lanes=2)  # the second lane stays behind
    result = export_onnx(predictor, tmp_path / "out", [3, 1])
    files = ["exit-1.onnx", "exit-3.onnx", "model.onnx"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*files[:2], "export.json", files[2]]
    assert sorted(result.differences) == files
    assert max(result.differences.values()) <= 1e-4
    images = random_images(5)
    inputs = predictor.backbone.modality.transform(torch.stack(images))
    whole = run(tmp_path / "out/model.onnx", inputs)
    assert list(whole) == ["logits_1", "logits_2", "logits_3"]
    for number, (name, logits) in enumerate(whole.items(), start=1):
        probabilities = [list(item.probabilities.values()) for item in predictor.predict(images, exit=number)]
        torch.testing.assert_close(logits.softmax(1), torch.tensor(probabilities), atol=1e-5, rtol=0)
        if number != 2:
            (alone,) = run(tmp_path / f"out/exit-{number}.onnx", inputs).items()
            assert alone[0] == name
            torch.testing.assert_close(alone[1], logits, atol=1e-5, rtol=0)
    # Exit 1 lacks two blocks of three, each with 4 (16 x 16 + 16) + 2 x 16 x 24 + 24 + 16 + 4 x 16 numbers of 4 bytes.
    sizes = [(tmp_path / "out" / name).stat().st_size for name in files]
    assert sizes[1] - sizes[0] > 2 * 4 * (4 * 272 + 2 * 384 + 104)
    described = json.loads((tmp_path / "out/export.json").read_text())
    assert described["class_names"] == ["cat", "dog", "owl"]
    assert described["inputs"] == ["pixel_values"]
    assert described["preprocessing"]["image_size"] == 8
    assert described["preprocessing"]["mean"] == [0.5] * 3
    assert described["files"]["exit-3.onnx"]["outputs"] == ["logits_3"]


@pytest.mark.parametrize(("tuning", "outputs"), [(Lora(r=2), ["logits"]), (ExitHeads(), ["logits_1", "logits_2"])])
def test_texts_of_any_number_and_length_go_in(tuning, outputs, checkpoint, tmp_path):
    write(tmp_path / "adapter", "bert", tuning, checkpoint("bert"))
    predictor = Predictor.from_adapter(tmp_path / "adapter")
    result = export_onnx(predictor, tmp_path / "out", [1] if len(outputs) > 1 else None)
    inputs = inputs_of("bert")  # 4 texts of 7 tokens; two of them shorter now
    inputs["attention_mask"][2:, 5:] = 0
    logits = run(tmp_path / "out/model.onnx", inputs)
    assert list(logits) == outputs
    with torch.no_grad():
        torch.testing.assert_close(logits[outputs[-1]], predictor.backbone.logits(inputs), atol=1e-4, rtol=0)
    described = json.loads((tmp_path / "out/export.json").read_text())
    assert described["inputs"] == ["input_ids", "attention_mask"]
    assert described["preprocessing"]["kind"] == "text"
    assert len(result.differences) == len(outputs)
    assert not any(layer.training for layer in predictor.backbone.module.modules())


def test_a_model_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    predictor = predictor_of(ExitHeads(), num_blocks=1)
    export_onnx(predictor, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    traced = export._export

    def damaged(model):
        written = traced(model)
        for parameter in model.module.parameters():
            parameter.data += 0.01
        return written

    monkeypatch.setattr(export, "_export", damaged)
    with pytest.raises(
        FedeltaError, match=r"`logits_1` of the exported `model.onnx` differs .* expected at most 0.0001"
    ):
        export_onnx(predictor, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    predictor = predictor_of(ExitHeads(), num_blocks=2)
    with pytest.raises(InputError, match="there is no exit 3: the model has 2"):
        export_onnx(predictor, tmp_path / "out", [1, 3])
    with pytest.raises(ModelError, match="has no exits"):
        export_onnx(predictor_of(Lora(r=2)), tmp_path / "out", [1])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not a directory of exported models: it holds 'notes.txt'"):
        export_onnx(predictor, tmp_path)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnx" else importlib.util.find_spec(name))
    with pytest.raises(
        InputError, match=r"needs `onnx`, which cannot be imported.\nhint: pip install 'fedelta\[export\]'"
    ):
        export_onnx(predictor, tmp_path / "out")
