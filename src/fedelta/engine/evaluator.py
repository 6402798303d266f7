"""Evaluates tuned tensors on the shared model, in lane 0, in batches of a fixed size."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from fedelta.data.batches import Examples
from fedelta.engine.bank import LaneBank
from fedelta.engine.model import SharedModel, prepare
from fedelta.params import Params
from fedelta.tasks.base import Evaluation, Sums, Task, added
from fedelta.tasks.contract import evaluation_of, sums_of
from fedelta.tasks.details import Answered
from fedelta.tuning.lanes import Lanes

# Rows of a batch; fixed, because another size changes the last bits of the measures. On a CPU they are few enough that
# several processes can share a small test set.
_BATCH_ROWS = {"cpu": 64, "cuda": 256}
# Tokens of a batch of a language model, at most: of rows as long as any may be.
_BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}
# Logits of a batch, at most but for a single row, where the model returns those of all tokens.
_BATCH_LOGITS = {"cpu": 2**25, "cuda": 2**28}


class Evaluator:
    """Measures models that differ in their tuned tensors.

    Args:
        model: shared with training.
        bank: the tuned tensors, of which lane 0 is overwritten.
        lanes: of the tuned modules.
        task: gives the measures.
    """

    def __init__(self, model: SharedModel, bank: LaneBank, lanes: Lanes, task: Task) -> None:
        self._model, self._bank, self._lanes, self._task = model, bank, lanes, task
        # The examples of the last evaluation, as given and behind the prefix cache.
        self._evaluated: tuple[Examples, Examples] | None = None

    @property
    def batch_rows(self) -> int:
        """Number of rows that are evaluated together."""
        kind, longest = self._model.device.type, self._model.backbone.longest
        rows, words = _BATCH_ROWS[kind], self._model.backbone.vocabulary
        if longest is None:
            return rows
        tokens = _BATCH_TOKENS[kind]
        if words is not None and not words.gives_logits:
            tokens = min(tokens, _BATCH_LOGITS[kind] // words.size(self._model.backbone.module))
        return min(rows, max(1, tokens // longest))

    def cached(self, data: Examples) -> Examples:
        """`data` with cached features, which are kept until other examples are evaluated."""
        if self._evaluated is None or self._evaluated[0] is not data:
            self._evaluated = (data, self._model.cached(data))
        return self._evaluated[1]

    def load(self, params: Params) -> None:
        """Puts `params` into lane 0, and lets the model run with this lane alone."""
        self._lanes.active = 1
        self._bank.load(0, params)

    def evaluate(
        self, params: Params, data: Examples, rows: Tensor | None = None, depth: int | None = None
    ) -> Evaluation:
        """The measures of `params` on `data`.

        Args:
            params: tuned tensors.
            data: examples to evaluate on. Their cached features are kept until the next call with other examples.
            rows: rows of `data`, int64; None for all.
            depth: number of blocks to run; None for all.
        """
        sums = self.sums(params, data, rows, depth)
        return evaluation_of(self._task, sums, has_exits=bool(self._model.blocks))

    def sums(self, params: Params, data: Examples, rows: Tensor | None = None, depth: int | None = None) -> list[Sums]:
        """What `evaluate` computes its measures from: the sums at each exit, lowest first; one without exits."""
        return added(self.sums_of_batches(params, data, rows, depth))

    @torch.no_grad()
    def sums_of_batches(
        self, params: Params, data: Examples, rows: Tensor | None = None, depth: int | None = None
    ) -> Iterator[list[Sums]]:
        """The sums of each batch at each exit, which `sums` adds up."""
        blocks = self._model.blocks
        exits = range(1, (depth or len(blocks)) + 1) if blocks else range(0)
        for _, outputs, targets in self._passes(params, data, rows, exits):
            yield [sums_of(self._task, logits, targets) for logits in outputs]

    @torch.no_grad()
    def answers(self, params: Params, data: Examples) -> Iterator[Answered]:
        """Outputs of the model with `params` for all of `data`, at the last exit if it has exits."""
        exits = [len(self._model.blocks)] if self._model.blocks else []
        for rows, (outputs,), targets in self._passes(params, data, None, exits):
            yield Answered(rows, outputs, targets)

    def _passes(
        self, params: Params, data: Examples, rows: Tensor | None, exits: Collection[int]
    ) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        """Batch by batch: rows, their outputs at each of `exits` (see `SharedModel.outputs`), and their targets."""
        cached = self.cached(data)
        self.load(params)
        rows = torch.arange(len(data)) if rows is None else rows
        for batch in rows.split(self.batch_rows):
            prepare(cached.inputs, batch)
            targets = data.targets.fetch(batch).to(self._model.device)
            yield batch, self._model.outputs(cached.inputs, batch, exits), targets
