"""Lengths of the payloads of a run, from tensors that are encoded for it; before the run, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal

import torch

from fedelta.aggregation.low_rank import paths_of
from fedelta.codecs.wire import encode
from fedelta.config import Config
from fedelta.federation.forms import Forms
from fedelta.federation.pairs import Pairs, pairs_of
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.strategies.base import ALL_ROWS, Form, Whole
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import Combined
from fedelta.tuning.lora import Lora


class Sizes:
    """Encodes payloads as server and clients would.

    Args:
        config: of the run.
        tuning: its tuning method.
        spec: what is tuned.
    """

    def __init__(self, config: Config, tuning: TuningMethod, spec: ParamSpec) -> None:
        steering = config.strategy.steering
        self.wire = spec if steering is None else steering.extend(spec)
        self._codec = config.codec
        self._pairs: Pairs | None = pairs_of(config.aggregation, tuning, spec, config.strategy.cohort_rounds)
        self._turn_rounds = config.strategy.cohort_rounds
        # Clients whose pairs can be carried beside those of the last round.
        self._num_pairs = None if config.strategy.sampling == "poisson" else config.strategy.clients_per_round
        self._num_rounds = config.strategy.num_rounds

    @cached_property
    def _forms(self) -> Forms | Whole:
        return Whole(self.wire) if self._pairs is None else Forms(self.wire)

    def values(self, names: Iterable[str]) -> Params:
        """Values to encode: zeros, or drawn numbers where the length of what is encoded depends on them."""
        return {
            name: torch.randn(shape, generator=stream(0, name)) if self._codec.is_estimate else torch.zeros(shape)
            for name, shape in ((name, self.wire.tensors[name].shape) for name in names)
        }

    def upload(self, rank: int = ALL_ROWS, names: Sequence[str] | None = None) -> tuple[bytes, Mapping[str, int]]:
        """An upload of a client of `rank` with these tensors (default: all), and the bytes of its tensors by group.

        Where factors take turns, the longer one.
        """
        form, codec = Form(rank), self._codec
        spec = self._forms.spec_of(form)
        turns = self._turns(self.wire.shared if names is None else names)
        parts = (self._forms.narrowed(self.values(turn), form) for turn in turns)
        return max(
            (encode(part, spec, codec.up, compress=codec.compresses) for part in parts), key=lambda both: len(both[0])
        )

    def download_bytes(self, names: Sequence[str], rank: int = ALL_ROWS, *, at_most: bool = False) -> int:
        """The length of a download of these tensors in round 1, to a client of `rank`.

        Args:
            names: of the tensors.
            rank: of the client.
            at_most: in the last round of the run, in which it is longest: to a client that holds nothing, and, where
                pairs are carried, with those of all clients of all rounds before, or with the whole change of every
                frozen layer if that is shorter.
        """
        encoded = self._codec.whole_download if at_most else self._codec.first_download
        lengths = []
        for rows in self._carried() if at_most else (0,):
            form = Form(rank, rows)
            of_form = self._pairs.with_carried(tuple(names)) if self._pairs is not None and rows else names
            tensors = self._forms.narrowed(self.values(of_form), form)
            lengths.append(len(encoded(tensors, self._forms.spec_of(form))))
        return min(lengths)

    def _carried(self) -> list[int | Literal["dense"]]:
        """What can be carried in the last round: of the forms that it can have the shortest is sent."""
        if not self.wire.received:
            return [0]
        shapes = [self.wire.tensors[name].shape for name in self.wire.received]
        space = max(shape[0] for name, shape in zip(self.wire.received, shapes, strict=True) if name.endswith("_A"))
        rank = max(self.wire.tensors[f"{path}.lora_A"].shape[0] for path in paths_of(self.wire))
        rows = space if self._num_pairs is None else (self._num_rounds - 1) * self._num_pairs * rank
        return ["dense", rows] if rows < space else ["dense"]

    def _turns(self, names: Sequence[str]) -> list[list[str]]:
        """What travels of `names` in the turns of the factors."""
        if self._pairs is None:
            return [list(names)]
        resting = [self._pairs.resting(round) for round in (1, 1 + self._turn_rounds)]
        return [[name for name in names if name.rpartition("/")[2] not in still] for still in resting]


def ranks_of_method(tuning: TuningMethod) -> tuple[int, ...]:
    """The ranks that clients can have, ascending; empty if all have that of the server.

    Raises:
        ConfigError: the file of ranks cannot be read.
    """
    parts = tuning.methods if isinstance(tuning, Combined) else (tuning,)
    by_client = [part.rank_by_client for part in parts if isinstance(part, Lora) and part.rank_by_client is not None]
    return tuple(sorted({rank for ranks in by_client for rank in ranks.possible}))
