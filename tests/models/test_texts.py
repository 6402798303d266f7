"""Padding and positions of text models: a text's answer is the same in a batch and alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.small_texts import FAMILIES, config_of, drawn, save, tokenizer
from transformers import AutoModelForSequenceClassification

from fedelta.errors import ModelError
from fedelta.modalities.settings import Preparation
from fedelta.modalities.text import Texts
from fedelta.models.hub import build
from fedelta.models.source import ModelSource
from fedelta.models.texts import num_positions, settle_padding

CLASSES = ("a", "b")
WORDS = ["one two", "one two three four five six", "seven", "a a a"]


def network(family: str, **changes: object) -> torch.nn.Module:
    return drawn(AutoModelForSequenceClassification, config_of(family, **changes))


def plain(**special: str) -> Texts:
    return Texts(tokenizer(**special or {"pad_token": "[PAD]", "eos_token": "[EOS]"}))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"fnet"}))
def test_a_text_is_answered_in_a_batch_as_alone(family: str):
    module = network(family)
    texts = settle_padding(module, plain())
    rows = texts.encode(WORDS)
    with torch.no_grad():
        together = module(**texts.transform(rows)).logits
        alone = torch.cat([module(**texts.transform([row])).logits for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_model_that_attends_to_padding_causes_a_warning(caplog: pytest.LogCaptureFixture):
    settle_padding(network("fnet"), plain())
    assert "outputs of FNetForSequenceClassification depend on the length of the other texts in a batch" in caplog.text


def test_xlnet_is_padded_in_front_and_others_behind():
    assert settle_padding(network("xlnet"), plain()).padding_side == "left"
    assert settle_padding(network("gpt2"), plain()).padding_side == "right"


def test_a_family_that_pools_tokens_gets_enough_of_them():
    texts = settle_padding(network("funnel"), plain())
    assert texts.transform([[3, 2]])["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("special", "model_pad", "expected"),
    [
        ({"pad_token": "[PAD]", "eos_token": "[EOS]"}, None, 0),
        ({"eos_token": "[EOS]"}, None, 2),  # as decoders are padded where nobody says how
        ({"eos_token": "[EOS]"}, 0, 0),  # the model says how
        ({"eos_token": "[EOS]"}, -1, 2),  # the first Llama's word for none
        ({"pad_token": "[PAD]", "eos_token": "[EOS]"}, 5, 0),  # what batches are really padded with
    ],
)
def test_a_decoder_knows_the_token_that_its_batches_are_padded_with(
    special: dict[str, str], model_pad: int | None, expected: int, tmp_path: Path
):
    save(network("llama"), tmp_path, **special)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"pad_token_id": null', f'"pad_token_id": {"null" if model_pad is None else model_pad}')
    )
    backbone = build(ModelSource(source=str(tmp_path)), CLASSES, seed=0)
    assert backbone.module.config.pad_token_id == expected
    inputs = backbone.modality.transform(backbone.modality.encode(WORDS))
    assert inputs["input_ids"][2].tolist() == [10, 2] + [expected] * 5
    with torch.no_grad():
        assert backbone.logits(inputs).shape == (4, 2)


def test_the_padding_token_of_a_composed_configuration_is_set_in_its_part_for_texts():
    module = network("gemma3")
    settle_padding(module, plain())
    assert module.config.text_config.pad_token_id == 0


def test_a_tokenizer_with_neither_padding_nor_end_is_refused(tmp_path: Path):
    save(network("llama"), tmp_path, cls_token="[EOS]")
    with pytest.raises(ModelError, match="has no padding token, expected one"):
        build(ModelSource(source=str(tmp_path)), CLASSES, seed=0)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", 12),
        ("roberta", 11),  # 12 rows, of which the first is for padding: real ones have 514 for 512
        ("gpt2", 12),
        ("opt", 12),
        ("bart", 12),
        ("gptj", 12),  # computed, but no more of them
        ("llama", None),
        ("t5", None),
        ("xlnet", None),
    ],
)
def test_texts_are_cut_where_positions_end(family: str, expected: int | None):
    module = network(family)
    assert num_positions(module) == expected
    texts = Texts(plain().tokenizer, max_length=40, num_positions=expected)
    (row,) = texts.encode(["one " * 60])
    assert len(row) == (expected or 40)
    module.config.get_text_config().pad_token_id = 0
    with torch.no_grad():
        assert module(**texts.transform([row])).logits.isfinite().all()


def test_a_length_beyond_the_positions_is_pointed_out(caplog: pytest.LogCaptureFixture):
    texts = Texts(plain().tokenizer, num_positions=12)
    assert texts.prepared(Preparation(max_length=12)).limit == 12
    assert not caplog.records
    assert texts.prepared(Preparation(max_length=13)).limit == 12
    assert "`data.max_length` is 13, but the model takes at most 12 tokens; longer texts are cut there." in caplog.text
