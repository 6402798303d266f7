"""Language models in the engine: with what makes the training of other models faster, too."""

from __future__ import annotations

import pytest
import torch
from tests.builders import assert_close, assert_same_bits, deltas_of, jobs_for, start_of
from tests.engine.test_tokens import backbone_of
from tests.small_language import small_tokenizer

from fedelta.data.batches import Examples
from fedelta.engine import products
from fedelta.engine.filling import chunks_of
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Optimizer, Sgd
from fedelta.engine.work import ClientSettings
from fedelta.modalities.dialogues import Dialogues, Encoded, StoredDialogues
from fedelta.models import frozen
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
    method: TuningMethod = QUERIES, *, lanes: int = 2, recomputes: bool = False, optimizer: Optimizer = PLAIN
) -> LaneEngine:
    backbone, shared = backbone_of("llama", num_hidden_layers=3, tie_word_embeddings=False), Lanes(lanes)
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
