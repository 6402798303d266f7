"""The model that all lanes share: its outputs for rows of data, with no more computed than these depend on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedelta.data.augmentation import Augmentation, AugmentedInputs
from fedelta.data.batches import Examples
from fedelta.engine.bank import LaneBank
from fedelta.engine.emphasis import emphasised
from fedelta.engine.prefix import CachedInputs, find_prefix, only_head
from fedelta.engine.proof import Outputs, first_same
from fedelta.engine.readout import HalfMasked, Readout, find_readouts
from fedelta.engine.recompute import recomputing
from fedelta.engine.tokens import Unpadded, ways_without_padding
from fedelta.modalities.base import Inputs
from fedelta.models.failures import model_errors
from fedelta.models.frozen import FrozenLinears, RowCount, gains
from fedelta.models.halves import in_float32
from fedelta.models.hub import Backbone
from fedelta.models.unpadded import attending_within_rows
from fedelta.params import ParamSpec
from fedelta.tuning.exits import exit_blocks, logits_at
from fedelta.tuning.lanes import Lanes


class SharedModel:
    """Runs the model with the tuning method applied.

    Args:
        backbone: the model, on its device.
        spec: what is tuned.
        lanes: the lanes of the tuned modules.
        train: training examples; the prefix is checked on the first two.
        device: where the model runs.
        cache_bytes: upper limit for the memory that features of frozen modules take; 0 switches the cache off.
        autocast: whether the model runs under bfloat16 autocast.
        recomputes: whether blocks are computed again for the backward pass.
        samples_per_step: at most.

    Attributes:
        name: class of the model, for messages.
        blocks: the blocks with exits, lowest first; empty for a model without exits.
        notes: why the cache is off, in sentences for the user.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: ParamSpec,
        lanes: Lanes,
        train: Examples,
        *,
        device: torch.device,
        cache_bytes: int,
        autocast: bool,
        samples_per_step: int,
        recomputes: bool = False,
    ) -> None:
        self.backbone = backbone
        self.device = device
        self.autocast = autocast
        self._lanes, self._recomputes = lanes, recomputes
        self.name = type(backbone.module).__name__
        self.blocks = exit_blocks(backbone.module)
        self.notes: list[str] = []
        self._cache_bytes = cache_bytes
        self._readout: Readout | None = None
        self._unpadded: Unpadded | None = None
        self._has_frozen = False
        self._prefix = None
        if gains(backbone.module):
            # A context costs time in every call of PyTorch.
            num_rows = samples_per_step * self._rows_per_sample(lanes, train)
            self._has_frozen = gains(backbone.module, num_rows)
        if cache_bytes:
            sample = train.inputs.fetch(torch.arange(min(2, len(train))))
            self._prefix = find_prefix(backbone, spec, lanes, self._to_device(sample))
            if self._prefix is None and only_head(backbone, spec):
                self.notes.append("frozen-prefix cache off: the head of this model cannot be run separately.")

    def outputs(self, inputs: Inputs, rows: Tensor, exits: Collection[int]) -> list[Tensor]:
        """Outputs for `rows` at each of `exits`, ascending; for a model without exits a list of its one output.

        Raises:
            ModelError: the model fails.
        """
        tensors = self._to_device(inputs.fetch(rows))
        model = inputs if isinstance(inputs, CachedInputs) else self.backbone
        with (
            self._reading(),
            self._recomputing(),
            model_errors(self.name, tensors),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast),
        ):
            if self._unpadded is not None:
                return [self._unpadded.sums(tensors)]
            if not self.blocks:
                return [model.logits(tensors).float()]
            by_exit = logits_at(self.blocks, lambda: model.logits(tensors), exits)
            return [logits.float() for logits in by_exit.values()]

    def read_out(self, bank: LaneBank, lanes: Lanes, train: Examples, *, of_examples: bool) -> None:
        """Computes from now on only what the outputs depend on, where a trial shows that this gives the same.

        Args:
            bank: the tuned tensors; they and the lanes are left as they are.
            lanes: the lanes of the tuned modules.
            train: training examples; a few are tried.
            of_examples: whether each lane has one example.
        """
        if self.backbone.vocabulary is not None:
            self._leave_out_padding(bank, lanes, train, of_examples=of_examples)
            return
        # Exits read tokens of every block.
        readouts = [] if self.blocks else find_readouts(self.backbone)
        if not readouts:
            return
        inputs = HalfMasked(train.inputs)
        whole, *candidates = (partial(self._tried, readout, inputs) for readout in (None, *readouts))
        # Without autocast, whose rounding would hide a difference.
        autocast, self.autocast = self.autocast, False
        with readouts[0].emphasised(partial(self._in_one_lane, lanes, whole, train)):
            number = first_same(whole, candidates, bank, lanes, len(train), of_examples=of_examples)
        self.autocast = autocast
        # Without tokens to leave out there is no evidence.
        if number is not None and readouts[number].leaves_out:
            self._readout = readouts[number]

    def _leave_out_padding(self, bank: LaneBank, lanes: Lanes, train: Examples, *, of_examples: bool) -> None:
        """Runs a language model from now on without padding, where a trial shows that this gives the same."""
        ways = ways_without_padding(self.backbone, lanes)
        if not ways:
            return
        whole, *candidates = (partial(self._tried_without_padding, way, train.inputs) for way in (None, *ways))
        autocast, self.autocast = self.autocast, False
        module = self.backbone.module
        with in_float32(module), emphasised(module, None, partial(self._in_one_lane, lanes, whole, train)):
            number = first_same(whole, candidates, bank, lanes, len(train), of_examples=of_examples)
        self.autocast = autocast
        if number is not None:
            self._unpadded = ways[number]

    def _tried_without_padding(self, way: Unpadded | None, inputs: Inputs, rows: Tensor) -> list[Tensor]:
        self._unpadded = way
        try:
            return self.outputs(inputs, rows, ())
        finally:
            self._unpadded = None

    def try_products(self, bank: LaneBank, lanes: Lanes, train: Examples) -> None:
        """Leaves to the bank those dense layers whose products are their gradients, in a trial.

        Args:
            bank: the tuned tensors; they and the lanes are left as they are.
            lanes: the lanes of the tuned modules.
            train: training examples; two are tried.
        """
        layers = bank.dense_layers
        if layers is None or not layers.changes:
            return
        if self._recomputes:
            layers.limit(())  # blocks that are computed again would lack the changes of their weights
            return
        # The losses of tokens read the weight of the output embedding, and do not call it.
        if (words := self.backbone.vocabulary) is not None:
            layers.limit(layers.changes.keys() - {f"{words.path}.weight"})
        exits, tried = range(1, len(self.blocks) + 1), set[str]()

        def noted(rows: Tensor) -> list[Tensor]:
            layers.set_apart()
            with layers.noted(also_thick=True):
                outputs = self.outputs(train.inputs, rows, exits)
            tried.update(layers.in_use)
            return outputs

        whole = partial(self.outputs, train.inputs, exits=exits)
        are_gradients = first_same(whole, [noted], bank, lanes, len(train)) is not None
        layers.limit(tried if are_gradients else ())
        if not are_gradients:
            self.notes.append(
                f"gradients of dense layers are computed as large as their weights: {self.name} does not only multiply "
                "its inputs by the weights."
            )

    def cached(self, data: Examples) -> Examples:
        """`data` with cached features of the frozen prefix, or `data` itself without a prefix or without the memory."""
        if self._prefix is None:
            return data
        cached = CachedInputs(data.inputs, self._prefix, self.device, self._reading)
        if cached.num_bytes > self._cache_bytes:
            self.notes.append(
                f"frozen-prefix cache off: the features of {len(data):,} rows would take "
                f"{cached.num_bytes / 2**20:,.1f} MiB, more than `runtime.cache_mib` = "
                f"{self._cache_bytes / 2**20:,.1f}; raise that limit to compute them only once."
            )
            return data
        return replace(data, inputs=cached)

    def augmented(self, data: Examples, augmentation: Augmentation) -> Examples:
        """`data` with random crops and flips, which rule out cached features."""
        if self._prefix is not None:
            self.notes.append(
                "frozen-prefix cache off for the training data: with `[augmentation]` the images differ in every "
                "epoch, so every step runs the whole model."
            )
        modality = self.backbone.modality
        # Without a modality the inputs are already transformed, so the value of black is unknown; 0 is the padding.
        black = (0.0,) if modality is None else modality.black
        return replace(data, inputs=AugmentedInputs(data.inputs, augmentation, black, self.device))

    @torch.no_grad()
    def _rows_per_sample(self, lanes: Lanes, train: Examples) -> float:
        """The most rows that the first samples give a linear layer, such as their tokens."""
        exits = range(1, len(self.blocks) + 1)
        with RowCount() as count:
            self._in_one_lane(lanes, partial(self.outputs, train.inputs, exits=exits), train)
        num_rows: int = count.most
        return num_rows / min(2, len(train))

    @staticmethod
    def _in_one_lane(lanes: Lanes, outputs: Outputs, data: Examples) -> None:
        """Runs the model on the first rows."""
        active, lanes.active = lanes.active, 1
        try:
            outputs(torch.arange(min(2, len(data))))
        finally:
            lanes.active = active

    def _tried(self, readout: Readout | None, inputs: Inputs, rows: Tensor) -> list[Tensor]:
        with nullcontext() if readout is None else readout.active():
            return self.outputs(inputs, rows, ())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A context in which the model computes only what its outputs depend on, with the fastest products."""
        with (
            FrozenLinears() if self._has_frozen else nullcontext(),
            nullcontext() if self._readout is None else self._readout.active(),
        ):
            yield

    def _recomputing(self) -> AbstractContextManager[None]:
        """A context in which blocks keep nothing for the backward pass, if that is asked for."""
        if not self._recomputes:
            return nullcontext()
        # As it is now: a trial may be over when the blocks are computed again.
        attending = nullcontext if self._unpadded is None else partial(attending_within_rows, self.backbone.module)
        return recomputing(self.backbone, self._lanes, partial(self._again, attending))

    @contextmanager
    def _again(self, attending: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """A context in which a block is computed again just as before."""
        with FrozenLinears() if self._has_frozen else nullcontext(), attending():
            yield

    def _to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}


def prepare(inputs: Inputs, rows: Tensor) -> None:
    """Computes the cached features of `rows`, if `inputs` has a cache."""
    if isinstance(inputs, CachedInputs):
        inputs.prepare(rows)
