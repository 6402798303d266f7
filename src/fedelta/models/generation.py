"""Continues prompts with a language model, by the `generate` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.failures import model_errors
from fedelta.seeds import derive
from fedelta.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from pydantic import Field


class Sampling(Settings):
    """How an answer is continued, token by token.

    Args:
        max_new_tokens: the answer ends after so many.
        temperature: divides the logits before a token is drawn; 0 takes the most likely token.
        top_p: a token is drawn from the smallest set whose probabilities sum to this.
        stop: texts at which an answer ends, without them.
        seed: of what is drawn.
    """

    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)

    def of_batch(self, number: int) -> Sampling:
        """The same for the batch of prompts with this number, from 0: what is drawn in each is independent."""
        return self if number == 0 else self.model_copy(update={"seed": derive(self.seed, "answers", number)})


@dataclass(frozen=True)
class Speaker:
    """A language model with its tokenizer.

    Args:
        module: on its device, in evaluation mode.
        tokenizer: of the model.
        pad: the id that fills up shorter prompts, in front.
        context: the most tokens of a prompt and its answer together.
    """

    module: nn.Module
    tokenizer: PreTrainedTokenizerBase
    pad: int
    context: int

    def answers(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_text: Callable[[str], None] | None = None
    ) -> list[str]:
        """The continuation of each prompt as text, without special tokens; it ends where the model's context does.

        Args:
            prompts: the tokens of each, fewer than `context`; continued together.
            sampling: how.
            on_text: called with each piece of the text as it comes; with one prompt only.

        Raises:
            ModelError: the model fails, or cannot generate.
        """
        device = next(self.module.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self._padded(prompts).items()}
        num_new = min(sampling.max_new_tokens, self.context - max(map(len, prompts)))
        configuration = self._configuration(sampling, num_new)
        generate = getattr(self.module, "generate", None)
        if generate is None:
            raise ModelError(f"{type(self.module).__name__} cannot generate texts: it is no model of transformers.")
        trial = model_errors(type(self.module).__name__, inputs)
        with torch.no_grad(), _seeded(sampling.seed), _without_own_settings(self.module), trial:
            ids = generate(
                **inputs,
                generation_config=configuration,
                tokenizer=self.tokenizer,
                streamer=None if on_text is None else _streamer(self.tokenizer, on_text, sampling.stop),
            )
        texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [_until(text, sampling.stop) for text in texts]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Prompts filled up in front, so that each ends where its answer begins."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return {"input_ids": ids, "attention_mask": mask}

    def _configuration(self, sampling: Sampling, num_new: int) -> Any:  # Any: of transformers
        """The configuration of `generate`: what `sampling` says, and the checkpoint's tokens that end an answer."""
        from transformers import GenerationConfig

        own = getattr(self.module, "generation_config", None)
        ends = getattr(own, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        ends = sorted({end for end in (*ends, self.tokenizer.eos_token_id) if end is not None})
        # transformers would draw from the 50 most likely tokens only, and warns where nothing is drawn.
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=num_new,
            do_sample=sampling.temperature > 0,
            eos_token_id=ends or None,
            pad_token_id=self.pad,
            stop_strings=list(sampling.stop) or None,
            use_cache=True,
            **(drawn if sampling.temperature else {}),
        )


@contextmanager
def _without_own_settings(module: Any) -> Iterator[None]:  # Any: a model of transformers
    """A context without the checkpoint's settings, such as a penalty, which `generate` adds to those it is given.

    Shown by findings/transformers_a_configuration_of_ones_own_is_filled_up.sh.
    """
    from transformers import GenerationConfig

    own = module.generation_config
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = own


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context with the global generators, which transformers draws from, at `seed`; restored at the end."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # noqa: TID251
        yield


def _until(text: str, stop: Sequence[str]) -> str:
    """The text before the first of `stop`.

    >>> _until("one. two; three", [";", "."])
    'one'
    """
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(places)] if places else text


def _num_open(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of one of `stop`.

    >>> _num_open("one. En", ["End", "."])
    2
    """
    sizes = (size for word in stop for size in range(1, len(word)) if text.endswith(word[:size]))
    return max(sizes, default=0)


def _streamer(tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None], stop: Sequence[str]) -> Any:
    """What `generate` calls with each token; Any: of transformers."""
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        """Hands on each piece of a text that no later token changes or turns into a text to stop at."""

        text, num_sent = "", 0

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            kept = _until(self.text, stop)
            is_open = not stream_end and kept == self.text
            end = len(kept) - (_num_open(kept, stop) if is_open else 0)
            if end > self.num_sent:
                on_text(kept[self.num_sent : end])
                self.num_sent = end

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
