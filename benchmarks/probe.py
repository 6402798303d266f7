"""One family and one tuning method: whether it works, is refused, or is at fault.

It works where steps of three clients in two lanes, and then one, give what each gives alone; where the model starts as
the pre-trained one, unless the method says otherwise; where the model that `merge` folds gives the same answers; where
exits answer alike block by block and at once; and where an evaluation is finite. Values are drawn anew for each client,
since a method that starts at nothing proves nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import traceback
from itertools import repeat

import torch
from benchmarks.small import VOCABULARY
from torch import Tensor

from fedelta.data.batches import Examples
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.errors import InputError
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tasks.labels import Labels
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.exits import exit_blocks, logits_at
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel
from fedelta.tuning.prompt import Prompt
from fedelta.tuning.proof import apply_proved

METHODS: dict[str, TuningMethod] = {
    "lora": Lora(r=2, lora_alpha=4),
    "lora all-linear": Lora(r=2, lora_alpha=4, target_modules="all-linear"),
    "lora all-conv": Lora(r=2, lora_alpha=4, target_modules="all-conv"),
    "adapter": Adapter(),
    "adapter parallel": Adapter(placement="parallel", shared=False),
    "bias": Bias(),
    "prompt": Prompt(num_virtual_tokens=2, dropout=0.0),
    "exit-heads": ExitHeads(),
    "accumulator": Accumulator(num_heads=2, mlp_width=16, head_width=16),
    "parallel": Parallel(init="zero"),
    "head": Head(),
    "full": Full(),
}
# Methods that change the outputs by design: they add tokens or exits.
_NEW_FUNCTION = ("prompt", "exit-heads", "accumulator")
_ROWS, _CLIENTS, _STEPS = 8, 3, 2
# Rows of each client, in batches of three: ragged, and never one row alone (PyTorch 2.13 has wrong gradients for CvT).
_SIZES = ((0, 1, 2, 3, 4), (5, 6, 7), (2, 3, 4, 5, 6))
_TOLERANCE = 2e-3  # of the largest value of a tensor; float32 and another order of sums
_NOISE = 2e-5  # of the largest value of all tensors: what should be zero is rounding


@dataclasses.dataclass(frozen=True)
class Cell:
    """What became of a method on a family.

    Args:
        kind: `works`, `refused` or `fault`.
        note: why not, or what else there is to say.
        tensors: how many are tuned.
    """

    kind: str
    note: str = ""
    tensors: int = 0


class Rows:
    """Inputs in memory, as `Inputs`."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self._tensors.values())))

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self._tensors.items()}


def rows_for(backbone: Backbone) -> Rows:
    """Eight examples; texts differ in length and end as the tokenizer ends them."""
    generator = stream(0, "rows")
    modality = backbone.modality
    if modality.name != "text":
        return Rows(modality.export_inputs(_ROWS, 9, generator))
    lengths = (9, 7, 8, 9, 6, 9, 8, 5)
    texts = [[*torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), 2] for length in lengths]
    return Rows(modality.transform(texts))


def exact(backbone: Backbone, rows: Rows) -> tuple[Backbone, Rows]:
    """Both in float64, where a kink that rounding crosses is no difference; as they are where a model takes none."""
    module = copy.deepcopy(backbone.module).double()
    tensors = rows.fetch(torch.arange(_ROWS))
    doubled = Rows({name: item.double() if item.is_floating_point() else item for name, item in tensors.items()})
    wide = dataclasses.replace(backbone, module=module)
    try:
        with torch.no_grad():
            logits = wide.logits(doubled.fetch(torch.arange(_ROWS)))
    except (RuntimeError, ValueError, TypeError):
        return backbone, rows
    is_exact = logits.dtype == torch.float64 and bool(logits.isfinite().all())
    return (wide, doubled) if is_exact else (backbone, rows)


def probe(backbone: Backbone, name: str, rows: Rows) -> Cell:
    """Tries the method called `name` on copies of `backbone`."""
    try:
        return _probe(*exact(backbone, rows), name)
    except InputError as error:
        return Cell("refused", error.message)
    except Exception as error:  # noqa: BLE001 any error is a result
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Cell("fault", f"{type(error).__name__} at {last.name}: {str(error)[:160]}")


