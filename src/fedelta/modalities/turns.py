"""Dialogues as they stand in data, and as texts with the parts that a language model is trained on.

A dialogue is a table with `prompt` and `response`, a list of messages with `role` and `content`, or a plain text. A
template in Jinja turns messages into a text; what it writes for a turn of the assistant, with what ends the turn, is
found by writing the dialogue up to that turn and including it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedelta.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]

_ASSISTANT = "assistant"
_ROLES = ("system", "developer", "user", "assistant", "tool")
# By which well-known models end a text or a turn; some data sets have them in their texts.
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>")
# Every turn but the assistant's ends in a new line, so that a prompt ends where its answer begins.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)


@dataclass(frozen=True)
class Written:
    """A dialogue as text.

    Args:
        text: all of it.
        answers: first character of each turn of the assistant, and the one after its end.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


def problem_of(value: object) -> str | None:
    """What is wrong with a dialogue, completing "row 3 ..."; None if nothing is.

    >>> problem_of({"prompt": "Hi.", "response": " "})
    'has an empty response'
    >>> problem_of([{"role": "user", "content": "Hi."}])
    'has no turn of the assistant'
    >>> problem_of("Once upon a time")
    """
    match value:
        case None:
            return "is empty"
        case str():
            return None if value.strip() else "is empty"
        case {"prompt": prompt, "response": response}:
            pairs = {"prompt": prompt, "response": response}
            if wrong := [name for name, text in pairs.items() if text is not None and not isinstance(text, str)]:
                return f"has a {wrong[0]} of type {type(pairs[wrong[0]]).__name__}, expected a text"
            empty = [name for name, text in pairs.items() if text is None or not text.strip()]
            return f"has an empty {empty[0]}" if empty else None
        case list():
            return _problem_of_messages(value)
    return f"holds {type(value).__name__}, expected a text, a prompt with its response, or a list of messages"


def _problem_of_messages(messages: Sequence[Any]) -> str | None:  # Any: any type that a file can hold
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or "role" not in message:
            keys = f" with {' and '.join(map(repr, message))}" if isinstance(message, Mapping) and message else ""
            return f"has a message {number}{keys}, expected `role` and `content`"
        if message["role"] not in _ROLES:
            return f"has a message {number} of role {message['role']!r}, expected one of {', '.join(_ROLES)}"
        if content_of(message) is None:
            return f"has a message {number} ({message['role']}) whose `content` is no text"
    answers = [content_of(message) for message in messages[1:] if message["role"] == _ASSISTANT]
    if not answers:
        is_lonely = any(message["role"] == _ASSISTANT for message in messages)
        return f"has no turn of the assistant{' but one that nothing comes before' if is_lonely else ''}"
    if not any(answer is not None and answer.strip() for answer in answers):
        return "has an empty response"
    return None


def content_of(message: Mapping[str, Any]) -> str | None:  # Any: as above
    """The text of a message, which may come in parts; None if it has no text."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        return "".join(parts) if len(parts) == len(content) else None
    return content if isinstance(content, str) else None


def messages_of(value: Any) -> Messages | None:  # Any: any type that a file can hold
    """The messages of a dialogue without problems; None for a plain text."""
    if isinstance(value, str):
        return None
    if isinstance(value, Mapping):
        value = [{"role": "user", "content": value["prompt"]}, {"role": _ASSISTANT, "content": value["response"]}]
    return [_message(message["role"], content_of(message) or "") for message in value]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": without_end(content) if role == _ASSISTANT else content}


def without_end(text: str) -> str:
    """A text without the token that ends it, since a template writes that of the model; a token alone stays.

    >>> without_end("No<|endoftext|>"), without_end("No"), without_end("</s>")
    ('No', 'No', '</s>')
    """
    for end in _ENDS:
        if (kept := text.rstrip().removesuffix(end)) != text.rstrip() and kept.strip():
            return kept
    return text


def ends_itself(value: Any) -> bool:  # Any: any type that a file can hold
    """Whether `without_end` takes something from the last text of a dialogue without problems."""
    last = value["response"] if isinstance(value, Mapping) else value
    last = (content_of(last[-1]) or "") if isinstance(last, list) else last
    return bool(without_end(last) != last)


@dataclass(frozen=True)
class Template:
    """Writes dialogues as texts.

    Args:
        tokenizer: whose special tokens the template may name.
        source: of the template, in Jinja.
        bos: the token at the beginning of a text, as text; "" if the model's texts begin without one.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    bos: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, choice: str) -> Template:
        """The template that `choice` means (`DialogueSettings.template`).

        Raises:
            ModelError: it is not Jinja, or not one for chats.
        """
        bos = _bos(tokenizer)
        plain = PLAIN.replace("{{ bos_token }}", "{{ bos_token }}" if bos else "")
        plain = plain if tokenizer.eos_token else plain.replace("eos_token", "''")
        stock = tokenizer.chat_template
        own = stock.get("default") if isinstance(stock, Mapping) else stock
        source = {"auto": own or plain, "plain": plain}.get(choice, choice)
        template = cls(tokenizer, source, bos)
        template.written([{"prompt": "Hello", "response": "Hi"}])
        return template

    def prompt(self, messages: Messages) -> str:
        """A dialogue as text, up to where the assistant's next turn begins."""
        return self._render(messages, opens=True)

    def written(self, values: Sequence[Any]) -> list[Written]:  # Any: any type that a file can hold
        """Dialogues without problems as texts.

        Raises:
            ModelError: the template does not write turns one after the other.
        """
        return [self._written(messages_of(value), value) for value in values]

    def _written(self, messages: Messages | None, value: str) -> Written:
        if messages is None:
            text = f"{self.bos}{without_end(value)}{self.tokenizer.eos_token or ''}"
            return Written(text, ((len(self.bos), len(text)),))
        text, answers = self._render(messages), []
        last = max(number for number, message in enumerate(messages) if message["role"] == _ASSISTANT)
        for number, message in list(enumerate(messages))[1:]:  # a greeting is not trained on: nothing asks for it
            if message["role"] != _ASSISTANT or not message["content"].strip():
                continue
            before, after = self.prompt(messages[:number]), self._render(messages[: number + 1])
            # A template may leave out parts of earlier turns, such as thoughts; these are then not trained on.
            if after.startswith(before) and text.startswith(after):
                answers.append((len(before), len(after)))
            elif number == last:
                raise ModelError(
                    "the chat template writes an answer otherwise than its prompt announces: the text of a dialogue "
                    f"begins with {after[: len(before)][-40:]!r}, its prompt ends in {before[-40:]!r}.",
                    hint='set `task.template` to "plain" or to a template of your own.',
                )
        return Written(text, tuple(answers))

    def _render(self, messages: Messages, opens: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=opens
            )
        except Exception as error:  # Jinja raises errors of many types, and a template its own
            raise ModelError(
                f"the chat template cannot be used: {error}",
                hint='set `task.template` to "plain" or to a template of your own.',
            ) from error
        return str(text)


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the tokenizer itself puts before a text, if it does."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if ids and tokenizer.bos_token and ids[0] == tokenizer.bos_token_id else ""
