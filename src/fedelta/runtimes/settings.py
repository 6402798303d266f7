"""Section `[runtime]`: where clients run, and how they share this machine."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from fedelta.machine import available_cores
from fedelta.settings import Context, Settings

# Samples per step with automatic lanes. 64: on 2 CPU cores eight lanes of batch 8 are faster than one, two or four, and
# four lanes of batch 16 suit the demo (benchmarks/). 1,024 for a GPU is our guess, not measured.
_SAMPLES_PER_STEP = {"cpu": 64, "cuda": 1024}
_WITH_WORKERS = ("auto", "processes")
RuntimeName = Literal["auto", "simulation", "processes", "flower"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)


class RuntimeSettings(Settings):
    """Where clients run, and how they share this machine: section `[runtime]`.

    Args:
        name: `simulation` trains in this process, `processes` in worker processes of this machine, `flower` on sites
            (`fedelta deploy`); "auto" starts worker processes where they save time. The results are the same to the
            last bit for all but `flower`.
        workers: number of worker processes; "auto": one for each core, or for each GPU.
        lanes: number of clients that share a forward pass; "auto" fills a step with 64 samples on a CPU, 1,024 on a
            GPU.
        device: "auto" uses a GPU if there is one.
        compute_dtype: `bfloat16` runs the frozen model in half precision; tuned tensors stay float32.
        cache_mib: upper limit for the memory of features of frozen modules, for training and for test data each; 0
            switches the cache off.
    """

    name: RuntimeName = "auto"
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    lanes: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    cache_mib: int = Field(default=1024, ge=0)  # an eighth of a small machine's 8 GiB

    def problems(self, context: Context) -> list[str]:
        """Reports more lanes than the tuning method allows, and a device or workers that this machine does not have."""
        problems = []
        if self.lanes not in ("auto", 1) and context.get("tuning.max_lanes") == 1:
            name = context.get("tuning.name")
            problems.append(f"`runtime.lanes` is {self.lanes}, but tuning method {name!r} can only have one lane")
        if self.device == "cuda" and not _num_gpus():
            problems.append("`runtime.device` is 'cuda', but torch finds no GPU; expected 'cpu' or 'auto'")
        elif self.workers != "auto":
            problems += self._worker_problems(self.workers)
        return problems

    def _worker_problems(self, workers: int) -> list[str]:
        if self.name not in _WITH_WORKERS:
            return [f"`runtime.workers` is {workers}, but runtime {self.name!r} has no workers; leave it out"]
        if workers <= self.max_workers:
            return []
        usable = f"{self.max_workers} {'cores' if self.torch_device() == 'cpu' else 'GPUs'}"
        return [
            f"`runtime.workers` is {workers}, but this process may use {usable}; expected that many or fewer, or 'auto'"
        ]

    @property
    def max_workers(self) -> int:
        """How many workers can compute side by side: the number of cores, or that of GPUs."""
        return available_cores() if self.torch_device() == "cpu" else _num_gpus()

    def torch_device(self) -> str:
        """The device to use, "cpu" or "cuda"."""
        if self.device != "auto":
            return self.device
        return "cuda" if _num_gpus() else "cpu"

    def num_lanes(self, *, clients_per_round: int, batch_size: int) -> int:
        """The number of lanes for cohorts of `clients_per_round`.

        >>> RuntimeSettings().num_lanes(clients_per_round=16, batch_size=8)
        8
        """
        if isinstance(self.lanes, int):
            num_lanes = self.lanes
        else:
            num_lanes = max(1, _SAMPLES_PER_STEP[self.torch_device()] // batch_size)
        return min(num_lanes, clients_per_round)


def _num_gpus() -> int:
    import torch  # `fedelta list` does without

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