def _probe(backbone: Backbone, rows: Rows, name: str) -> Cell:
    method = METHODS[name]
    inputs = rows.fetch(torch.arange(_ROWS))
    with torch.no_grad():
        before = backbone.logits(inputs)
    wide, spec = _engine(backbone, method, rows, 2)
    if name not in _NEW_FUNCTION:
        wide.lanes.active = 1
        with torch.no_grad():
            _same("a fresh model differs from the base", _logits(wide, inputs), before)
    starts = [_drawn(wide, spec, client) for client in range(_CLIENTS)]
    alone, _ = _engine(backbone, method, rows, 1)
    together = _deltas(wide, starts)
    for client, delta in _deltas(alone, starts).items():
        _same_params(f"lanes differ from one lane for client {client}", together[client], delta)
    if not all(value == value for value in wide.evaluator.evaluate(starts[0], _examples(rows)).measures.values()):
        return Cell("fault", "an evaluation is not finite")
    if exit_blocks(wide._model.backbone.module):
        _check_walk(wide, inputs)
    unreached = _unreached(alone, spec, inputs)
    if method.merges:
        _check_merge(alone, method, starts[0], inputs)
    notes = [note.partition(":")[0] for note in wide.notes]
    if unreached:
        notes.append(f"no answer depends on {len(unreached)} of {len(spec)} tensors, such as `{unreached[0]}`")
    return Cell("works", "; ".join(notes), len(spec))


def _engine(backbone: Backbone, method: TuningMethod, rows: Rows, num_lanes: int) -> tuple[LaneEngine, ParamSpec]:
    own = dataclasses.replace(backbone, module=copy.deepcopy(backbone.module))
    lanes = Lanes(min(num_lanes, method.max_lanes or num_lanes))
    sample = rows.fetch(torch.arange(2))
    spec = apply_proved(method, own, lanes, stream(0, "tuning"), sample)
    client = ClientSettings(local_steps=_STEPS, batch_size=3, lr=0.01, optimizer=Sgd(momentum=0.0))
    cache = 2**24 if num_lanes > 1 else 0
    return LaneEngine(own, spec, lanes, _examples(rows), client=client, rule=Plain(), cache_bytes=cache), spec


def _examples(rows: Rows) -> Examples:
    """The rows with a class each."""
    return Examples(rows, Labels(torch.arange(_ROWS) % 3))


def _drawn(engine: LaneEngine, spec: ParamSpec, client: int) -> Params:
    """Values of the tuned tensors near their start, of one client."""
    params = engine.bank.read(0)
    for name in spec:
        if spec.tensors[name].trained:
            generator = stream(1, name, client)
            params[name] = params[name] + 0.02 * torch.randn(params[name].shape, generator=generator).to(params[name])
    return params


def _deltas(engine: LaneEngine, starts: list[Params]) -> dict[int, Params]:
    jobs = [
        Job(client, torch.tensor(_SIZES[client]), start, repeat(stream(2, client)), stream(3, client), exits=stream(4))
        for client, start in enumerate(starts)
    ]
    return {trained.client_id: trained.delta for trained in engine.train(jobs, 0.01)}


def _logits(engine: LaneEngine, inputs: dict[str, Tensor]) -> Tensor:
    return engine._model.backbone.logits(inputs)


def _unreached(engine: LaneEngine, spec: ParamSpec, inputs: dict[str, Tensor]) -> list[str]:
    """Names of the trained tensors that no answer depends on."""
    module = engine._model.backbone.module
    names = [name for name in spec if spec.tensors[name].trained]
    tensors = [module.get_parameter(name) for name in names]
    engine.lanes.active = 1
    blocks = exit_blocks(module)
    answers = logits_at(blocks, lambda: _logits(engine, inputs), range(1, len(blocks) + 1)) if blocks else {}
    loss = sum(logits.square().sum() for logits in answers.values() or [_logits(engine, inputs)])
    grads = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [name for name, grad in zip(names, grads, strict=True) if grad is None]


@torch.no_grad()
def _check_walk(engine: LaneEngine, inputs: dict[str, Tensor]) -> None:
    """Run block by block, the model answers at its last exit as it does when it is run as a whole."""
    engine.lanes.active = 1
    blocks = exit_blocks(engine._model.backbone.module)
    (walked,) = logits_at(blocks, lambda: _logits(engine, inputs), [len(blocks)]).values()
    _same("block by block the model answers otherwise", walked, _logits(engine, inputs))


@torch.no_grad()
def _check_merge(engine: LaneEngine, method: TuningMethod, params: Params, inputs: dict[str, Tensor]) -> None:
    engine.lanes.active = 1
    engine.bank.load(0, params)
    unmerged = _logits(engine, inputs)
    backbone = engine._model.backbone
    method.merge(backbone)
    _same("the merged model differs", _logits(engine, inputs), unmerged)


class WrongError(Exception):
    """Two results that should be equal are not."""


def _same(what: str, found: Tensor, expected: Tensor, noise: float = 1e-6) -> None:
    if found.shape != expected.shape:
        raise WrongError(f"{what}: shapes {tuple(found.shape)} and {tuple(expected.shape)}")
    scale, worst = float(expected.abs().max()), float((found - expected).abs().max())
    if not worst <= _TOLERANCE * scale + noise:
        raise WrongError(f"{what} by {worst:.2g} of {scale:.2g}")


def _same_params(what: str, found: Params, expected: Params) -> None:
    noise = _NOISE * max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        _same(f"{what}, {name}", found[name], tensor, noise)
