"""Exits: depths at which a model may answer. Exit d is behind block d and reads its class token.

A method that gives a model exits puts an `ExitBlock` around every block and an `Answer` in the place of the model's own
head, which nobody needs any more: run as a whole, the model answers at its last exit. `walk` runs it block by block, so
that whoever wants an answer from exit d computes nothing above block d.

Shapes: A lanes in use, B samples of a lane, N = A * B, T tokens, D features, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NoReturn

from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.tuning.base import block_paths, misfit, replace, untouched
from fedelta.tuning.lanes import LaneModule, Lanes, Wrapper

OWN_HEAD = "exit_head"  # attribute of an exit block with a head that no other exit has


class Trace:
    """What the exits of a model keep during one forward pass: shared by them, and empty between passes.

    Attributes:
        summary: [N, D], what the exit reached last would answer from.
        tensors: what the next exit needs, by name.
    """

    def __init__(self) -> None:
        self.summary: Tensor | None = None
        self.tensors: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forgets the pass, and with it the graph of its gradients."""
        self.summary = None
        self.tensors = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Trace:
        memo[id(self)] = copied = Trace()
        return copied


class ExitBlock(Wrapper):
    """A block and the exit behind it.

    Args:
        lanes: of the model.
        base: the block.
        trace: shared by the exits of the model.

    Attributes:
        is_first: whether a pass begins here; set by `put_exits`.
    """

    def __init__(self, lanes: Lanes, base: nn.Module, trace: Trace) -> None:
        super().__init__(lanes, base)
        self.trace = trace
        self.is_first = False

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        """[N, T, D] to the same shape, what the next block reads; with what else the block gives, if it gives more."""
        if self.is_first:
            self.trace.clear()  # a pass that failed may have left something
        y: Tensor | tuple[Tensor, ...] = self.base(x, *args, **kwargs)
        return (self.observe(y[0]), *y[1:]) if isinstance(y, tuple) else self.observe(y)

    @abstractmethod
    def observe(self, y: Tensor) -> Tensor:
        """Puts what the exit answers from into `trace`; returns what the next block reads instead of `y` [N, T, D]."""

    @abstractmethod
    def head(self, summary: Tensor) -> Tensor:
        """[N, D] to logits [N, C]."""

    def answer(self) -> Tensor:
        """Logits [N, C], right after the forward pass of this block."""
        if self.trace.summary is None:
            raise RuntimeError("an exit was asked before its block had run")
        return self.head(self.trace.summary)


class Answer(LaneModule):
    """Stands where a model has its head, and gives the logits of the last exit."""

    def __init__(self, lanes: Lanes, last: ExitBlock) -> None:
        super().__init__(lanes)
        self._last = (last,)  # a tuple: the block already has its place in the model

    def forward(self, *_: object) -> Tensor:
        """Whatever the model would classify, to logits [N, C]."""
        try:
            return self._last[0].answer()
        finally:
            self._last[0].trace.clear()


def class_token_blocks(method: str, backbone: Backbone) -> list[str]:
    """Own paths of the blocks, for the tuning method `method` that puts exits behind them.

    Raises:
        ModelError: no blocks are known, or they have no class token; or the model has exits already.
    """
    paths = block_paths(backbone)
    if not paths or backbone.anatomy.no_exits:
        raise misfit(method, backbone, backbone.anatomy.no_exits or "its blocks are not known")
    if exit_blocks(backbone.module):
        raise ModelError(f"tuning method {method!r} gives exits to a model that has exits.", hint="choose one of them.")
    return paths


def layers_of(backbone: Backbone, paths: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Path now and module of each of the blocks at the own paths `paths`."""
    layers = untouched(backbone.module)
    return [layers[path] for path in paths]


def put_exits(backbone: Backbone, lanes: Lanes, exits: Sequence[tuple[str, ExitBlock]]) -> None:
    """Puts each exit block in the place of the block at its path, and their answer in that of the head."""
    exits[0][1].is_first = True
    for path, block in exits:
        replace(backbone.module, path, block)
    replace(backbone.module, backbone.anatomy.head[-1], Answer(lanes, exits[-1][1]))


def exit_blocks(module: nn.Module) -> list[ExitBlock]:
    """The blocks with exits, lowest first; none when the model has no exits."""
    return [layer for layer in module.modules() if isinstance(layer, ExitBlock)]


def walk(blocks: Sequence[ExitBlock], forward: Callable[[], object]) -> Iterator[ExitBlock]:
    """Runs a model block by block and yields each when it can `answer`, once, before the model is run again.

    Between two blocks the model is free: whoever runs it then disturbs nothing.

    Args:
        blocks: all exit blocks of the model.
        forward: runs the model as a whole; it is stopped in front of the first block.
    """
    hidden, args, kwargs = _entrance(blocks[0], forward)
    trace = blocks[0].trace
    own: dict[str, Tensor] = {}
    try:
        for block in blocks:
            trace.tensors = own
            y = block(hidden, *args, **kwargs)
            hidden = y[0] if isinstance(y, tuple) else y
            # Taken out of the model: another pass before the next block would go on with it as if it were its own.
            own, trace.tensors = trace.tensors, {}
            yield block
    finally:
        trace.clear()


def logits_at(blocks: Sequence[ExitBlock], forward: Callable[[], object], exits: Collection[int]) -> dict[int, Tensor]:
    """Logits [N, C] at each of `exits`, numbered from 1; nothing above the deepest is computed. See `walk`."""
    found = {}
    for number, block in enumerate(walk(blocks[: max(exits)], forward), start=1):
        if number in exits:
            found[number] = block.answer()
    return found


def owned_at(backbone: Backbone, spec: ParamSpec, depth: int, answers: Collection[int]) -> frozenset[str]:
    """Names of the tensors of a client that runs `depth` blocks and answers at the exits `answers`.

    What all exits share belongs to block 1, and with it to every client.
    """
    depths = {path: number for number, path in enumerate(block_paths(backbone), start=1)}
    kept = set()
    for name in spec:
        path = next((path for path in depths if name.startswith(f"{path}.")), None)
        is_own_head = path is not None and name.startswith(f"{path}.{OWN_HEAD}.")
        if path is None or (depths[path] in answers if is_own_head else depths[path] <= depth):
            kept.add(name)
    return frozenset(kept)


class _StoppedError(Exception):
    """Carries what the first block was called with out of the model."""

    def __init__(self, hidden: Tensor, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        super().__init__("first block reached")
        self.call = (hidden, args, kwargs)


def _entrance(first: ExitBlock, forward: Callable[[], object]) -> tuple[Tensor, tuple[object, ...], dict[str, object]]:
    handle = first.register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        forward()
    except _StoppedError as stopped:
        return stopped.call
    finally:
        handle.remove()
    raise RuntimeError("the model never ran its first block")


def _stop(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> NoReturn:
    raise _StoppedError(args[0], args[1:], kwargs)
