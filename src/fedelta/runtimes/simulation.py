"""All clients in this process, on the lane engine: a `Site` that has the data of all is the runtime."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from fedelta.settings import Context, Settings

# Samples that automatic lanes fill a step with. 64: eight lanes of batch 8 are the fastest of one, two, four and eight
# on 2 CPU cores, and four lanes of batch 16 serve the demo (benchmarks/). 1,024: our guess for a GPU, not measured.
_SAMPLES_PER_STEP = {"cpu": 64, "cuda": 1024}


class SimulationSettings(Settings):
    """Where and how the simulated clients run: section `[runtime]`.

    Args:
        lanes: clients that share a forward pass; "auto" fills a step with 64 samples on a CPU, 1,024 on a GPU.
        device: "auto" takes a GPU where there is one.
        compute_dtype: `bfloat16` runs the frozen model in half precision; tuned tensors stay float32.
        cache_mib: most memory for features of frozen modules, for the training and for the test data; 0: no cache.
    """

    name: Literal["simulation"] = "simulation"
    lanes: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    cache_mib: int = Field(default=1024, ge=0)  # an eighth of a small machine's 8 GiB

    def problems(self, context: Context) -> list[str]:
        """Lanes that the tuning method cannot have, and a device that this machine has not."""
        problems = []
        if self.lanes not in ("auto", 1) and context.get("tuning.max_lanes") == 1:
            name = context.get("tuning.name")
            problems.append(f"`runtime.lanes` is {self.lanes}, but tuning method {name!r} has one lane, in place")
        if self.device == "cuda" and not torch.cuda.is_available():
            problems.append("`runtime.device` is 'cuda', but torch finds no GPU here; expected 'cpu' or 'auto'")
        return problems

    def torch_device(self) -> str:
        """`cpu` or `cuda`."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def num_lanes(self, *, clients_per_round: int, batch_size: int) -> int:
        """Lanes for cohorts of `clients_per_round`.

        >>> SimulationSettings().num_lanes(clients_per_round=16, batch_size=8)
        8
        """
        if isinstance(self.lanes, int):
            wanted = self.lanes
        else:
            wanted = max(1, _SAMPLES_PER_STEP[self.torch_device()] // batch_size)
        return min(wanted, clients_per_round)
