"""Pre-trains the bundled language model `words-micro` on texts of a small world (`fedelta.data.small_world`).

    python -m pretraining.words.train --out DIR [--minutes 4]

A run that is stopped goes on where it was, from `DIR/state.pt`, until all steps are done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedelta.data.small_world import statements
from fedelta.seeds import derive

SEED = 7
VOCABULARY = 512
NETWORK = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 344, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
STEPS, ROWS, LENGTH, LR, WARMUP = 1600, 48, 64, 3e-3, 50
TEXTS = 60_000


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, made from texts of the small world."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(statements(SEED + 1, 4000), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", model_max_length=256)


def tokens(words: PreTrainedTokenizerFast) -> torch.Tensor:
    """All texts, one after the other, each between the tokens that begin and end a text."""
    encoded = words([f"<s>{text}</s>" for text in statements(SEED, TEXTS)], add_special_tokens=False)["input_ids"]
    return torch.tensor([token for ids in encoded for token in ids])


def network(words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights."""
    torch.manual_seed(derive(SEED, "words"))  # noqa: TID251 transformers draws from the global generator
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(words), bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, **NETWORK
    ))  # fmt: skip


def lr_at(step: int) -> float:
    """Warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    return LR * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))))


def main() -> None:
    """Trains until all steps are done, or the time is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, to go on later")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    words = tokenizer()
    stream_of_tokens, model = tokens(words), network(words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    state, step = options.out / "state.pt", 0
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        step = int(kept["step"])
    started, loss = time.monotonic(), torch.zeros(())
    while step < STEPS and time.monotonic() - started < 60 * options.minutes:
        generator = torch.Generator().manual_seed(derive(SEED, "batch", step))
        starts = torch.randint(len(stream_of_tokens) - LENGTH - 1, (ROWS, 1), generator=generator)
        ids = stream_of_tokens[starts + torch.arange(LENGTH)]
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(step, f"{loss.item():.3f}", f"{time.monotonic() - started:.0f} s", flush=True)
    if step < STEPS:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, state)
        return
    write(options.out, model, words, float(loss.detach()))
    state.unlink(missing_ok=True)


def write(out: Path, model: LlamaForCausalLM, words: PreTrainedTokenizerFast, loss: float) -> None:
    """The directory of transformers, in float16, with a record of how it was made."""
    model.half().save_pretrained(out)
    words.save_pretrained(out)
    weights = (out / "model.safetensors").read_bytes()
    record = {
        "command": "python -m pretraining.words.train --out DIR",
        "seed": SEED,
        "texts": f"{TEXTS} of fedelta.data.small_world.statements(seed={SEED}), made by the project; no other text",
        "network": NETWORK,
        "steps": STEPS, "rows": ROWS, "tokens_of_a_row": LENGTH, "lr": LR,
        "last_training_loss_nats": round(loss, 3),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "licence": "Apache-2.0",
    }  # fmt: skip
    (out / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
