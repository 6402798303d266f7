"""Flower: `FedAvg(...).start(...)` in its simulation, one client app for each core.

Ray runs only where there is no network but loopback: the benchmark starts this program in a namespace of its own.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from collections.abc import Sequence

from benchmarks.peers.talk import options

MANY_ROUNDS = 1_000_000
FOLDER, THREADS = "PEERS_FOLDER", "PEERS_THREADS"


class _EndError(Exception):
    """No further round is wanted."""


def main() -> None:
    folder, workers, threads, talk = options()
    refuse_networks([name for _, name in socket.if_nameindex()])
    # Ray's workers inherit these.
    os.environ.update({FOLDER: str(folder), THREADS: str(threads)})
    from benchmarks.peers.loaded import load
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    server_app = ServerApp()
    loaded = load(folder)
    work = loaded.work

    @server_app.main()
    def serve(grid, _context) -> None:
        from flwr.app import ArrayRecord

        strategy = FedAvg(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=work.num_clients,
            min_available_nodes=work.num_clients,
        )  # fmt: skip
        start = ArrayRecord(OrderedDict((name, tensor.detach()) for name, tensor in loaded.tuned.items()))

        def wait(number: int, arrays: ArrayRecord) -> None:
            if not talk.wait(arrays.to_torch_state_dict if number else None):
                raise _EndError

        strategy.start(grid, start, num_rounds=MANY_ROUNDS, evaluate_fn=wait)

    from benchmarks.peers.sides.flower_client import app

    run_simulation(
        server_app,
        app,
        num_supernodes=work.num_clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": workers, "include_dashboard": False, "logging_level": "error"},
        },
    )


def refuse_networks(interfaces: Sequence[str]) -> None:
    """Raises `SystemExit` if there is more than loopback."""
    if list(interfaces) != ["lo"]:
        raise SystemExit(f"Flower's simulation is only started where `lo` is the only interface, here: {interfaces}")


if __name__ == "__main__":
    main()
