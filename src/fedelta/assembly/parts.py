"""What the rounds and the records of a run need, wherever its clients are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, Self

from torch import Tensor

from fedelta.assembly.model import TunedModel
from fedelta.config import Config
from fedelta.data.clients import Clients
from fedelta.data.skipping import Skipped
from fedelta.federation.base import Federation
from fedelta.federation.records import RoundOutcome
from fedelta.params import Params
from fedelta.record.files import Record
from fedelta.record.origin import Origin
from fedelta.tasks.base import Task
from fedelta.tasks.details import Details

Peaks = Callable[[], Sequence[int]]
"""Gives the highest resident memory of each worker process so far, in bytes."""


class Parts(Protocol):
    """The objects of one run: those of a simulation (`Assembly`) or of a server whose clients are elsewhere."""

    @property
    def config(self) -> Config:
        """As read from the file."""

    @property
    def task(self) -> Task:
        """Of the configuration, with the settings that follow from the training data."""

    @property
    def model(self) -> TunedModel:
        """The backbone, the tensors that are tuned and their initial values."""

    @property
    def federation(self) -> Federation:
        """The server's objects, for `federate`."""

    @property
    def clients(self) -> Clients:
        """All clients, held-out ones included."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order; empty if the task has no classes."""

    @property
    def origin(self) -> Origin:
        """The settings and inputs that the run starts from."""

    @property
    def partition(self) -> Record:
        """The content of `partition.json`."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Examples that this machine could not read and left out."""

    @property
    def num_skipped(self) -> int:
        """The number of examples that were left out, those of sites included."""

    @property
    def row(self) -> dict[str, Tensor] | None:
        """Inputs of one row, if the backbone has no modality that makes an example."""

    @property
    def key(self) -> bytes | None:
        """Of the secret noise and cohorts that this machine draws; None if it draws none."""

    @property
    def min_sites(self) -> int | None:
        """Number of sites that every round should have; None where there are no sites."""

    def starting_from(self, params: Params) -> Self:
        """A copy whose clients start with those tensors of `params` that never travel."""

    def at_work(self) -> AbstractContextManager[Peaks]:
        """A context for the rounds, in which worker processes may be started; when it ends, they have ended."""

    def details(self, params: Params) -> Details | None:
        """All that is measured of a finished model; None if only the rounds' evaluations say how good it is."""

    def at_sites(self, outcome: RoundOutcome) -> Mapping[str, Record]:
        """Name of a site to what its own evaluation adds to its entry in the record of the round."""

    def at_the_end(self, params: Params, last: Record) -> Record:
        """What the summary has in addition.

        Args:
            params: of the server after the last round.
            last: the record of that round.
        """
