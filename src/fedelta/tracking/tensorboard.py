"""TensorBoard event files: `tensorboard --logdir RUN`.

A resumed run writes its file again from the first round, because a kill may have lost unflushed rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedelta.tracking.base import Parameter, TrackedRun

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class TensorBoard:
    """A run as a directory of event files.

    Args:
        writer: of the directory.
        parameters: of the run, for TensorBoard's table of finished runs.
    """

    writer: SummaryWriter
    parameters: Mapping[str, Parameter]

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, round)
        self.writer.flush()

    def finish(self, summary: Mapping[str, float]) -> None:
        """See `Tracker.finish`."""
        # "." adds the figures to this run; by default they become a second run below it.
        self.writer.add_hparams(dict(self.parameters), dict(summary), run_name=".")
        self.writer.close()

    def close(self) -> None:
        """See `Tracker.close`."""
        self.writer.close()


def open_tensorboard(run: TrackedRun) -> TensorBoard:
    """Opens the run in `tensorboard/NAME-ID`, which then has only its parameters."""
    from torch.utils.tensorboard import SummaryWriter

    directory = run.directory / "tensorboard" / f"{run.name}-{run.id}"
    for file in directory.glob("events.out.tfevents.*"):
        file.unlink()
    writer = SummaryWriter(str(directory))
    rows = "".join(f"| {key} | {value} |\n" for key, value in run.parameters.items())
    writer.add_text("parameters", f"| parameter | value |\n| --- | --- |\n{rows}")
    writer.flush()
    return TensorBoard(writer, run.parameters)
