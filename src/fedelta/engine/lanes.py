"""The lane engine: trains many clients in one forward and backward pass of a shared model.

Lanes are refilled continuously: when a client has done its steps, the last lane in use moves into its place and
the next client of the cohort takes the lane that became free, with zeroed optimizer state. Batches of unequal
size are padded, and padding has weight zero in the loss. A deployed client is the same code with one lane.

Shapes: A lanes in use, K lanes, B samples of the largest batch of a step, P tuned scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from fedelta.data.augmentation import Augmentation, AugmentedInputs
from fedelta.data.batches import Examples, batches
from fedelta.engine.bank import LaneBank
from fedelta.engine.exits import ExitLoss, ExitSettings
from fedelta.engine.optimizers import LearningRate
from fedelta.engine.prefix import CachedInputs, find_prefix, only_head
from fedelta.engine.proof import mixing
from fedelta.engine.work import ClientSettings, Job, Trained, padded
from fedelta.modalities.base import Inputs
from fedelta.models.failures import model_errors
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec
from fedelta.strategies.base import LocalRule
from fedelta.tasks.base import Evaluation, Sums, Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.details import Answered
from fedelta.tuning.exits import exit_blocks, logits_at
from fedelta.tuning.lanes import Lanes

_EVALUATION_ROWS = 256  # rows of an evaluation batch; fixed, so that the measures' bits are too


@dataclass
class _Slot:
    """A job in a lane."""

    job: Job
    batches: Iterator[Tensor]
    steps_left: int
    steps_done: int = 0
    # Mean loss of each exit so far; NaN before the first.
    exit_losses: Tensor | None = None


class LaneEngine:
    """Trains and evaluates on one model instance.

    Args:
        backbone: with the tuning method applied, on its device.
        spec: what is tuned.
        lanes: of the model.
        train: rows of all clients.
        client: steps, batch size, optimizer.
        rule: correction of each gradient.
        cache_bytes: most memory for features of frozen modules; 0 switches the cache off.
        compute_dtype: `bfloat16` runs the model under autocast; the tuned tensors stay float32.
        augmentation: what is done to the images of `train`; None for nothing.
        exits: at which exits clients learn; without effect on a model without exits.
        task: what is predicted.
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
        augmentation: Augmentation | None = None,
        exits: ExitSettings = ExitSettings(),  # noqa: B008 a frozen value
        task: Task = Classification(),  # noqa: B008 likewise
    ) -> None:
        self.spec = spec
        self.lanes = lanes
        self.bank = LaneBank(backbone.module, spec, lanes.num)
        self.client = client
        self.notes: list[str] = []
        self._backbone = backbone
        self._name = type(backbone.module).__name__
        self._rule = rule
        self._blocks = exit_blocks(backbone.module)
        self.exits = exits
        self.task = task
        self._device = self.bank.values_KP.device
        self._autocast = compute_dtype == "bfloat16"
        self._cache_bytes = cache_bytes
        self._prefix = None
        if cache_bytes:
            sample = train.inputs.fetch(torch.arange(min(2, len(train))))
            self._prefix = find_prefix(backbone, spec, lanes, self._to_device(sample))
            if self._prefix is None and only_head(backbone, spec):
                self.notes.append("frozen-prefix cache off: this model's head cannot be run on its own.")
        if augmentation is not None and augmentation.is_on:
            self._train = self._augmented(train, augmentation)
        else:
            self._train = self._cached(train)
        self._evaluated: tuple[Examples, Examples] | None = None
        if lanes.num > 1:
            self._prove_lanes(train)

    def train(self, jobs: Sequence[Job], lr: float, round: int = 1) -> Iterator[Trained]:
        """Trains every job and yields each when it is done; jobs enter lanes in the order given.

        Jobs of one depth share lanes, so that no block is run that none of them needs.

        Args:
            jobs: at most one per client, or several that differ in `lr` where nothing is augmented.
            lr: learning rate of this round.
            round: its number, from 1.
        """
        self._exit_loss = ExitLoss(self.exits, round, self.task)
        for depth in sorted({self._depth(job) for job in jobs}):
            yield from self._train_together([job for job in jobs if self._depth(job) == depth], lr)

    def _prove_lanes(self, train: Examples) -> None:
        """One lane from now on, and a note on why, where clients in several would not train as each does alone."""
        num, module, exits = self.lanes.num, self._backbone.module, range(1, len(self._blocks) + 1)
        # In float32: the order of the samples does not depend on the precision, and differences show.
        autocast, self._autocast = self._autocast, False
        problem = mixing(lambda rows: self._outputs(train.inputs, rows, exits), self.bank, self.lanes, len(train))
        self._autocast = autocast
        if problem is None:
            return
        self.notes.append(
            f"clients train one after the other, in one lane instead of {num}: {type(module).__name__} with this "
            f"tuning method would mix them; {problem}."
        )
        self.lanes.num = self.lanes.active = 1
        for name in self.spec:
            parameter = module.get_parameter(name)
            parameter.data = parameter.data[:1]
        self.bank = LaneBank(module, self.spec, 1)

    @property
    def is_augmented(self) -> bool:
        """Whether training images are changed: a row then has the numbers of one job at a time."""
        return isinstance(self._train.inputs, AugmentedInputs)

    def _depth(self, job: Job) -> int:
        """Blocks that it runs; of a model without exits 0, as it makes no difference."""
        return (job.depth or len(self._blocks)) if self._blocks else 0

    def _train_together(self, jobs: Sequence[Job], lr: float) -> Iterator[Trained]:
        waiting = iter(jobs)
        slots: list[_Slot] = []
        self._state = self.client.optimizer.state(self.bank.values_KP)
        self._losses_K = torch.zeros(self.lanes.num, device=self._device, dtype=torch.float64)
        while True:
            while len(slots) < self.lanes.num and (job := next(waiting, None)) is not None:
                slots.append(self._admit(len(slots), job))
            if not slots:
                return
            self._step(slots, lr)
            for lane in reversed(range(len(slots))):
                if slots[lane].steps_left == 0:
                    yield self._result(lane, slots[lane], lr)
                    self._release(lane, slots)

    @torch.no_grad()
    def evaluate(
        self, params: Params, data: Examples, rows: Tensor | None = None, depth: int | None = None
    ) -> Evaluation:
        """The measures of `params`, in lane 0.

        Args:
            params: tuned tensors.
            data: what is evaluated on; features of frozen modules are kept until other data come.
            rows: of `data`, int64; None for all.
            depth: blocks that are run; None for all.
        """
        exits = range(1, (depth or len(self._blocks)) + 1) if self._blocks else range(0)
        sums = [Sums()] * max(1, len(exits))
        for _, outputs, targets in self._passes(params, data, rows, exits):
            sums = [so_far + self.task.sums(each, targets) for so_far, each in zip(sums, outputs, strict=True)]
        values = [self.task.values(each) for each in sums]
        primary = self.task.primary.name
        return Evaluation(values[-1], {primary: tuple(each[primary] for each in values)} if self._blocks else {})

    @torch.no_grad()
    def answers(self, params: Params, data: Examples) -> Iterator[Answered]:
        """What the model with `params` gives for all of `data`, of a model with exits at its last; in lane 0."""
        exits = [len(self._blocks)] if self._blocks else []
        for rows, (outputs,), targets in self._passes(params, data, None, exits):
            yield Answered(rows, outputs, targets)

    def _passes(
        self, params: Params, data: Examples, rows: Tensor | None, exits: Collection[int]
    ) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        """Rows, the outputs for them at each of `exits` as `_outputs` gives them, and targets, batch by batch."""
        if self._evaluated is None or self._evaluated[0] is not data:
            self._evaluated = (data, self._cached(data))
        cached = self._evaluated[1]
        self.lanes.active = 1
        self.bank.load(0, params)
        rows = torch.arange(len(data)) if rows is None else rows
        for batch in rows.split(_EVALUATION_ROWS):
            self._prepare(cached.inputs, batch)
            targets = data.targets.fetch(batch).to(self._device)
            yield batch, self._outputs(cached.inputs, batch, exits), targets

    def _admit(self, lane: int, job: Job) -> _Slot:
        self._prepare(self._train.inputs, job.rows)
        self.bank.load(lane, job.anchor, job.local)
        self.bank.steer(lane, job.offset)
        self.bank.confine(lane, job.moving)
        for state in self._state.values():
            state[lane] = 0
        self._losses_K[lane] = 0
        num_steps = self.client.num_steps(len(job.rows))
        order = batches(job.rows, self.client.batch_size, num_steps, job.order, job.skip)
        if isinstance(self._train.inputs, AugmentedInputs):
            epoch_steps = self.client.epoch_steps(len(job.rows))
            order = self._train.inputs.in_epochs(order, job.rows, epoch_steps, job.augmentation, job.skip)
        exit_losses = torch.full((self._depth(job),), torch.nan, device=self._device) if self._blocks else None
        return _Slot(job, order, num_steps, exit_losses=exit_losses)

    def _release(self, lane: int, slots: list[_Slot]) -> None:
        """The last lane in use takes the place of `lane`."""
        last = len(slots) - 1
        if lane != last:
            self.bank.move(last, lane)
            for state in self._state.values():
                state[lane] = state[last]
            self._losses_K[lane] = self._losses_K[last]
            slots[lane] = slots[last]
        slots.pop()

    def _result(self, lane: int, slot: _Slot, lr: float) -> Trained:
        loss = float(self._losses_K[lane]) / slot.steps_done
        # Cloned: a view would hold the whole row of the bank's copy in memory.
        values = self.bank.read(lane) if slot.job.kept else {}
        kept = {name: values[name].clone() for name in slot.job.kept}
        return Trained(slot.job.client_id, self.bank.delta(lane), kept, loss, slot.job.lr or lr)

    def _step(self, slots: list[_Slot], lr: float) -> None:
        """One optimizer step in every lane in use."""
        batches_A = [next(slot.batches) for slot in slots]
        rows_AB, weights_AB = padded(batches_A)
        active = len(slots)
        targets = self._train.targets.fetch(rows_AB.flatten()).to(self._device)
        weights_AB = weights_AB.to(self._device)
        with self.lanes.training([len(batch) for batch in batches_A], [self._noise(slot.job) for slot in slots]):
            if self._blocks:
                minimised_A, losses_A = self._loss_at_exits(slots, rows_AB, targets, weights_AB)
            else:
                (outputs,) = self._outputs(self._train.inputs, rows_AB.flatten(), ())
                with model_errors(f"the loss of {self._name}", {"outputs": outputs, "targets": targets}):
                    losses_AB = self.task.losses(outputs, targets).view(rows_AB.shape)
                minimised_A = losses_A = (losses_AB * weights_AB).sum(1)
        with model_errors(f"the backward pass of {self._name}", {"rows": rows_AB}):
            self.bank.backward(minimised_A.sum())
        self._losses_K[:active] += losses_A.detach()
        values_AP, grads_AP = self.bank.values_KP[:active], self.bank.grads_KP[:active]
        with torch.no_grad():
            if self.bank.offsets_KP is not None:
                grads_AP += self.bank.offsets_KP[:active]
            self._rule.correct(grads_AP, values_AP, self.bank.anchors_KP[:active])
            state = {name: tensor[:active] for name, tensor in self._state.items()}
            self.client.optimizer.step(values_AP, grads_AP, state, self._rates(slots, lr))
            self.bank.put_back(active)
        for slot in slots:
            slot.steps_left -= 1
            slot.steps_done += 1

    def _rates(self, slots: list[_Slot], lr: float) -> LearningRate:
        """The learning rate of all lanes, or of each where one has its own."""
        if all(slot.job.lr is None for slot in slots):
            return lr
        rates = [[lr if slot.job.lr is None else slot.job.lr] for slot in slots]
        return torch.tensor(rates, device=self._device, dtype=self.bank.values_KP.dtype)

    def _noise(self, job: Job) -> Generator:
        """For the dropout of one step.

        With random exits a lane also runs the blocks between its exit and the deepest one of the step; what these draw
        must not be missing from its next step.
        """
        if not self._blocks or self.exits.train != "random":
            return job.noise
        return Generator().manual_seed(int(torch.randint(2**62, (), generator=job.noise)))

    def _loss_at_exits(
        self, slots: list[_Slot], rows_AB: Tensor, targets: Tensor, weights_AB: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is minimised and what is written down, by lane; see `ExitLoss.of`."""
        chosen = [self._exit_loss.chosen(self._depth(slot.job), _draws(slot.job.exits)) for slot in slots]
        exits = sorted(set().union(*chosen))
        outputs = self._outputs(self._train.inputs, rows_AB.flatten(), exits)
        chosen_EA = torch.tensor([[float(number in own) for own in chosen] for number in exits], device=self._device)
        places = torch.tensor(exits, device=self._device) - 1
        running_EA = torch.stack([slot.exit_losses[places] for slot in slots if slot.exit_losses is not None], dim=1)
        outputs_EABX = torch.stack(outputs).unflatten(1, rows_AB.shape)
        targets_ABX = targets.unflatten(0, rows_AB.shape)
        found = self._exit_loss.of(outputs_EABX, targets_ABX, weights_AB, chosen_EA, running_EA)
        for slot, running_E in zip(slots, running_EA.unbind(1), strict=True):
            if slot.exit_losses is not None:
                slot.exit_losses[places] = running_E
        return found

    def _outputs(self, inputs: Inputs, rows: Tensor, exits: Collection[int]) -> list[Tensor]:
        """Outputs for `rows` at each of `exits`, ascending; of a model without exits the model's own alone."""
        tensors = self._to_device(inputs.fetch(rows))
        model = inputs if isinstance(inputs, CachedInputs) else self._backbone
        with (
            model_errors(self._name, tensors),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast),
        ):
            if not self._blocks:
                return [model.logits(tensors).float()]
            found = logits_at(self._blocks, lambda: model.logits(tensors), exits)
            return [logits.float() for logits in found.values()]

    def _to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _prepare(self, inputs: Inputs, rows: Tensor) -> None:
        if isinstance(inputs, CachedInputs):
            inputs.prepare(rows)

    def _augmented(self, data: Examples, augmentation: Augmentation) -> Examples:
        if self._prefix is not None:
            self.notes.append(
                "frozen-prefix cache off for the training data: with `[augmentation]` its images differ in every "
                "epoch, so that every step runs the whole model."
            )
        modality = self._backbone.modality
        # Where inputs come ready it is not known what black is: there the padding is 0.
        black = (0.0,) if modality is None else modality.black
        return replace(data, inputs=AugmentedInputs(data.inputs, augmentation, black, self._device))

    def _cached(self, data: Examples) -> Examples:
        """`data` behind the prefix cache where there is a prefix and its features fit."""
        if self._prefix is None:
            return data
        cached = CachedInputs(data.inputs, self._prefix, self._device)
        if cached.num_bytes > self._cache_bytes:
            self.notes.append(
                f"frozen-prefix cache off: the features of {len(data):,} rows would take "
                f"{cached.num_bytes / 2**20:,.1f} MiB, more than `runtime.cache_mib` = "
                f"{self._cache_bytes / 2**20:,.1f}; raise it to compute them only once."
            )
            return data
        return replace(data, inputs=cached)


def _draws(generator: Generator | None) -> Callable[[int], int]:
    """Numbers below n, one a call."""

    def draw(below: int) -> int:
        if generator is None:
            raise ValueError("the choice of an exit needs `Job.exits`")
        return int(torch.randint(below, (), generator=generator))

    return draw
