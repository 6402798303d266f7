"""One measurement for between.py, on whatever `fedelta` the path has: the state before issue 14, or one after it.

Prints JSON: seconds of the work, and MiB by which the highest resident size went up while it was done.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

NUM_DELTAS, NUM_SCALARS = 10, 86_000_000
NUM_REMEMBERED, NUM_NEW = 40_000, 8


def main(case: str) -> None:
    kind, _, detail = case.partition("-")
    if kind == "deltas":
        codec = "float16" if detail == "half" else "float32"
        seconds, mebibytes = deltas(codec, num_tensors=200 if detail == "layers" else 1)
    elif kind == "codec":
        seconds, mebibytes = coding(detail or "int4")
    elif kind == "scaffold":
        seconds, mebibytes = checkpoint(int(detail))
    elif kind == "demo":
        seconds, mebibytes = demo()
    else:
        seconds, mebibytes = rounds(case)
    print(json.dumps({"seconds": seconds, "mebibytes": mebibytes}))


def peak() -> float:
    """Highest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measured(work: Callable[[], object]) -> tuple[float, float]:
    before, started = peak(), time.perf_counter()
    work()
    return time.perf_counter() - started, peak() - before


def deltas(codec: str, num_tensors: int) -> tuple[float, float]:
    """A round whose clients encode a delta that lies ready, each when it is its turn."""
    from fedelta.codecs.cast import Cast
    from fedelta.codecs.wire import encode
    from fedelta.federation import rounds
    from fedelta.federation.records import Reply
    from fedelta.params import ParamSpec, TensorSpec
    from fedelta.strategies.fedavg import FedAvg

    size = NUM_SCALARS // num_tensors
    spec = ParamSpec({f"layer{index}": TensorSpec((size,), f"layer{index}") for index in range(num_tensors)})
    noise = torch.Generator().manual_seed(0)
    delta = {name: torch.randn(size, generator=noise) for name in spec}
    params = {name: torch.zeros(size) for name in spec}

    class Ready:
        def run(self, plan: Any, payloads: Any) -> Iterator[Reply]:
            for client_id in plan.cohort:
                payload, _ = encode(delta, spec, Cast(name=codec))
                yield Reply(client_id, 10 + client_id, payload, {"train_loss": 1.0})
                del payload

        def accept(self, client_ids: Any) -> None:
            list(client_ids)

    strategy = FedAvg(clients_per_round=NUM_DELTAS, num_rounds=1)
    same = {
        "strategy": strategy, "runtime": Ready(), "spec": spec, "seed": 0,
        "effective_steps": float,
    }  # fmt: skip
    if hasattr(rounds, "Standing"):
        from fedelta.codecs.channel import Channel
        from fedelta.data.clients import Clients

        at_once = {"replies_once": True} if "replies_once" in rounds.Federation.__dataclass_fields__ else {}
        federation = rounds.Federation(
            **same, **at_once, clients=Clients.of(range(NUM_DELTAS)), channel=Channel(name=codec), evaluate=None
        )
        return measured(lambda: list(rounds.federate(federation, rounds.Standing(params, {}))))
    from fedelta.federation.training import Evaluation

    federation = rounds.Federation(
        **same, client_ids=range(NUM_DELTAS), codec=Cast(name=codec), evaluate=lambda _: Evaluation(0.0, 0.0)
    )
    return measured(lambda: list(rounds.federate(federation, params, {})))


def coding(name: str) -> tuple[float, float]:
    """The median of a few payloads, in one thread: CPU seconds, which other processes hardly change."""
    from fedelta.codecs import wire
    from fedelta.codecs.cast import Cast
    from fedelta.params import ParamSpec, TensorSpec

    torch.set_num_threads(1)
    try:
        from fedelta.codecs.quantize import Integers
    except ImportError:
        codec, decode = Cast(name="float16"), lambda payload: wire.decode(payload, spec, codec)
    else:
        codec, decode = Integers(name=name), lambda payload: wire.Decoder(spec, codec).decode(payload)
    spec = ParamSpec({"w": TensorSpec((4000, 1000), "w")})
    params = {"w": 1e-2 * torch.randn(4000, 1000, generator=torch.Generator().manual_seed(0))}
    before, seconds = peak(), []
    for _ in range(15):
        started = time.process_time()
        payload, _ = wire.encode(params, spec, codec)
        decode(payload)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), peak() - before


def rounds(name: str) -> tuple[float, float]:
    """The median of a few rounds, and the peak over all of them."""
    from benchmarks.cases import CASES, CNN, Case
    from benchmarks.sides import fedelta_side

    cnn = {**CNN, "batch_size": 10, "sizes": (50,) * 50}
    case = Case("", **cnn, hidden=1024) if name == "cnn-50" else CASES[name]
    before, one_round = peak(), fedelta_side(case)
    one_round()  # fills the cache, and lays memory out
    seconds = []
    for _ in range(3 if name == "cnn-50" else 9):
        started = time.perf_counter()
        one_round()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), peak() - before


def checkpoint(num_clients: int) -> tuple[float, float]:
    """What is written after a round of eight clients when `num_clients` others remember something already."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            from fedelta.federation.memory import Memories, Memory
        except ImportError:
            return _checkpoint_before(num_clients, Path(folder) / "state.safetensors")
        filled = Memories()
        for client_id in range(num_clients):
            filled.stage(client_id, Memory(remembered={"control/w": torch.full((NUM_REMEMBERED,), float(client_id))}))
            filled.commit([client_id])
            if client_id % 100 == 99:
                mark = filled.snapshot(Path(folder), 1 + client_id // 100)
        memories = Memories()
        memories.restore(Path(folder), mark)

        def after_a_round() -> None:
            for client_id in range(num_clients, num_clients + NUM_NEW):
                memories.stage(client_id, Memory(remembered={"control/w": torch.rand(NUM_REMEMBERED)}))
            memories.commit(range(num_clients, num_clients + NUM_NEW))
            memories.snapshot(Path(folder), num_clients)

        return measured(after_a_round)


def _checkpoint_before(num_clients: int, path: Path) -> tuple[float, float]:
    from fedelta.record.checkpoint import Checkpoint, save

    def after_a_round() -> None:
        clients = range(num_clients + NUM_NEW)
        remembered = {client: {"control/w": torch.full((NUM_REMEMBERED,), float(client))} for client in clients}
        params = {"w": torch.zeros(NUM_REMEMBERED)}
        save(path, Checkpoint(1, params, {}, {}, remembered, {}, 0, 0, 0, None, None, "run"))

    return measured(after_a_round)


def demo() -> tuple[float, float]:
    from fedelta.experiment import Experiment

    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.from_toml("recipes/demo.toml", ["strategy.num_rounds=4"])
        return measured(lambda: experiment.run(Path(folder) / "run"))


if __name__ == "__main__":
    main(sys.argv[1])
