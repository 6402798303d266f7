from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tests.small_language import small_network, small_tokenizer, write_model

from fedelta.data.stored import StoredColumn
from fedelta.errors import DataError, ModelError
from fedelta.modalities.base import ModelFiles
from fedelta.modalities.dialogues import IGNORED, Dialogues, _shortened
from fedelta.modalities.settings import DialogueSettings, Preparation


def modality(max_length: int = 48, train_on: str = "response", **changes: object) -> Dialogues:
    return Dialogues(small_tokenizer(), DialogueSettings(train_on=train_on, template="plain"), max_length, **changes)


def column(values: list) -> StoredColumn:
    return StoredColumn.of(Dataset.from_dict({"dialogue": values}), "dialogue", origin="the training set")


def pair(prompt: str, response: str) -> dict[str, str]:
    return {"prompt": prompt, "response": response}


def trained_text(kind: Dialogues, value: object) -> str:
    (encoded,) = kind.encode([value])
    return kind.tokenizer.decode([token for token, now in zip(encoded.ids, encoded.is_target, strict=True) if now])


def test_the_tokens_of_the_response_are_trained_on_and_the_end_of_the_text():
    assert trained_text(modality(), pair("What does the dog do?", "The dog woofs.")) == "The dog woofs.</s>"


@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>", "<|im_end|>\n"])
@pytest.mark.parametrize(
    "value",
    [
        lambda text: pair("Hi?", text),
        lambda text: [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": text}],
        lambda text: text,
    ],
    ids=["a pair", "messages", "a text"],
)
def test_the_end_of_a_text_of_another_model_is_left_out_and_told(value, end, caplog):
    assert trained_text(modality(), value(f"Ho.{end}")) == "Ho.</s>"
    modality().store(column([value(f"Ho.{end}"), value("Ho.")]), 1)
    assert "the training set: of 2 rows, 1 end in the token of some model" in caplog.text


def test_a_response_that_is_only_an_end_is_kept(caplog):
    assert trained_text(modality(), pair("Hi?", "<|endoftext|>")) == "<|endoftext|></s>"
    modality().store(column([pair("Hi?", "<|endoftext|>")]), 1)
    assert "end in the token" not in caplog.text


def test_all_tokens_are_trained_on_by_setting():
    assert trained_text(modality(train_on="all"), pair("Hi?", "Ho.")) == "Hi?\nHo.</s>"


def test_prompt_and_response_are_tokenised_together():
    kind = modality()
    (encoded,) = kind.encode([pair("What does the dog do?", "The dog woofs.")])
    assert kind.tokenizer.decode(encoded.ids) == "What does the dog do?\nThe dog woofs.</s>"
    assert encoded.ids == kind.tokenizer("What does the dog do?\nThe dog woofs.</s>")["input_ids"]


def test_a_long_dialogue_loses_the_beginning_of_its_prompt_and_never_its_response():
    kind = modality(max_length=16)
    (encoded,) = kind.encode([pair("What does the old old old dog do?" * 3, "The dog woofs.")])
    assert len(encoded.ids) == 16
    assert (encoded.num_dropped > 0, encoded.num_cut) == (True, 0)
    assert kind.tokenizer.decode(encoded.ids).endswith("do?\nThe dog woofs.</s>")


def test_the_token_that_texts_begin_with_is_kept():
    # Tokens 0 to 9, of which 7 to 9 are the response; at most 6: the first one, and the last five.
    shortened = _shortened(list(range(10)), [place >= 7 for place in range(10)], limit=6, num_fixed=1)
    assert (shortened.ids, shortened.num_dropped, shortened.num_cut) == ([0, 5, 6, 7, 8, 9], 4, 0)


def test_a_response_that_leaves_no_room_is_cut_at_its_end():
    # Tokens 0 to 3 are the prompt; at most 8: a quarter of them, 2, stays the prompt's.
    shortened = _shortened(list(range(20)), [place >= 4 for place in range(20)], limit=8, num_fixed=0)
    assert (shortened.ids, shortened.num_dropped, shortened.num_cut) == ([2, 3, 4, 5, 6, 7, 8, 9], 2, 10)


def test_of_several_answers_the_last_is_kept():
    is_target = [place in {2, 3, 8, 9} for place in range(10)]
    shortened = _shortened(list(range(10)), is_target, limit=5, num_fixed=0)
    assert (shortened.ids, shortened.is_target) == ([5, 6, 7, 8, 9], [False, False, False, True, True])


def test_a_batch_is_padded_to_a_multiple_of_eight_and_labels_are_those_of_targets():
    stored = modality().store(column([pair("Hi?", "The dog woofs."), pair("What does the cat do?", "Ho.")]), 0)
    inputs = stored.fetch(torch.tensor([1, 0]))
    lengths = inputs["attention_mask"].sum(1)
    assert inputs["input_ids"].shape[1] == -(-int(lengths.max()) // 8) * 8
    ends = inputs["attention_mask"].bool()
    assert (inputs["labels"][~ends] == IGNORED).all()
    is_target = inputs["labels"] != IGNORED
    assert torch.equal(inputs["labels"][is_target], inputs["input_ids"][is_target])
    assert stored.num_targets[torch.tensor([1, 0])].tolist() == (inputs["labels"][:, 1:] != IGNORED).sum(1).tolist()


def test_the_padding_never_exceeds_the_limit():
    stored = modality(max_length=13).store(column([pair("What does the dog do?", "The dog woofs loudly, I say.")]), 0)
    assert stored.fetch(torch.tensor([0]))["input_ids"].shape == (1, 13)


def test_rows_that_are_too_long_are_told(caplog):
    with caplog.at_level(logging.WARNING, logger="fedelta"):
        modality(max_length=12).store(column([pair("What does the dog do? " * 3, "It woofs " * 9), pair("a", "b")]), 0)
    assert "of 2 rows, 1 have more than 12 tokens (`data.max_length`); the beginning of their prompts is" in caplog.text
    assert "1 have responses so long that their end is cut" in caplog.text


def test_rows_without_a_dialogue_are_refused_by_number():
    with pytest.raises(DataError, match="row 1 has an empty response"):
        modality().store(column([pair("a", "b"), pair("a", " ")]), 0)


def test_a_text_of_one_token_has_nothing_to_predict():
    tokenizer = small_tokenizer(has_eos=False)
    kind = Dialogues(tokenizer, DialogueSettings(template="plain"))
    with pytest.raises(
        DataError, match=r"row 0 has no token to train on\nhint: this is so in every row: raise `data.max"
    ):
        kind.store(column(["a"]), 0)


def test_a_tokenizer_without_a_padding_token_is_no_obstacle(tmp_path: Path):
    folder = write_model(tmp_path / "model", has_eos=False)
    kind = Dialogues.for_model(ModelFiles(small_network().config, str(folder), 0))
    assert kind.pad == 0
    assert kind.transform(kind.encode([pair("a", "b")]))["attention_mask"].sum() > 0


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    config = small_network("llama").config
    config.vocab_size = 100
    with pytest.raises(ModelError, match="its largest token id is 316, but the model has only 100 embeddings"):
        Dialogues.for_model(ModelFiles(config, str(folder), 0))


def test_a_prompt_is_whole():
    kind = modality(num_positions=20)
    question = "What does the old dog do? " * 5
    assert kind.tokenizer.decode(kind.prompt([{"role": "user", "content": question}])) == f"{question}\n"
    assert kind.context == 20


def test_the_preparation_recreates_the_template():
    kind = modality()
    again = Dialogues(small_tokenizer()).prepared(kind.preparation)
    assert (again.template.source, again.max_length) == (kind.template.source, 48)
    assert kind.prepared(Preparation(max_length=7)).limit == 7
