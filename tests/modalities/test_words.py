from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import tensor
from transformers import PreTrainedTokenizerFast

from fedelta.errors import DataError
from fedelta.modalities.text import Texts
from fedelta.modalities.words import Words, at_words


def pieces(max_length: int = 12) -> Words:
    """Splits "abc" into "a", "##b" and "##c"."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5, "##b": 6, "##c": 7}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return Words(Texts(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]"), max_length))


def test_a_word_starts_at_its_first_token():
    (split,) = pieces().encode([["b", "abc", "a"]])
    assert (split.ids, split.starts) == ([2, 5, 4, 6, 7, 4, 3], [1, 2, 5])


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence(  # as of Llama 3 and Qwen 2
            [
                pre_tokenizers.Split(Regex(r" ?\w+|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
        pre_tokenizers.Whitespace(),
    ],
    ids=["byte level", "with a first space", "after a pattern", "metaspace", "metaspace within", "whitespace"],
)
def test_words_are_split_as_in_a_text_whatever_the_tokenizer_does_with_spaces(pre_tokenizer):
    vocabulary = {token: number for number, token in enumerate(("<pad>", "a", "b", "Ġa", "Ġb", "▁a", "▁b", "Ġ", "▁"))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("Ġ", "b"), ("▁", "a"), ("▁", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizer
    words = Words(Texts(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")))
    (split,) = words.encode([["b", "a", "", "ab"]])
    (text,) = words.texts.encode(["b a ab"])
    assert (split.ids, split.starts) == (text, [0, 1, -1, 2])


def test_words_that_are_cut_off_start_nowhere():
    (split,) = pieces(max_length=5).encode([["b", "abc", "a"]])
    assert (split.ids, split.starts) == ([2, 5, 4, 6, 3], [1, 2, -1])


def test_rows_of_a_batch_have_as_many_words_as_the_longest():
    batch = pieces().transform(pieces().encode([["a"], ["abc", "b"]]))
    assert batch["word_starts"].tolist() == [[1, -1], [1, 4]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]


def test_words_are_found_behind_padding_on_the_left():
    words = pieces()
    left = Words(replace(words.texts, padding_side="left"))
    batch = left.transform(left.encode([["a"], ["abc", "b"]]))
    assert batch["word_starts"].tolist() == [[4, -1], [1, 4]]
    assert batch["input_ids"][0, 4] == 4


def test_outputs_of_words_are_those_of_their_first_tokens_and_say_which_are_read():
    outputs = torch.arange(8.0).view(1, 4, 2)
    assert at_words(outputs, tensor([[2, -1, 0]])).tolist() == [[[4.0, 5.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]]


def test_texts_of_a_user_are_split_at_spaces():
    words = pieces()
    (batch,) = words.examples(["b  abc", ["b", "abc"]], batch_size=2)
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    with pytest.raises(DataError, match="input 0: an empty text"):
        words.examples([" "], batch_size=1)
