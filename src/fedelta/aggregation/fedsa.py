"""FedSA-LoRA: A is trained by all and averaged, B is trained by each client and stays with it.

    client i:  h = W0 x + s B_i A x,    A <- sum_i p_i A_i

The paper finds that A learns what clients have in common and B what they have not. Uploads and downloads have half the
size. Every client then has a model of its own: it is measured with the B of each client that has trained, and a server
without clients has no whole model. A client that joins starts with B = 0, the pre-trained layer.

Source: Guo et al. 2024 (Selective Aggregation for Low-Rank Adaptation in Federated Learning, arXiv 2410.01463).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from fedelta.aggregation.low_rank import Factor, Factors


class FedSa(Factors):
    """Averages A and leaves B with each client."""

    name: Literal["fedsa"] = "fedsa"
    keeps: ClassVar[Factor | None] = "lora_B"
