"""A site of a deployment: it has some of the clients of a federation, and perhaps rows to measure a model on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedelta.assembly.answering import answer_sums
from fedelta.assembly.fitting import fit_lanes
from fedelta.assembly.lanes import num_lanes
from fedelta.assembly.model import TunedModel, tiers_at, tuned_model
from fedelta.assembly.site import USUAL_RANGES, build_site, check_augmentation, few_rows, fitted
from fedelta.config import Config
from fedelta.data.batches import Examples
from fedelta.data.clients import Clients, Name
from fedelta.data.division import Partitioner
from fedelta.data.federate import Division, divided, federate
from fedelta.data.partition import Iid, Natural
from fedelta.data.sources import RawData
from fedelta.data.validation import RowsOf
from fedelta.errors import InputError, listed
from fedelta.federation.client import Site
from fedelta.federation.memory import Memory
from fedelta.modalities.base import Modality
from fedelta.params import Params
from fedelta.tasks.base import Sums
from fedelta.tasks.contract import statistics_of
from fedelta.tuning.exits import exit_blocks


@dataclass(frozen=True)
class Share:
    """Which clients of a federation a site has.

    Args:
        name: of the site.
        numbers: its clients in the recipe's partition, ascending; None if the data are the site's own, whose clients
            are those that the data name, or one that is called as the site.
    """

    name: str
    numbers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Offer:
    """What a site has for a federation, known before a model is.

    Args:
        num_examples: key of a client to the number of its training examples. A key is a number of the recipe's
            partition, a name in the data, or the name of the site.
        num_test_examples: number of the site's rows for evaluation.
        statistics: sums over the training targets of these clients, for a task that leaves settings to them.
    """

    num_examples: Mapping[Name, int]
    num_test_examples: int
    statistics: Sums = Sums()  # noqa: RUF009 a frozen value


@dataclass(frozen=True)
class Deployed:
    """The objects of a site in a run.

    Args:
        config: the recipe, with the site's own data and model.
        model: to be trained.
        site: trains the clients; their memories are elsewhere, and come with each round.
        test: rows for evaluation; perhaps none.
    """

    config: Config
    model: TunedModel
    site: Site
    test: Examples

    def sums(
        self, params: Params, memories: Mapping[int, Memory], *, with_answers: bool = False
    ) -> tuple[list[Sums], int]:
        """The task's sums over the site's test rows at each exit, and over how many examples they are.

        If clients keep tensors that never travel, each client has a different model: then the sums are over the
        models of all clients that have trained, each measured on the client's own rows if the test rows name clients.

        Args:
            params: the shared tensors.
            memories: client number to what it keeps; clients without a memory have not trained.
            with_answers: whether a language model answers prompts, too.
        """
        start = self.site.start | params
        if not len(self.test):
            return [], 0
        local = {number: memory.local_only for number, memory in sorted(memories.items()) if memory.local_only}
        if not local:
            return self._sums(start, None, with_answers), len(self.test)
        total: list[Sums] = []
        num_examples = 0
        for number, tensors in local.items():
            rows = _rows_of(self.test, number)
            if len(rows):
                sums = self._sums(start | tensors, rows, with_answers)
                total = [first + second for first, second in zip(total, sums, strict=True)] if total else sums
                num_examples += len(rows)
        return total, num_examples

    def _sums(self, params: Params, rows: Tensor | None, with_answers: bool) -> list[Sums]:
        """The sums of a model over some rows of the test set."""
        engine = self.site.engine
        sums = engine.evaluator.sums(params, self.test, rows)
        return [*sums[:-1], sums[-1] + answer_sums(engine, params, self.test, rows)] if with_answers else sums


def offer(config: Config, raw: RawData, share: Share) -> Offer:
    """Returns the clients of a site, and how many examples they have; decodes no example.

    Raises:
        InputError: the recipe's partition has none of the site's clients, or the data cannot be divided.
    """
    keys: dict[Name, int] = {}

    def numbered(clients: Clients) -> dict[int, int]:
        keys.update(_keys(share, clients))
        return {local: local for local in keys.values()}

    held_out = partial(config.personalization.held_out_ids, seed=config.seed)
    partitioner = _partitioner(config, raw, share)
    division = divided(raw, partitioner, seed=config.seed, held_out=held_out, numbered=numbered)
    num_examples = {key: len(division.rows[local]) for key, local in keys.items()}
    statistics = Sums()
    if config.task.automatic:
        rows = torch.cat([division.rows[local] for _, local in sorted(keys.items(), key=lambda pair: pair[1])])
        statistics = statistics_of(config.task, raw.train.targets.select(rows), raw.class_names)
    return Offer(num_examples, _num_test_examples(raw, share, division), statistics)


def _num_test_examples(raw: RawData, share: Share, division: Division) -> int:
    if division.validation is not None:
        return len(division.validation)
    if share.numbers is None or not division.ids or raw.test_ids is None:
        return len(raw.test)
    names = set(map(str, division.ids.values()))
    return sum(str(name) in names for name in raw.test_ids.names)


def deploy(
    config: Config, raw: RawData, share: Share, numbers: Mapping[Name, int], depths: Mapping[int, int] | None = None
) -> Deployed:
    """Returns the objects of a site; reads the base model and decodes the examples.

    Args:
        config: of the run.
        raw: with the classes of the whole federation.
        share: of the site.
        numbers: key of each of the site's clients (`Offer`) to its number in the federation.
        depths: number of each of these clients to the blocks that it runs; None if all run the whole model.

    Raises:
        InputError: the site does not have a client, or data, model and recipe do not fit each other.
    """
    backbone, modality = fitted(config, raw)
    if share.numbers is None:
        _check_range(config, modality)
    data = federate(
        raw,
        _partitioner(config, raw, share),
        modality,
        seed=config.seed,
        held_out=partial(config.personalization.held_out_ids, seed=config.seed),
        numbered=lambda clients: _numbered(_keys(share, clients), numbers),
    )
    check_augmentation(config, data)
    # The clients of a message train as one pack, in this process.
    lanes = num_lanes(config, backbone, len(numbers), places=1)
    model = tuned_model(config, backbone, data.class_names, num_lanes=lanes, sample=few_rows(data))
    fit_lanes(config, model, data)
    tiers = None
    if depths is not None:
        _check_depths(model, depths)
        tiers = tiers_at(config, model, depths)
    test = data.test if share.numbers is None else _of_clients(data.test)
    return Deployed(config, model, build_site(config, model, data, tiers), test)


def _partitioner(config: Config, raw: RawData, share: Share) -> Partitioner:
    """The recipe's, or for data of the site's own one that follows the data."""
    if share.numbers is not None:
        return config.partition
    return Iid(num_clients=1) if raw.columns.client is None else Natural()


def _keys(share: Share, clients: Clients) -> dict[Name, int]:
    """Key of each of the site's clients to its number among `clients`, which the site's data are divided among.

    Raises:
        InputError: none of the site's clients is there.
    """
    if share.numbers is None:
        return {clients.names.get(local, share.name): local for local in clients.numbers}
    if not (present := [number for number in share.numbers if number in clients.numbers]):
        raise InputError(
            f"the recipe's partition has none of this site's clients {listed(share.numbers)}; there are "
            f"{clients.described}.",
            hint="give the site other `clients`, or let the recipe divide the data among more (`[partition]`).",
        )
    return {number: number for number in present}


def _numbered(local_of: Mapping[Name, int], numbers: Mapping[Name, int]) -> dict[int, int]:
    if absent := [key for key in numbers if key not in local_of]:
        raise InputError(f"this site does not have the clients {listed(absent)}; it has {listed(list(local_of))}.")
    return {local_of[key]: number for key, number in numbers.items()}


def _check_range(config: Config, modality: Modality) -> None:
    """Raises if the site would have to guess which values of its images are black and white for all sites."""
    measured = modality.preparation.value_range
    if config.data.value_range is None and measured not in (None, *USUAL_RANGES):
        raise InputError(
            f"the images of this site have more than 8 bits: values from {measured[0]:g} to {measured[1]:g}; those of "
            "other sites may have others, so that the same value would mean different things.",
            hint="say in the recipe what is black and what is white: `data.value_range`, such as [0, 4095].",
        )


def _check_depths(model: TunedModel, depths: Mapping[int, int]) -> None:
    num_blocks = len(exit_blocks(model.backbone.module))
    if wrong := [depth for depth in depths.values() if not 1 <= depth <= num_blocks]:
        raise InputError(f"a client's depth is {wrong[0]}, but the model of this site has {num_blocks} exits.")


def _of_clients(test: Examples) -> Examples:
    """The rows of the site's clients; all rows if they do not name clients."""
    if test.clients is None:
        return test
    rows = (test.clients >= 0).nonzero().flatten()
    numbers = None if test.numbers is None else test.numbers[rows]
    return Examples(RowsOf(test.inputs, rows), test.targets.select(rows), numbers, test.clients[rows])


def _rows_of(test: Examples, number: int) -> Tensor:
    """The rows of a client; all rows if they do not name clients."""
    if test.clients is None:
        return torch.arange(len(test))
    return (test.clients == number).nonzero().flatten()
