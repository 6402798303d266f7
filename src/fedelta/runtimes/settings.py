"""Section `[runtime]`: where clients run, and how they share this machine."""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from fedelta.machine import available_cores
from fedelta.settings import Context, Settings

# Samples per step with automatic lanes. 64: on the demo, with one thread and batch 16, 4 lanes took 3 to 10% less time
# a row than 1 or 2. 8 lanes took less still, but were not measured on longer sequences. That for a GPU is our guess.
_SAMPLES_PER_STEP = {"cpu": 64, "cuda": 1024}
# With whole models in lanes, on one thread (SGD, batch 10, one step), an MLP took these microseconds a client:
# of 3,610 scalars 485 in one lane, 97 in 32, 94 in 64; of 47,710 590 in one, 254 in 16; of 159,010 737 in one, 647 in
# 4; of 477,010 1,295 in one, 1,816 in 2. Lanes save calls, and lose what no longer fits into a cache.
_SCALARS_IN_LANES = 2**19
_MOST_WHOLE_MODELS = 64
_ROWS_OF_WHOLE_MODELS = 1024  # likewise: with batch 64 16 lanes took 151 us a client, 64 lanes 136
_WITH_WORKERS = ("auto", "processes")
RuntimeName = Literal["auto", "simulation", "processes", "flower"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
Device = Literal["auto", "cpu", "cuda"]


class RuntimeSettings(Settings):
    """Where clients run, and how they share this machine: section `[runtime]`.

    Args:
        name: `simulation` trains in this process, `processes` in worker processes of this machine, `flower` on sites
            (`fedelta deploy`); "auto" starts worker processes where they save time. The results are the same to the
            last bit for all but `flower`.
        workers: number of worker processes; "auto": one for each core, or for each GPU.
        lanes: number of clients that share a forward pass, or for DP-SGD of examples of one client; "auto" fills a step
            with up to 64 samples on a CPU, fewer the more cores share the cohort, and with 1,024 on a GPU. So it
            depends on the machine, like `device`. If whole models are trained, large ones have one lane, small ones up
            to 64.
        device: "auto" uses a GPU if there is one.
        compute_dtype: `bfloat16` runs the frozen model in half precision; tuned tensors stay float32.
        gradient_checkpointing: compute blocks again for the backward pass, which takes less memory and more time.
        cache_mib: upper limit for the memory of features of frozen modules, for training and for test data each; 0
            switches the cache off.
    """

    name: RuntimeName = "auto"
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    lanes: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    device: Device = "auto"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    cache_mib: int = Field(default=1024, ge=0)  # an eighth of a small machine's 8 GiB

    @field_validator("device", mode="before")
    @classmethod
    def _known_device(cls, value: object) -> object:
        if not isinstance(value, str) or value in get_args(Device):
            return value
        advice = "'cuda' is a GPU of NVIDIA or AMD, and nothing else is supported"
        kind, _, number = value.partition(":")
        if kind == "cuda" and number.isdecimal():
            advice = f"to use this GPU, start with CUDA_VISIBLE_DEVICES={number} in the environment and 'cuda' here"
        raise ValueError(f"{value!r} is unknown, expected 'auto', 'cpu' or 'cuda'; {advice}")

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
        if workers <= self.places:
            return []
        usable = f"{self.places} {'cores' if self.torch_device() == 'cpu' else 'GPUs'}"
        return [
            f"`runtime.workers` is {workers}, but this process may use {usable}; expected that many or fewer, or 'auto'"
        ]

    @property
    def places(self) -> int:
        """How many packs of clients this machine can train side by side: the number of its cores, or of its GPUs."""
        return available_cores() if self.torch_device() == "cpu" else _num_gpus()

    def torch_device(self) -> str:
        """The device to use, "cpu" or "cuda"."""
        if self.device != "auto":
            return self.device
        return "cuda" if _num_gpus() else "cpu"

    def num_lanes(
        self, *, clients_per_round: int, batch_size: int, places: int, model_scalars: int | None = None
    ) -> int:
        """The number of lanes for cohorts of `clients_per_round`, of which `places` packs are trained side by side.

        `model_scalars`: number of parameters of the model if every lane has a whole one; None if lanes share it.

        >>> RuntimeSettings().num_lanes(clients_per_round=16, batch_size=8, places=1)
        8
        >>> RuntimeSettings().num_lanes(clients_per_round=8, batch_size=8, places=2)
        4
        >>> tiny, small, large = 3_610, 100_000, 1_600_000
        >>> cohort = {"clients_per_round": 1000, "batch_size": 10, "places": 2}
        >>> [RuntimeSettings().num_lanes(**cohort, model_scalars=scalars) for scalars in (tiny, small, large)]
        [64, 5, 1]
        """
        if isinstance(self.lanes, int):
            return min(self.lanes, clients_per_round)
        if model_scalars is None:
            fitting = _SAMPLES_PER_STEP[self.torch_device()] // batch_size
        else:
            fitting = min(_whole_models(model_scalars), _ROWS_OF_WHOLE_MODELS // batch_size)
        # A pack for each place goes before full steps.
        return min(max(1, fitting), -(-clients_per_round // places))

    def num_lanes_of_examples(self, batch_size: int, model_scalars: int | None = None) -> int:
        """The number of lanes where each has one example of a Poisson sample of `batch_size` on average (DP-SGD).

        `model_scalars`: as for `num_lanes`.

        >>> RuntimeSettings().num_lanes_of_examples(32), RuntimeSettings(lanes=8).num_lanes_of_examples(32)
        (49, 8)
        """
        if isinstance(self.lanes, int):
            return self.lanes
        # Three standard deviations above the mean: one sample of 400 is larger, and takes two passes.
        num = min(batch_size + 3 * math.isqrt(batch_size) + 2, _SAMPLES_PER_STEP[self.torch_device()])
        return num if model_scalars is None else min(num, _whole_models(model_scalars))


def _whole_models(scalars: int) -> int:
    """The number of models of so many scalars that are worth training together."""
    return max(1, min(_MOST_WHOLE_MODELS, _SCALARS_IN_LANES // scalars))


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, each as `CUDA_VISIBLE_DEVICES` of another process would name it."""
    num = _num_gpus()
    named = [name.strip() for name in os.environ.get(VISIBLE_GPUS, "").split(",") if name.strip()]
    return tuple(named[:num]) if len(named) >= num else tuple(map(str, range(num)))


def _num_gpus() -> int:
    import torch  # `fedelta list` does without

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
