"""pfl-research: one process or, with two workers, two that share each cohort by PyTorch's distributed package.

The second is started with the variables that `torchrun` would set; the name of the module keeps `import pfl` elsewhere,
because pfl joins the other process when it is imported.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from benchmarks.peers.talk import options


def main() -> None:
    folder, workers, threads, talk = options()
    others = []
    if workers > 1:
        # As in pfl's documentation, each process trains its part of the cohort, and sums are reduced by gloo.
        os.environ.update(
            TORCHELASTIC_RUN_ID="peers", WORLD_SIZE=str(workers), LOCAL_WORLD_SIZE=str(workers), RANK="0",
            LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), GLOO_SOCKET_IFNAME="lo",
        )  # fmt: skip
        program = "import sys; from pathlib import Path; from benchmarks.peers.sides.pfl_process import run; "
        program += "run(Path(sys.argv[1]), int(sys.argv[2]), None)"
        for rank in map(str, range(1, workers)):
            environment = os.environ | {"RANK": rank, "LOCAL_RANK": rank}
            command = [sys.executable, "-c", program, str(folder), str(threads)]
            others.append(subprocess.Popen(command, env=environment))
    from benchmarks.peers.sides.pfl_process import run

    run(folder, threads, talk)
    for other in others:
        other.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
