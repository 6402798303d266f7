from __future__ import annotations

import pytest
from tests.small_language import small_tokenizer

from fedelta.errors import ModelError
from fedelta.modalities.turns import Template, problem_of

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is empty"),
        ("  ", "is empty"),
        ({"prompt": "a", "response": None}, "has an empty response"),
        ({"prompt": "", "response": "b"}, "has an empty prompt"),
        ({"prompt": "a", "response": 3}, "has a response of type int, expected a text"),
        ([{"role": "user", "content": "a"}], "has no turn of the assistant"),
        ([], "has no turn of the assistant"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "has an empty response"),
        ([{"role": "assistant", "content": "a"}], "has no turn of the assistant but one that nothing comes before"),
        ([{"content": "a"}], "has a message 1 with 'content', expected `role` and `content`"),
        ([{"role": "bot", "content": "a"}], "has a message 1 of role 'bot', expected one of system, developer, user"),
        ([{"role": "user", "content": 1}], "has a message 1 (user) whose `content` is no text"),
        (3.5, "holds float, expected a text, a prompt with its response, or a list of messages"),
    ],
)
def test_what_is_no_dialogue_is_told(value: object, problem: str):
    assert (problem_of(value) or "").startswith(problem)


def test_a_content_may_come_in_parts():
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo."}]
    value = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": parts}]
    assert problem_of(value) is None
    (written,) = Template.of(small_tokenizer(), "plain").written([value])
    assert written.text == "Hi.\nHello.</s>"


def test_the_plain_template_ends_a_prompt_with_a_new_line_and_a_response_with_the_end_of_a_text():
    (written,) = Template.of(small_tokenizer(), "plain").written([{"prompt": "Hi.", "response": "Hello."}])
    assert written.text == "Hi.\nHello.</s>"
    assert [written.text[slice(*answer)] for answer in written.answers] == ["Hello.</s>"]


def test_a_tokenizer_without_an_end_of_text_leaves_it_out():
    template = Template.of(small_tokenizer(has_eos=False), "auto")
    assert template.written([{"prompt": "Hi.", "response": "Hello."}])[0].text == "Hi.\nHello."


def test_every_turn_of_the_assistant_is_found():
    (written,) = Template.of(small_tokenizer(), "plain").written([CHAT])
    assert [written.text[slice(*answer)] for answer in written.answers] == ["Hello.</s>", "Me.</s>"]


def test_a_greeting_is_not_trained_on():
    text = Template.of(small_tokenizer(), "auto").written([[{"role": "assistant", "content": "Welcome!"}, *CHAT[1:3]]])
    assert [text[0].text[a:b] for a, b in text[0].answers] == ["Hello.</s>"]


def test_a_plain_text_is_an_answer_as_a_whole():
    (written,) = Template.of(small_tokenizer(), "auto").written(["Once."])
    assert (written.text, written.answers) == ("Once.</s>", ((0, 9),))


def test_the_own_template_of_a_tokenizer_is_used_unless_the_plain_one_is_asked_for():
    tokenizer = small_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }};{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (written,) = Template.of(tokenizer, "auto").written([{"prompt": "Hi.", "response": "Hello."}])
    assert written.text == "<user>Hi.;<assistant>Hello.;"
    assert [written.text[slice(*answer)] for answer in written.answers] == ["Hello.;"]
    assert Template.of(tokenizer, "plain").prompt([{"role": "user", "content": "Hi."}]) == "Hi.\n"


def test_a_template_whose_prompt_is_not_the_beginning_of_the_dialogue_is_refused():
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}{{ 'A:' if add_generation_prompt }}"
    with pytest.raises(ModelError, match="writes an answer otherwise than its prompt announces"):
        Template.of(small_tokenizer(), template)


def test_an_earlier_answer_that_a_template_leaves_out_is_not_trained_on():
    # As templates of models that think do, this one writes the last answer in full and earlier ones in short.
    template = (
        "{% for message in messages %}{{ '+' if loop.last or message['role'] != 'assistant' else '' }}"
        "{{ message['content'] }}{% endfor %}{{ '+' if add_generation_prompt }}"
    )
    (written,) = Template.of(small_tokenizer(), template).written([CHAT])
    assert [written.text[slice(*answer)] for answer in written.answers] == ["Me."]


def test_what_is_no_template_is_refused():
    with pytest.raises(ModelError, match="the chat template cannot be used"):
        Template.of(small_tokenizer(), "{% for %}")
