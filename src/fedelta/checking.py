"""`fedelta check`: describes the data, model and methods of a run, after a trial round on a few rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from fedelta.assembly.rehearsal import rehearse
from fedelta.assembly.run import assemble
from fedelta.config import Config, read_table
from fedelta.data.describe import describe
from fedelta.data.glance import NUM_READ
from fedelta.experiment import Experiment
from fedelta.forecast import opening
from fedelta.terminal import Stages
from fedelta.tracking.table import require


def check_configuration(config: Path, overrides: Sequence[str], console: Console) -> Iterator[str]:
    """Lines of text that describe a run of `config`, after a successful round on a few rows.

    Args:
        config: a TOML file.
        overrides: `section.key=value` strings.
        console: shows progress and notes.

    Raises:
        FedeltaError: the error that a run would raise.
    """
    experiment, stages = Experiment.from_toml(config, overrides), Stages(console)
    require(experiment.config.tracking)
    assembly = assemble(experiment.config, stage=stages, at_a_glance=True)
    with stages("a round on a few rows"):
        rehearse(assembly)
    yield from describe(assembly.data, assembly.config.data.evaluate_on, assembly.task.stratum[1])
    _tell_what_was_read(assembly.config, console)
    sizes = [len(rows) for rows in assembly.data.partition.values()]
    num_held_out = len(assembly.data.held_out)
    held_out = f"{_clients(num_held_out)} held out, " if num_held_out else ""
    names = assembly.data.class_names
    outputs = f"{len(names)} {assembly.task.output[1]}, " if names else ""
    lanes = assembly.engine.lanes.num
    yield (
        f"{config}: good. {_clients(len(sizes))} with {min(sizes)} to {max(sizes)} examples, {held_out}"
        f"{len(assembly.data.test)} {assembly.config.data.evaluate_on} examples, "
        f"{outputs}"
        f"{assembly.spec.num_parameters:,} of {assembly.model.total_parameters:,} parameters tuned, "
        f"{lanes} lane{'s' * (lanes > 1)}."
    )
    if (guarantee := assembly.federation.privacy) is not None:
        is_deployed = assembly.config.runtime.name == "flower"
        yield opening(guarantee, assembly.strategy.num_rounds, is_deployed=is_deployed)
    modality = assembly.backbone.modality
    for note in () if modality is None else modality.notes:
        yield f"{note[0].upper()}{note[1:]}."
    yield f"That took {stages}."
    if "compare" in read_table(config):
        # Only comparisons need pandas, whose import takes as long as all of the above.
        from fedelta.comparison.cells import make_plan
        from fedelta.comparison.display import announcement
        from fedelta.comparison.request import read_request

        plan = make_plan(read_request(config, overrides=overrides))
        yield f"`fedelta compare` of it: {announcement(plan)}, each of them valid."


def _tell_what_was_read(config: Config, console: Console) -> None:
    if config.data.on_error == "stop":  # else all were read, to know which can be
        console.print(
            f"of images and recordings at most {NUM_READ} of each set were read; `fedelta run` reads all of them first",
            markup=False,
            soft_wrap=True,
        )


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number:,} clients"
