"""What Flower starts on the server for a deployment: the experiment over a link on Flower's grid.

The run's configuration names the deployment; everything else is in the server's folder, whose path is in the
environment: what is in a run's configuration is sent to every site.
"""

from __future__ import annotations

import os
import tomllib
import traceback
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedelta.deployment.children import die_with_parent
from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.submissions import Ending, Submissions
from fedelta.errors import InputError, LinkError
from fedelta.runtimes.flower.link import GridLink
from fedelta.runtimes.flower.programs import DEPLOYMENT, HUB

# Flower takes a plain assignment only.
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs a deployment, and records how it ended; if it is killed there is no such record, and it is run again."""
    die_with_parent()
    hub = Hub(Path(os.environ[HUB]))
    submissions, name = Submissions(hub), str(context.run_config[DEPLOYMENT])
    _print_to(hub.logs / f"{name}.log")
    submission = submissions.get(name)
    if submission is None:
        raise InputError(f"this server has no deployment {name!r}.")
    with submissions.running(name, context.run_id):
        link = GridLink(grid, hub.sites, _max_bytes(hub, Path(submission.run)))
        try:
            _conduct(Path(submission.run), link)
        except LinkError:
            raise  # as if it had been killed: when the SuperLink is back it is run again
        except Exception as error:
            traceback.print_exc()
            submissions.end(name, Ending.of(context.run_id, error))
            raise
        submissions.end(name, Ending(context.run_id))


def _print_to(log: Path) -> None:
    """Sends what this process prints to a log; Flower gave it nowhere to print to."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _max_bytes(hub: Hub, run: Path) -> int:
    """The longest answer that server and recipe allow; the configuration of a run has all defaults written out."""
    from fedelta.record.rundir import CONFIG

    recipe = tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))["deployment"]["max_message_mib"]
    return int(min(recipe, hub.settings().max_message_mib)) * 2**20


def _conduct(run: Path, link: GridLink) -> None:
    from fedelta.deployment.run.conduct import conduct

    conduct(run, link)
