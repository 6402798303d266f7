"""Language models in the engine: with what makes the training of other models faster, too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.builders import assert_close, assert_same_bits, deltas_of, jobs_for, start_of
from tests.engine.test_tokens import backbone_of
from tests.small_language import small_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from fedelta.data.batches import Examples
from fedelta.engine import evaluator, products
from fedelta.engine.filling import chunks_of
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Optimizer, Sgd
from fedelta.engine.work import ClientSettings
from fedelta.modalities.dialogues import Dialogues, Encoded, StoredDialogues
from fedelta.models import frozen, token_losses
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tasks.language import Language, TokenCounts
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.full import Full
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

PLAIN, QUERIES = Sgd(momentum=0.0), Lora(r=2, target_modules=("q", "v"))


def examples(num_rows: int = 12) -> Examples:
    """Rows of 3 to 14 random tokens, of which the last half is trained on."""
    generator = stream(0, "rows")
    lengths = [3 + number % 12 for number in range(num_rows)]
    rows = [
        Encoded(
            torch.randint(3, 320, (length,), generator=generator).tolist(), [2 * i >= length for i in range(length)]
        )
        for length in lengths
    ]
    inputs = StoredDialogues.of(rows, Dialogues(small_tokenizer(has_pad=True), max_length=16))
    return Examples(inputs, TokenCounts(inputs.num_targets.float()))


def engine_of(
    method: TuningMethod = QUERIES, *, family: str = "llama", lanes: int = 2, recomputes: bool = False,
    optimizer: Optimizer = PLAIN,
) -> LaneEngine:  # fmt: skip
    backbone, shared = backbone_of(family, num_hidden_layers=3, tie_word_embeddings=False), Lanes(lanes)
    backbone = replace(backbone, modality=Dialogues(small_tokenizer(has_pad=True), max_length=16))
    spec = method.apply(backbone, shared, stream(1))
    client = ClientSettings(batch_size=2, local_epochs=2, optimizer=optimizer)
    return LaneEngine(
        backbone, spec, shared, examples(),
        client=client, rule=Plain(), task=Language(), cache_bytes=2**20, recomputes=recomputes,
    )  # fmt: skip


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product is large enough for oneDNN."""
    monkeypatch.setattr(frozen, "_LARGE", 1)
    monkeypatch.setattr(frozen, "_MANY_ROWS", 1)


@pytest.mark.usefixtures("large")
@pytest.mark.skipif(not frozen._has_onednn(), reason="PyTorch without oneDNN, or another processor")
def test_blocks_that_are_computed_again_multiply_as_before():
    kept, again = engine_of(), engine_of(recomputes=True)
    assert again._model._has_frozen
    anchor = start_of(kept)
    assert_same_bits(deltas_of(again, jobs_for([4, 3], anchor))[1], deltas_of(kept, jobs_for([4, 3], anchor))[1])


@pytest.mark.skipif(not frozen._has_onednn(), reason="PyTorch without oneDNN, or another processor")
def test_rows_of_tokens_are_multiplied_by_onednn_too(monkeypatch: pytest.MonkeyPatch):
    expected = deltas_of(plain := engine_of(), jobs_for([4, 3], start_of(plain)))[1]
    shapes, operation = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(frozen, "_LARGE", 1)
    monkeypatch.setattr(frozen, "_MANY_ROWS", 1)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda x, *others: shapes.append(x.shape) or operation(x, *others)
    )
    assert_close(
        deltas_of(engine := engine_of(), jobs_for([4, 3], start_of(engine)))[1], expected, rtol=1e-3, atol=1e-6
    )
    assert engine._model._unpadded is not None
    assert shapes


@pytest.mark.parametrize("recomputes", [False, True])
def test_whole_models_train_the_same_with_products_and_without(recomputes: bool, monkeypatch: pytest.MonkeyPatch):
    plain = engine_of(Full(), lanes=1)
    monkeypatch.setattr(products, "_FEWEST_SCALARS", 1)
    engine = engine_of(Full(), lanes=1, recomputes=recomputes)
    names = engine.bank.dense_layers.changes
    assert ("model.layers.0.mlp.up_proj.weight" in names) is not recomputes
    assert "lm_head.weight" not in names  # the losses of tokens read its weight
    assert engine.notes == []
    expected = deltas_of(plain, jobs_for([6], start_of(plain)))[0]
    assert_close(deltas_of(engine, jobs_for([6], start_of(engine)))[0], expected, rtol=1e-3, atol=1e-5)


def test_whole_models_have_one_lane():
    engine = engine_of(Full(), lanes=3)
    assert engine.lanes.num == 1
    assert engine.bank.by_tensor


def test_frozen_blocks_below_a_tuned_one_are_not_cached():
    engine = engine_of(Lora(r=2, target_modules=("model.layers.2.self_attn.q_proj",)))
    assert chunks_of(engine.inputs, [torch.arange(4)]) == []
    assert deltas_of(engine, jobs_for([4, 3], start_of(engine)))[1]


def test_clients_that_take_the_lanes_of_others_train_as_if_alone():
    together, alone = engine_of(), engine_of(lanes=1)
    sizes = [1, 4, 2, 3, 2]
    deltas = deltas_of(together, jobs_for(sizes, start_of(together)))
    for job in jobs_for(sizes, start_of(alone)):
        assert_close(deltas[job.client_id], deltas_of(alone, [job])[job.client_id], rtol=1e-3, atol=1e-6)


class _Logits(TorchDispatchMode):
    """Notes the largest number of tokens whose scores for all 320 words are in one tensor."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> object:
        outputs = func(*args, **(kwargs or {}))
        for tensor in outputs if isinstance(outputs, tuple) else (outputs,):
            if not isinstance(tensor, torch.Tensor) or tensor.dim() < 2 or tensor.shape[-1] != 320:
                continue
            if tensor.untyped_storage().data_ptr() not in self.weights:
                self.most = max(self.most, tensor.numel() // 320)
        return outputs


@pytest.mark.parametrize(
    ("family", "method", "most"),
    [
        # Parts of 5 tokens, of the 40 that are trained on in 12 rows; as many if the output embedding is tuned too.
        ("llama", QUERIES, 5),
        ("llama", Full(), 5),
        # The model itself returns the logits of all tokens: of 2 rows of up to 16, because 40 // 16 = 2.
        ("gemma2", QUERIES, 32),
    ],
)
def test_an_evaluation_has_the_logits_of_few_tokens_at_a_time(
    family: str, method: TuningMethod, most: int, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(method, family=family, lanes=1)
    start, rows = start_of(engine), examples()
    expected = engine.evaluator.evaluate(start, rows)
    monkeypatch.setitem(token_losses._CHUNK_LOGITS, "cpu", 5 * 320)
    monkeypatch.setitem(evaluator._BATCH_LOGITS, "cpu", 40 * 320)
    with _Logits(engine.backbone.module) as logits:
        evaluated = engine.evaluator.evaluate(start, rows)
    assert 1 < logits.most <= most
    assert evaluated.measures["test_loss"] == pytest.approx(expected.measures["test_loss"], rel=1e-5)
