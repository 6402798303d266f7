"""What is measured. Only the standard library is imported here, so that the parent process stays small."""

from __future__ import annotations

from dataclasses import dataclass

# transformers' settings for the network that stands in while the bundled one is not there.
STAND_IN = {
    "model_type": "vit",
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "image_size": 32,
    "patch_size": 4,
}
BUNDLED = "bundled:vit-micro"
# Eight digits clients of the demo, and eight larger ones for the network without a frozen part.
DEMO_SIZES = (20, 21, 22, 23, 24, 20, 22, 24)
CNN_SIZES = (200, 214, 228, 242, 256, 270, 284, 298)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        title: what the row is called.
        model: `vit` (the bundled one, or its stand-in) or `cnn`.
        tuning: `lora`, `head` or `full`.
        batch_size: samples of a client's step.
        local_epochs: passes of a client over its data in a round.
        sizes: examples of each client; all take part in every round.
        hidden: features between the two linear layers of `cnn`, which hold most of its parameters.
        codec: of fedelta's payloads.
        lanes: of fedelta; "auto" is what a run takes by default.
        target: largest allowed ratio fedelta / bare; None for a row that only informs.
    """

    title: str
    model: str = "vit"
    tuning: str = "lora"
    batch_size: int = 8
    local_epochs: int = 5  # recipes/demo.toml
    sizes: tuple[int, ...] = DEMO_SIZES
    hidden: int = 128
    codec: str = "float16"  # recipes/demo.toml
    lanes: int | str = "auto"
    target: float | None = None


CNN = {"model": "cnn", "tuning": "full", "batch_size": 32, "local_epochs": 1, "sizes": CNN_SIZES, "codec": "float32"}

CASES = {
    "lora-8": Case("LoRA r=8 on q, v; batch 8", target=0.8),
    "lora-32": Case("LoRA r=8 on q, v; batch 32", batch_size=32),
    "head": Case("head, from round 2 on; batch 8", tuning="head", target=0.02),
    "full": Case("full, CNN of 0.2 M; batch 32", **CNN, target=1.05),
    "full-large": Case("full, CNN of 0.8 M; batch 32", **CNN, hidden=512),
    "lanes-1": Case("LoRA, batch 8, 1 lane", lanes=1),
    "lanes-2": Case("LoRA, batch 8, 2 lanes", lanes=2),
    "lanes-4": Case("LoRA, batch 8, 4 lanes", lanes=4),
    "lanes-8": Case("LoRA, batch 8, 8 lanes", lanes=8),
}
