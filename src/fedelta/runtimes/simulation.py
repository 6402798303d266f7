"""Section `[runtime]`: a simulation runs all clients in this process, as one `Site` with the data of all."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from fedelta.settings import Context, Settings

# Samples per step with automatic lanes. 64: on 2 CPU cores eight lanes of batch 8 are faster than one, two or four, and
# four lanes of batch 16 suit the demo (benchmarks/). 1,024 for a GPU is our guess, not measured.
_SAMPLES_PER_STEP = {"cpu": 64, "cuda": 1024}


class SimulationSettings(Settings):
    """How simulated clients run: section `[runtime]`.

    Args:
        lanes: number of clients that share a forward pass; "auto" fills a step with 64 samples on a CPU, 1,024 on a
            GPU.
        device: "auto" uses a GPU if there is one.
        compute_dtype: `bfloat16` runs the frozen model in half precision; tuned tensors stay float32.
        cache_mib: upper limit for the memory of features of frozen modules, for training and for test data each; 0
            switches the cache off.
    """

    name: Literal["simulation"] = "simulation"
    lanes: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    cache_mib: int = Field(default=1024, ge=0)  # an eighth of a small machine's 8 GiB

    def problems(self, context: Context) -> list[str]:
        """Reports more lanes than the tuning method allows, and a device that this machine does not have."""
        problems = []
        if self.lanes not in ("auto", 1) and context.get("tuning.max_lanes") == 1:
            name = context.get("tuning.name")
            problems.append(f"`runtime.lanes` is {self.lanes}, but tuning method {name!r} can only have one lane")
        if self.device == "cuda" and not torch.cuda.is_available():
            problems.append("`runtime.device` is 'cuda', but torch finds no GPU; expected 'cpu' or 'auto'")
        return problems

    def torch_device(self) -> str:
        """The device to use, "cpu" or "cuda"."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def num_lanes(self, *, clients_per_round: int, batch_size: int) -> int:
        """The number of lanes for cohorts of `clients_per_round`.

        >>> SimulationSettings().num_lanes(clients_per_round=16, batch_size=8)
        8
        """
        if isinstance(self.lanes, int):
            num_lanes = self.lanes
        else:
            num_lanes = max(1, _SAMPLES_PER_STEP[self.torch_device()] // batch_size)
        return min(num_lanes, clients_per_round)
