"""Texts of unequal length: a step pads all lanes to its longest text, which changes no client's result."""

from __future__ import annotations

import pytest
import torch
from tests.builders import NUM_CLASSES, TRANSFORMERS, assert_close, deltas_of, jobs_for, start_of, tiny_engine
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fedelta.data.batches import Examples
from fedelta.modalities.text import StoredTexts, Texts
from fedelta.seeds import stream
from fedelta.tasks.labels import Labels
from fedelta.tuning.bias import Bias
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt

SIZES = (5, 9, 3, 7)
# Client 2 has the only long texts: whoever shares a step with it is padded to their length.
LENGTHS = [2, 3, 1, 4, 2, 3, 3, 2, 1, 2, 4, 1, 2, 3, 10, 9, 10, 1, 2, 3, 2, 1, 4, 3]


def ragged(pad_id: int) -> Examples:
    words = {f"w{number}": number for number in range(20)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")),
        pad_token=f"w{pad_id}",
        model_input_names=["input_ids", "attention_mask"],
    )
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(4, 20, (int(lengths.sum()),), generator=stream(0, "tokens"), dtype=torch.int32)
    labels = torch.randint(0, NUM_CLASSES, (len(lengths),), generator=stream(0, "labels"))
    return Examples(StoredTexts(tokens, lengths.cumsum(0), Texts(tokenizer)), Labels(labels))


def longest(data: Examples, rows: Tensor) -> int:
    return data.inputs.fetch(rows)["input_ids"].shape[1]


@pytest.mark.parametrize("method", [Lora(r=2), Bias(), Prompt(num_virtual_tokens=2)], ids=lambda method: method.name)
@pytest.mark.parametrize("family", [name for name in TRANSFORMERS if name not in {"vit", "deit"}])
def test_padding_to_another_clients_texts_changes_nothing(family: str, method: Lora | Bias | Prompt):
    # RoBERTa counts positions from its padding token, number 1 by default; the tiny one has 0.
    data = ragged(pad_id=0)
    assert longest(data, torch.arange(14)) == 4
    assert longest(data, torch.arange(24)) == 10
    deltas = []
    for lanes in (1, 3):
        engine, _ = tiny_engine(method, data, family=family, lanes=lanes, max_position_embeddings=20)
        deltas.append(deltas_of(engine, jobs_for(SIZES, start_of(engine))))
    for client_id in range(len(SIZES)):
        assert_close(deltas[0][client_id], deltas[1][client_id], rtol=2e-3, atol=2e-6)
