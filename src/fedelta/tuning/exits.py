"""Exits: depths at which a model can give its output. Exit d comes after block d and reads its class token.

A tuning method that adds exits puts an `ExitBlock` around every block and a `LastExit` in the place of the model's
head, so that the whole model gives the logits of its last exit. `walk` runs the model block by block, so that the
logits at exit d need nothing above block d.

Shapes: N samples of all lanes in use, T tokens, D features, C classes.
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

OWN_HEAD = "exit_head"  # attribute of an exit block that holds a head for this exit only


class Trace:
    """What the exits of a model pass on during one forward pass; shared by all exits, empty between passes.

    Attributes:
        summary: [N, D], the input of the head of the last exit that was reached; None before the first.
        tensors: what the next exit needs, by name.
    """

    def __init__(self) -> None:
        self.summary: Tensor | None = None
        self.tensors: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Empties the trace, which also frees the graph of gradients."""
        self.summary = None
        self.tensors = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Trace:
        memo[id(self)] = copied = Trace()
        return copied


class ExitBlock(Wrapper):
    """A block followed by an exit.

    Args:
        lanes: shared by all tuning modules of the model.
        base: the block.
        trace: shared by all exits of the model.

    Attributes:
        is_first: whether this is the first block, at which a pass begins; set by `put_exits`.
    """

    def __init__(self, lanes: Lanes, base: nn.Module, trace: Trace) -> None:
        super().__init__(lanes, base)
        self.trace = trace
        self.is_first = False

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        """[N, T, D] to the input of the next block, [N, T, D]; further outputs of the block are passed on."""
        if self.is_first:
            self.trace.clear()  # a pass that failed may have left tensors
        y: Tensor | tuple[Tensor, ...] = self.base(x, *args, **kwargs)
        return (self.observe(y[0]), *y[1:]) if isinstance(y, tuple) else self.observe(y)

    @abstractmethod
    def observe(self, y: Tensor) -> Tensor:
        """Sets `trace.summary` from the block's output `y` [N, T, D]; returns the input of the next block."""

    @abstractmethod
    def head(self, summary: Tensor) -> Tensor:
        """[N, D] to logits [N, C]."""

    def answer(self) -> Tensor:
        """Logits [N, C] of this exit; call it right after the forward pass of its block."""
        if self.trace.summary is None:
            raise RuntimeError("the exit has no input: its block has not run in this pass")
        return self.head(self.trace.summary)


class LastExit(LaneModule):
    """Takes the place of the model's head and returns the logits of the last exit."""

    def __init__(self, lanes: Lanes, block: ExitBlock) -> None:
        super().__init__(lanes)
        self._block = (block,)  # in a tuple, because PyTorch would register the block as a submodule a second time

    def forward(self, *_: object) -> Tensor:
        """Logits [N, C] of the last exit; the input is ignored."""
        try:
            return self._block[0].answer()
        finally:
            self._block[0].trace.clear()


def class_token_blocks(method: str, backbone: Backbone) -> list[str]:
    """Original paths of the blocks, after which the tuning method `method` adds exits.

    Raises:
        ModelError: the model's blocks are unknown, its tokens include no class token, or it already has exits.
    """
    paths = block_paths(backbone)
    if not paths or backbone.anatomy.no_exits:
        raise misfit(method, backbone, backbone.anatomy.no_exits or "its blocks are not known")
    if exit_blocks(backbone.module):
        raise ModelError(
            f"tuning method {method!r} adds exits to a model that already has exits.", hint="use one such method only."
        )
    return paths


def layers_of(backbone: Backbone, paths: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The current paths and the modules of the blocks at the original paths `paths`."""
    layers = untouched(backbone.module)
    return [layers[path] for path in paths]


def put_exits(backbone: Backbone, lanes: Lanes, exits: Sequence[tuple[str, ExitBlock]]) -> None:
    """Puts each exit block in the place of the block at its current path, and `LastExit` in the place of the head."""
    exits[0][1].is_first = True
    for path, block in exits:
        replace(backbone.module, path, block)
    replace(backbone.module, backbone.anatomy.head[-1], LastExit(lanes, exits[-1][1]))


def exit_blocks(module: nn.Module) -> list[ExitBlock]:
    """The blocks with exits, lowest first; empty if the model has no exits."""
    return [layer for layer in module.modules() if isinstance(layer, ExitBlock)]


def walk(blocks: Sequence[ExitBlock], forward: Callable[[], object]) -> Iterator[ExitBlock]:
    """Runs a model block by block, and yields each block when its `answer` can be called.

    Between two blocks the caller may run the model on other inputs.

    Args:
        blocks: the exit blocks to run, from the first on.
        forward: runs the whole model; it is stopped before the first block.
    """
    hidden, args, kwargs = _entrance(blocks[0], forward)
    trace = blocks[0].trace
    walk_tensors: dict[str, Tensor] = {}
    try:
        for block in blocks:
            trace.tensors = walk_tensors
            y = block(hidden, *args, **kwargs)
            hidden = y[0] if isinstance(y, tuple) else y
            # Kept outside of the model, so that another pass before the next block cannot append to them.
            walk_tensors, trace.tensors = trace.tensors, {}
            yield block
    finally:
        trace.clear()


def logits_at(blocks: Sequence[ExitBlock], forward: Callable[[], object], exits: Collection[int]) -> dict[int, Tensor]:
    """Logits [N, C] at each of `exits`, which are counted from 1; runs no block above the deepest exit. See `walk`."""
    logits = {}
    for number, block in enumerate(walk(blocks[: max(exits)], forward), start=1):
        if number in exits:
            logits[number] = block.answer()
    return logits


def owned_at(backbone: Backbone, spec: ParamSpec, depth: int, answers: Collection[int]) -> frozenset[str]:
    """Names of the tensors that a client holds which runs `depth` blocks and uses the exits `answers`.

    The paths of tensors that all exits share begin with block 1, so every client holds them.
    """
    depths = {path: number for number, path in enumerate(block_paths(backbone), start=1)}
    owned = set()
    for name in spec:
        path = next((path for path in depths if name.startswith(f"{path}.")), None)
        is_own_head = path is not None and name.startswith(f"{path}.{OWN_HEAD}.")
        if path is None or (depths[path] in answers if is_own_head else depths[path] <= depth):
            owned.add(name)
    return frozenset(owned)


class _StoppedError(Exception):
    """Stops the model at its first block and carries the arguments of the call."""

    def __init__(self, hidden: Tensor, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        super().__init__("first block reached")
        self.call = (hidden, args, kwargs)


def _entrance(block: ExitBlock, forward: Callable[[], object]) -> tuple[Tensor, tuple[object, ...], dict[str, object]]:
    """The arguments with which `forward` calls the first block."""
    handle = block.register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        forward()
    except _StoppedError as stopped:
        return stopped.call
    finally:
        handle.remove()
    raise RuntimeError("the model did not run its first block")


def _stop(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> NoReturn:
    raise _StoppedError(args[0], args[1:], kwargs)
