"""The lane engine: trains many clients in one forward and backward pass of a shared model.

Lanes are refilled continuously: when a client has done its steps, the last lane in use moves into its place and
the next client of the cohort takes the free lane, with zeroed optimizer state. Lanes may have batches of unequal size:
the model gets the rows of all lanes without padding. A deployed client runs the same code with one lane.

With DP-SGD (engine/dp_sgd.py) the lanes have the examples of one client instead, one in each, so that the gradient of a
lane is that of an example. Clients are then trained one after the other.

Shapes: A lanes in use, K lanes, N samples of all lanes in use, E exits, P trained scalars, X the task's axes of outputs
or targets per sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from fedelta.data.augmentation import Augmentation, AugmentedInputs
from fedelta.data.batches import Examples, batches, poisson_batches
from fedelta.engine.bank import LaneBank
from fedelta.engine.dp_sgd import DpSgd, add_fedpeft_noise, private_gradient, refuse_coupling
from fedelta.engine.evaluator import Evaluator
from fedelta.engine.exits import ExitLoss, ExitSettings, draws
from fedelta.engine.model import SharedModel, prepare
from fedelta.engine.optimizers import LearningRate, OptimizerState, Sgd
from fedelta.engine.prefix import CachedInputs
from fedelta.engine.products import Gradient, dense
from fedelta.engine.proof import mixing
from fedelta.engine.work import ClientSettings, Job, Trained, lane_means
from fedelta.machine import keep_freed_memory
from fedelta.modalities.base import Inputs
from fedelta.models.failures import model_errors
from fedelta.models.halves import in_float32
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.strategies.base import LocalRule
from fedelta.strategies.local import Plain
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.contract import losses_of, weights_of
from fedelta.tuning.lanes import Lanes


@dataclass
class _Slot:
    """A job that is under way in a lane."""

    job: Job
    batches: Iterator[Tensor]
    steps_left: int
    steps_done: int = 0
    exit_losses: Tensor | None = None  # [E], running mean of the loss at each exit; NaN before the first step


class LaneEngine:
    """Trains clients on one instance of the model, and evaluates it (`evaluator`).

    Args:
        backbone: the model with the tuning method applied, on its device.
        spec: what is tuned.
        lanes: the lanes that the tuned modules were made with.
        train: training examples of all clients.
        client: steps, batch size and optimizer.
        rule: the strategy's correction of each gradient.
        cache_bytes: upper limit for the memory that features of frozen modules take; 0 switches the cache off.
        compute_dtype: `bfloat16` runs the model under autocast; the tuned tensors stay float32.
        recomputes: whether blocks are computed again for the backward pass (engine/recompute.py).
        augmentation: random crops and flips of the images of `train`; None for none.
        exits: which exits clients train; ignored for a model without exits.
        task: gives the loss and the measures.
        dp: makes the gradient of every step private; None for none. Every job then has `noise_of_step`.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: ParamSpec,
        lanes: Lanes,
        train: Examples,
        *,
        client: ClientSettings,
        rule: LocalRule,
        cache_bytes: int = 0,
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
        recomputes: bool = False,
        augmentation: Augmentation | None = None,
        exits: ExitSettings = ExitSettings(),  # noqa: B008 a frozen value
        task: Task = Classification(),  # noqa: B008 likewise
        dp: DpSgd | None = None,
    ) -> None:
        self.spec, self.lanes, self._dp = spec, lanes, dp
        self.takes_samples = dp is not None and dp.of_examples
        self._rule = rule
        self._device = backbone.module.get_parameter(spec.names[0]).device
        if self._device.type == "cpu":
            keep_freed_memory()
        self.bank = self._bank(backbone.module)
        self.client = client
        self.exits = exits
        self.task = task
        self._model = SharedModel(
            backbone, spec, lanes, train,
            device=self._device, cache_bytes=cache_bytes, autocast=compute_dtype == "bfloat16", recomputes=recomputes,
            samples_per_step=lanes.num * (1 if self.takes_samples else client.batch_size),
        )  # fmt: skip
        self._blocks = self._model.blocks
        if augmentation is not None and augmentation.is_on:
            self._train = self._model.augmented(train, augmentation)
        else:
            self._train = self._model.cached(train)
        if lanes.num > 1:
            self._prove_lanes(train)
        self._model.read_out(self.bank, lanes, train, of_examples=self.takes_samples)
        if isinstance(client.optimizer, Sgd):
            self._model.try_products(self.bank, lanes, train)
        if self.takes_samples:
            refuse_coupling(self._model, lanes, exits, task, train)
        self.evaluator = Evaluator(self._model, self.bank, lanes, task)

    @property
    def clients_at_once(self) -> int:
        """The largest number of clients that are trained together."""
        return 1 if self.takes_samples else self.lanes.num

    @property
    def inputs(self) -> Inputs:
        """Of the training data; with their cached features if there is a cache."""
        return self._train.inputs

    @cached_property
    def _state(self) -> OptimizerState:
        """Of the optimizer, for every lane; made by the first training."""
        return self.client.optimizer.state(self.bank.matrices(self.bank.values_KP, self.lanes.num))

    @property
    def backbone(self) -> Backbone:
        """The model."""
        return self._model.backbone

    @property
    def notes(self) -> list[str]:
        """What the engine has switched off and why, in sentences for the user."""
        return self._model.notes

    def train(self, jobs: Sequence[Job], lr: float, round: int = 1) -> Iterator[Trained]:
        """Trains every job and yields its result as soon as it is done; jobs enter lanes in the order of `jobs`.

        Only jobs of one depth share lanes, so that no job runs blocks above its depth.

        Args:
            jobs: at most one per client; without augmentation also several that differ in `lr`.
            lr: learning rate of this round.
            round: number of the round, from 1.
        """
        self._exit_loss = ExitLoss(self.exits, round, self.task)
        for depth in sorted({self._depth(job) for job in jobs}):
            yield from self._train_together([job for job in jobs if self._depth(job) == depth], lr)

    def _prove_lanes(self, train: Examples) -> None:
        """Falls back to one lane, with a note, where clients in lanes would not train as each does alone."""
        num_lanes, module, exits = self.lanes.num, self._model.backbone.module, range(1, len(self._blocks) + 1)
        # Without autocast: whether a model mixes lanes does not depend on precision, and bfloat16 would hide it.
        autocast, self._model.autocast = self._model.autocast, False
        with in_float32(module):
            problem = mixing(
                lambda rows: self._model.outputs(train.inputs, rows, exits),
                self.bank, self.lanes, len(train), of_examples=self.takes_samples,
            )  # fmt: skip
        self._model.autocast = autocast
        if problem is None:
            return
        self.notes.append(
            f"{'examples' if self.takes_samples else 'clients'} train one after the other, in one lane instead of "
            f"{num_lanes}: {type(module).__name__} with this tuning method would mix them; {problem}."
        )
        self.lanes.limit(1, list(map(module.get_parameter, self.spec)))
        self.bank = self._bank(module)

    def _bank(self, module: nn.Module) -> LaneBank:
        # What changes gradients gets those of all tensors at once, in rows; and a GPU steps faster on one row than on
        # many tensors.
        is_plain = isinstance(self._rule, Plain) and self._dp is None and self._device.type == "cpu"
        return LaneBank(
            module, self.spec, self.lanes.num,
            shares_values=self.takes_samples, by_tensor=is_plain and self.lanes.num == 1,
        )  # fmt: skip

    def share(self, test: Examples | None = None) -> None:
        """Puts cached features, also those computed later, where processes that are forked from now on find them.

        Args:
            test: the examples that will be evaluated; None for none. The training data are those of the engine.
        """
        for data in (self._train, *(() if test is None else (self.evaluator.cached(test),))):
            if isinstance(data.inputs, CachedInputs):
                data.inputs.allocate()

    @property
    def is_augmented(self) -> bool:
        """Whether training images are augmented; a row then has the random crop and flip of one job at a time."""
        return isinstance(self._train.inputs, AugmentedInputs)

    def _depth(self, job: Job) -> int:
        """The number of blocks that `job` runs; 0 for a model without exits, whose jobs all run the whole model."""
        return (job.depth or len(self._blocks)) if self._blocks else 0

    def _train_together(self, jobs: Sequence[Job], lr: float) -> Iterator[Trained]:
        waiting = iter(jobs)
        slots: list[_Slot] = []
        self._losses_K = torch.zeros(self.lanes.num, device=self._device, dtype=torch.float64)
        while True:
            num_before = len(slots)
            while len(slots) < self.clients_at_once and (job := next(waiting, None)) is not None:
                slots.append(self._admit(len(slots), job))
            for state in (*chain.from_iterable(self._state.values()), self._losses_K):
                state[num_before : len(slots)] = 0
            if not slots:
                return
            self._move(slots, self._gradients(slots), lr)
            done = [lane for lane in reversed(range(len(slots))) if slots[lane].steps_left == 0]
            for lane, result in zip(done, self._results(done, slots, lr), strict=True):
                yield result
                self._release(lane, slots)

    @property
    def has_exits(self) -> bool:
        """Whether the model answers at several depths."""
        return bool(self._blocks)

    def _admit(self, lane: int, job: Job) -> _Slot:
        """Loads the tensors of `job` into `lane`."""
        prepare(self._train.inputs, job.rows)
        self.bank.load(lane, job.anchor, job.local)
        self.bank.steer(lane, job.offset)
        self.bank.confine(lane, job.moving)
        num_steps = self.client.num_steps(len(job.rows))
        inputs = self._train.inputs
        if self.takes_samples:
            order = poisson_batches(job.rows, self.client.sampling_rate(len(job.rows)), num_steps, next(job.order))
            if isinstance(inputs, AugmentedInputs):
                order = inputs.in_samples(order, job.augmentation)
        else:
            order = batches(job.rows, self.client.batch_size, num_steps, job.order, job.skip)
            if isinstance(inputs, AugmentedInputs):
                epoch_steps = self.client.epoch_steps(len(job.rows))
                order = inputs.in_epochs(order, job.rows, epoch_steps, job.augmentation, job.skip)
        exit_losses = torch.full((self._depth(job),), torch.nan, device=self._device) if self._blocks else None
        return _Slot(job, order, num_steps, exit_losses=exit_losses)

    def _release(self, lane: int, slots: list[_Slot]) -> None:
        """Frees `lane`: the last lane in use moves into its place, so that lanes in use stay the first ones."""
        final = len(slots) - 1
        if lane != final:
            self.bank.move(final, lane)
            for state in chain.from_iterable(self._state.values()):
                state[lane] = state[final]
            self._losses_K[lane] = self._losses_K[final]
            slots[lane] = slots[final]
        slots.pop()

    def _results(self, lanes: Sequence[int], slots: Sequence[_Slot], lr: float) -> list[Trained]:
        if not lanes:
            return []
        losses, results = self._losses_K.tolist(), []
        for lane, delta in zip(lanes, self.bank.deltas(lanes), strict=True):
            job, loss = slots[lane].job, None if self.takes_samples else losses[lane] / slots[lane].steps_done
            # Cloned, because a view would keep the copy of the whole row in memory.
            values = self.bank.read(lane) if job.kept else {}
            kept = {name: values[name].clone() for name in job.kept}
            results.append(Trained(job.client_id, delta, kept, loss, job.lr or lr))
        return results

    def _gradients(self, slots: list[_Slot]) -> list[Gradient]:
        """The gradient of each client's batch, as matrices with a row for each."""
        if self._dp is not None and self.takes_samples:
            return [self._private_gradient(self._dp, slots[0])]
        batches_A = [next(slot.batches) for slot in slots]
        with self.lanes.training(list(map(len, batches_A)), [self._noise(slot.job) for slot in slots]):
            self._losses_K[: len(slots)] += self._backward(slots, list(map(self._chosen, slots)), batches_A)
        if self._dp is not None:
            for lane, slot in enumerate(slots):
                add_fedpeft_noise(self._dp, self.bank, lane, slot.job, slot.steps_done)
        return self.bank.gradients(len(slots))

    def _private_gradient(self, dp: DpSgd, slot: _Slot) -> Tensor:
        """The gradient of a client's Poisson sample [1, P]."""
        batch, chosen, num_rows = next(slot.batches), self._chosen(slot), len(slot.job.rows)

        def backward(rows_A: Tensor) -> None:
            active = len(rows_A)
            self._backward([slot] * active, [chosen] * active, rows_A.split(1))

        total_P = private_gradient(
            dp, self.bank, self.lanes, job=slot.job, batch=batch, step=slot.steps_done, backward=backward
        )
        # Not in the bank: noise there, between the tensors, would be clipped with the next gradient.
        mean_P = total_P.div_(self.client.sampling_rate(num_rows) * num_rows)
        return mean_P.to(self.bank.grads_KP.dtype).unsqueeze(0)

    def _backward(
        self, slots: Sequence[_Slot], chosen: Sequence[tuple[int, ...]], batches_A: Sequence[Tensor]
    ) -> Tensor:
        """Writes the gradient of the loss of every lane in use; returns the losses that are reported [A].

        Args:
            slots: of each lane.
            chosen: the exits of each lane; none for a model without exits.
            batches_A: rows of each lane.
        """
        rows_N, lengths_A = torch.cat(list(batches_A)), list(map(len, batches_A))
        targets = self._train.targets.fetch(rows_N).to(self._device, non_blocking=True)
        with self._noted():
            if self._blocks:
                minimised_A, losses_A = self._loss_at_exits(slots, chosen, rows_N, targets, lengths_A)
            else:
                (outputs,) = self._model.outputs(self._train.inputs, rows_N, ())
                with model_errors(f"the loss of {self._model.name}", {"outputs": outputs, "targets": targets}):
                    losses_N, weights_N = losses_of(self.task, outputs, targets), weights_of(self.task, targets)
                    minimised_A = losses_A = lane_means(losses_N, lengths_A, weights_N)
        with model_errors(f"the backward pass of {self._model.name}", {"rows": rows_N}):
            # Lanes share no tuned tensor, so the gradient of the sum is the gradient of each lane's loss.
            self.bank.backward(minimised_A.sum())
        return losses_A.detach()

    def _noted(self) -> AbstractContextManager[None]:
        """A context in which gradients of dense layers become products, if the optimizer can add products."""
        layers = self.bank.dense_layers if isinstance(self.client.optimizer, Sgd) else None
        return nullcontext() if layers is None or self.bank.offsets_KP is not None else layers.noted()

    @torch.no_grad()
    def _move(self, slots: list[_Slot], grads: list[Gradient], lr: float) -> None:
        """One optimizer step in every lane in use."""
        bank, active = self.bank, len(slots)
        if bank.offsets_KP is not None:
            offsets = bank.matrices(bank.offsets_KP, active)
            grads = [dense(grad) + offset for grad, offset in zip(grads, offsets, strict=True)]
        values = bank.matrices(bank.values_KP, active)
        if not bank.by_tensor:
            self._rule.correct(dense(grads[0]), values[0], bank.anchors_KP[:active])
        state = {name: [tensor[:active] for tensor in tensors] for name, tensors in self._state.items()}
        optimizer, rates = self.client.optimizer, self._rates(slots, lr)
        if isinstance(optimizer, Sgd):
            optimizer.step(values, grads, state, rates)
        else:
            optimizer.step(values, list(map(dense, grads)), state, rates)
        self.bank.reset_pinned(active)
        for slot in slots:
            slot.steps_left -= 1
            slot.steps_done += 1

    def _chosen(self, slot: _Slot) -> tuple[int, ...]:
        """The exits that a client trains in a step; none for a model without exits."""
        return self._exit_loss.chosen(self._depth(slot.job), draws(slot.job.exits)) if self._blocks else ()

    def _rates(self, slots: list[_Slot], lr: float) -> LearningRate:
        """The learning rate of all lanes, or one per lane if a job sets its own."""
        if all(slot.job.lr is None for slot in slots):
            return lr
        return [lr if slot.job.lr is None else slot.job.lr for slot in slots]

    def _noise(self, job: Job) -> Generator:
        """The generator for the dropout of one step.

        With random exits a lane also runs the blocks between its exit and the deepest exit of the step, so how many
        numbers a step draws depends on the other lanes. A generator per step keeps the job's stream independent.
        """
        if not self._blocks or self.exits.train != "random":
            return job.noise
        return Generator().manual_seed(int(torch.randint(2**62, (), generator=job.noise)))

    def _loss_at_exits(
        self,
        slots: Sequence[_Slot],
        chosen: Sequence[tuple[int, ...]],
        rows_N: Tensor,
        targets_NX: Tensor,
        lengths_A: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """The loss that each lane minimises [A], and the loss that is reported [A]; see `ExitLoss.of`."""
        exits = sorted(set().union(*chosen))
        outputs = self._model.outputs(self._train.inputs, rows_N, exits)
        chosen_EA = torch.tensor(
            [[float(number in lane_exits) for lane_exits in chosen] for number in exits], device=self._device
        )
        indices = torch.tensor(exits, device=self._device) - 1
        running_EA = torch.stack([slot.exit_losses[indices] for slot in slots if slot.exit_losses is not None], dim=1)
        losses = self._exit_loss.of(torch.stack(outputs), targets_NX, lengths_A, chosen_EA, running_EA)
        for slot, running_E in zip(slots, running_EA.unbind(1), strict=True):
            if slot.exit_losses is not None:
                slot.exit_losses[indices] = running_E
        return losses
