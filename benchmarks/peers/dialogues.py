"""Random dialogues for a Llama with random weights: what works with a language model are made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedelta.data.batches import Examples
from fedelta.modalities.dialogues import Dialogues, Encoded, StoredDialogues
from fedelta.models.decoders import decoder_of
from fedelta.models.hub import Backbone
from fedelta.models.vocabulary import vocabulary_of
from fedelta.seeds import stream
from fedelta.tasks.language import TokenCounts

SEED = 0


def drawn_dialogues(num_rows: int, num_words: int, shortest: int, longest: int) -> list[Encoded]:
    """Random tokens, of which the last third is the response."""
    generator = stream(SEED, "tokens")
    rows = []
    for _ in range(num_rows):
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        ids = torch.randint(num_words, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [place >= length * 2 // 3 for place in range(length)]))
    return rows


def stored(rows: list[Encoded], num_words: int, longest: int) -> StoredDialogues:
    """The dialogues as fedelta keeps them in memory."""
    return StoredDialogues.of(rows, Dialogues(_tokenizer(num_words), max_length=longest))


def examples(rows: list[Encoded], num_words: int, longest: int) -> Examples:
    """The dialogues with their targets."""
    inputs = stored(rows, num_words, longest)
    return Examples(inputs, TokenCounts(inputs.num_targets.float()))


def llama(sizes: Mapping[str, object]) -> nn.Module:
    """A Llama with these sizes, always with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = {name: value for name, value in sizes.items() if name != "model_type"}
    return LlamaForCausalLM(LlamaConfig(**config)).eval()


def llama_backbone(sizes: Mapping[str, object], longest: int) -> Backbone:
    """The same model as fedelta has it."""
    module = llama(sizes)
    return Backbone(
        module, decoder_of(module, "llama"), Dialogues(_tokenizer(int(str(sizes["vocab_size"]))), max_length=longest),
        extra_inputs={"use_cache": False}, vocabulary=vocabulary_of(module),
    )  # fmt: skip


def _tokenizer(num_words: int):  # of transformers
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(num_words)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0", eos_token="w1"
    )
