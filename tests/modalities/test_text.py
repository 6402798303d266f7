"""From texts to a model's keyword arguments."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fedelta.errors import ModelError
from fedelta.modalities.text import Texts

WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "b": 5}


def tokenizer(pad_token: str | None = "[PAD]", **options: object) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad_token, **options)


def inputs_of(modality: Texts, texts: list[str]) -> dict[str, Tensor]:
    return modality.transform(modality.encode(texts))


def test_texts_are_padded_to_the_longest_of_the_batch():
    batch = inputs_of(Texts(tokenizer()), ["a", "a b b"])
    assert batch["input_ids"].tolist() == [[1, 4, 2, 0, 0], [1, 4, 5, 5, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"].dtype == torch.int64


def test_long_texts_are_cut_to_the_limit_and_to_the_positions_of_the_model():
    assert Texts(tokenizer(), max_length=4).encode(["a b a b a"]) == [[1, 4, 5, 2]]
    assert Texts(tokenizer(model_max_length=3)).encode(["a b a b a"]) == [[1, 4, 2]]


def test_token_types_are_there_where_the_tokenizer_has_them():
    with_types = tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    assert inputs_of(Texts(with_types), ["a b"])["token_type_ids"].tolist() == [[0, 0, 0, 0]]
    without = tokenizer(model_input_names=["input_ids", "attention_mask"])
    assert set(inputs_of(Texts(without), ["a"])) == {"input_ids", "attention_mask"}


def test_a_tokenizer_without_padding_is_refused():
    with pytest.raises(ModelError, match="no padding token"):
        Texts(tokenizer(pad_token=None))
