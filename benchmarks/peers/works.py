"""What is measured. Only the standard library is imported here: every side's interpreter reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

CNN = {"model_type": "femnist-cnn", "channels": [16, 32], "hidden": 1024, "image_size": 28}
MLP = {"model_type": "mlp", "hidden": 48, "image_size": 8}
TINY = {"model_type": "femnist-cnn", "channels": [4, 8], "hidden": 64, "image_size": 8}
VIT = {
    "model_type": "vit",
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 32,
    "patch_size": 4,
}


def llama(hidden: int, layers: int, vocabulary: int) -> dict[str, object]:
    """A Llama with heads of 32 features, an MLP of 8/3 of the width, and one embedding for input and output."""
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32,
        "intermediate_size": hidden * 8 // 3,
        "tie_word_embeddings": True,
    }


LLAMAS = {1: llama(128, 4, 2048), 6: llama(256, 6, 4096), 10: llama(320, 7, 4096)}
# Tokens of a dialogue, of which the last third is trained on.
SHORTEST, LONGEST = 64, 128
NUM_CLASSES = 10
RANK = 8
LORA_ALPHA = 16
SEED = 7


@dataclass(frozen=True)
class Goal:
    """What fedelta shall reach.

    Args:
        what: "round" (median seconds), "first" (seconds of the first round of a new run) or "memory" (peak).
        against: sides, of which the one with the smallest value counts; seconds are those of their later rounds.
        limit: largest ratio of fedelta's value to theirs.
    """

    what: str
    against: tuple[str, ...]
    limit: float


LOOPS = ("bare",)
PFL = ("pfl", "pfl2")
BLAZEFL = ("blazefl1", "blazefl")
PEERS = (*PFL, "flower", *BLAZEFL)


@dataclass(frozen=True)
class Work:
    """The same job for every side.

    Args:
        title: what the row is called.
        architecture: of the network, whose weights are random.
        tuning: `full`, `lora` (of rank 8, on q and v, with the head if there is one) or `head`.
        num_clients: all take part in every round.
        num_rows: examples of each client.
        local_epochs: passes of a client over its data in a round.
        batch_size: divides `num_rows`, so that no batch is ragged.
        lr: of plain SGD.
        local_steps: steps of a client in a round, instead of epochs.
        cohort: clients of a round, drawn at random; None: all clients, as in everything that peers do too.
        is_tiny: a second arithmetic thread would only slow a process down, so nobody has one.
        goals: what fedelta shall reach.
        tolerance: largest difference of a parameter from the bare loop's after the compared rounds.
        sides: who can do it; None: everyone.
    """

    title: str
    architecture: Mapping[str, object]
    tuning: str
    num_clients: int
    num_rows: int
    local_epochs: int
    batch_size: int
    lr: float
    cohort: int | None = None
    local_steps: int | None = None
    is_tiny: bool = False
    goals: tuple[Goal, ...] = ()
    tolerance: float = 1e-5
    sides: tuple[str, ...] | None = None

    @property
    def is_language(self) -> bool:
        """Whether the network is a language model."""
        return self.architecture["model_type"] == "llama"

    @property
    def steps(self) -> int:
        """Optimizer steps of a client in a round."""
        return self.local_steps or self.local_epochs * self.num_rows // self.batch_size

    def as_record(self) -> dict[str, object]:
        """For JSON: what is done."""
        left_out = {"goals", "tolerance", "is_tiny", "sides"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


_VIT = {"architecture": VIT, "num_clients": 8, "num_rows": 64, "local_epochs": 2}

WORKS = {
    "W1": Work(
        "CNN of 1.63 M, full, 50 clients of 50 images, batch 10", CNN, "full", 50, 50, 1, 10, 0.05,
        goals=(Goal("round", PEERS, 0.85), Goal("memory", ("blazefl",), 1.0)),
    ),
    "W2": Work(
        "ViT d192 L6, LoRA r 8, 8 clients of 64 images, 2 epochs, batch 32",
        **_VIT, tuning="lora", batch_size=32, lr=0.05, goals=(Goal("round", PEERS, 0.85),),
    ),
    "W2b": Work(
        "ViT d192 L6, LoRA r 8, 8 clients of 64 images, 2 epochs, batch 8",
        **_VIT, tuning="lora", batch_size=8, lr=0.05, goals=(Goal("round", PEERS, 0.70),),
    ),
    "W3": Work(
        "ViT d192 L6, head only, 8 clients of 64 images, 2 epochs, from round 2 on",
        **_VIT, tuning="head", batch_size=32, lr=0.05,
        goals=(Goal("round", PFL, 0.01), Goal("first", PFL, 0.55)),
    ),
    "W5": Work(
        "MLP of 3,610, full, 1,000 clients of 10 images, 1 step", MLP, "full", 1000, 10, 1, 10, 0.05, is_tiny=True,
        goals=(Goal("round", PFL, 0.5),),
    ),
    **{
        f"L{millions}-{batch_size}": Work(
            f"Llama of {millions} M, LoRA r 8, 8 clients of 16 dialogues of 64 to 128 tokens, batch {batch_size}",
            sizes, "lora", 8, 16, 1, batch_size, 0.05,
            goals=(Goal("round", LOOPS, 0.6),), sides=("bare", "bare2", "fedelta"),
        )
        for millions, sizes in LLAMAS.items()
        for batch_size in (2, 4, 8)
    },
}  # fmt: skip
