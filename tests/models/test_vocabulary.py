from __future__ import annotations

import pytest
import torch
from tests.small_language import small_network
from torch import nn
from transformers import BertConfig, BertLMHeadModel

from fedelta.errors import ModelError
from fedelta.models.vocabulary import vocabulary_of


@pytest.mark.parametrize(
    ("family", "gives_logits"), [("llama", True), ("gpt2", True), ("opt", True), ("gemma2", False), ("cohere", False)]
)
def test_a_trial_shows_whether_logits_are_changed_behind_the_output_embedding(family: str, gives_logits: bool):
    words = vocabulary_of(small_network(family))
    assert (words.path, words.gives_logits) == ("lm_head", gives_logits)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_sums_are_those_of_transformers(family: str):
    network = small_network(family)
    ids = torch.randint(320, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :4] = -100
    sums = vocabulary_of(network).sums(network, {"input_ids": ids, "labels": labels}, {"use_cache": False})
    # The mean of transformers is over the 5 targets of the first row and the 8 of the second.
    expected = network(input_ids=ids, labels=labels).loss * (5 + 8)
    torch.testing.assert_close(sums.sum(), expected.detach(), rtol=1e-4, atol=1e-4)


def test_the_output_embedding_is_back_after_an_error():
    network = small_network()
    head = network.lm_head
    with pytest.raises(IndexError):
        vocabulary_of(network).sums(network, {"input_ids": torch.tensor([[999]]), "labels": torch.tensor([[1]])}, {})
    assert network.lm_head is head


def test_a_model_without_an_output_embedding_is_refused():
    with pytest.raises(ModelError, match="Linear has no output embedding, so it gives no words"):
        vocabulary_of(nn.Linear(2, 2))


def bert(**fields: bool) -> BertLMHeadModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertLMHeadModel(BertConfig(vocab_size=320, **sizes, **fields)).eval()


def test_a_model_that_sees_the_words_it_is_to_predict_is_refused():
    assert vocabulary_of(bert(is_decoder=True)).gives_logits
    with pytest.raises(ModelError, match="BertLMHeadModel reads the words that it is to predict"):
        vocabulary_of(bert())
