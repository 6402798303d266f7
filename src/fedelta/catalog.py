"""Everything that a configuration can choose by name: one registry for each kind, one line for each built-in class.

A new method is one file and one line here; configurations, `fedelta list`, adapters on disk and the contract tests read
this catalog. Classes are named as text and imported on first use.
"""

from __future__ import annotations

from typing import Literal, get_args

from fedelta.settings.loading import load_installed
from fedelta.settings.registry import Kind, Registry


def _find_more() -> None:
    load_installed(ALL)


TUNING_METHODS = Registry(
    Kind("tuning method", "fedelta.tuning.base:TuningMethod", ("apply", "merge")),
    ("tuning.name",),
    # In the order in which combined methods are applied, from the outermost to the innermost; plug-ins come last.
    {
        "full": "fedelta.tuning.full:Full",
        "accumulator": "fedelta.tuning.accumulator:Accumulator",
        "exit-heads": "fedelta.tuning.exit_heads:ExitHeads",
        "head": "fedelta.tuning.head:Head",
        "prompt": "fedelta.tuning.prompt:Prompt",
        "adapter": "fedelta.tuning.adapter:Adapter",
        "parallel": "fedelta.tuning.parallel:Parallel",
        "lora": "fedelta.tuning.lora:Lora",
        "bias": "fedelta.tuning.bias:Bias",
    },
    _find_more,
)
# The class of a combination of tuning methods; plug-ins cannot add one.
COMBINATIONS = Registry(
    Kind("combination of tuning methods", "fedelta.tuning.base:TuningMethod", ()),
    ("tuning.name",),
    {"combined": "fedelta.tuning.combined:Combined"},
)
STRATEGIES = Registry(
    Kind("strategy", "fedelta.strategies.base:Strategy", ("plan", "update")),
    ("strategy.name",),
    {
        "fedavg": "fedelta.strategies.fedavg:FedAvg",
        "fedavgm": "fedelta.strategies.fedavg:FedAvgM",
        "fedadagrad": "fedelta.strategies.fedopt:FedAdagrad",
        "fedadam": "fedelta.strategies.fedopt:FedAdam",
        "fedyogi": "fedelta.strategies.fedopt:FedYogi",
        "fednova": "fedelta.strategies.fednova:FedNova",
        "scaffold": "fedelta.strategies.scaffold:Scaffold",
        "fedlama": "fedelta.strategies.fedlama:FedLama",
        "fedlama-auto": "fedelta.strategies.fedlama_auto:FedLamaAuto",
        "fedluar": "fedelta.strategies.fedluar:FedLuar",
    },
    _find_more,
)
MEANS = Registry(
    Kind("mean", "fedelta.aggregation.base:Aggregation", ("start",)),
    ("strategy.mean.name",),
    {
        "weighted": "fedelta.aggregation.means:Weighted",
        "uniform": "fedelta.aggregation.means:Uniform",
        "median": "fedelta.aggregation.robust:Median",
        "trimmed": "fedelta.aggregation.robust:Trimmed",
        "krum": "fedelta.aggregation.krum:Krum",
        "multi-krum": "fedelta.aggregation.krum:MultiKrum",
        "geometric-median": "fedelta.aggregation.geometric_median:GeometricMedian",
        "clipped": "fedelta.aggregation.means:Clipped",
    },
    _find_more,
)
# How the factors of LoRA's pairs are trained, sent and combined; plug-ins cannot add one.
LOW_RANK = Registry(
    Kind("low-rank aggregation", "fedelta.aggregation.low_rank:LowRank", ()),
    ("aggregation.name",),
    {
        "plain": "fedelta.aggregation.low_rank:Apart",
        "ffa": "fedelta.aggregation.ffa:Ffa",
        "rolora": "fedelta.aggregation.rolora:RoLora",
        "fedsa": "fedelta.aggregation.fedsa:FedSa",
        "hlora": "fedelta.aggregation.hlora:Hlora",
        "flexlora": "fedelta.aggregation.hlora:Hlora",
        "flora": "fedelta.aggregation.flora:Flora",
        "fedex": "fedelta.aggregation.fedex:FedEx",
    },
    _find_more,
)
LOCAL_RULES = Registry(
    Kind("local rule", "fedelta.strategies.base:LocalRule", ("correct",)),
    ("local_rule.name",),
    {"plain": "fedelta.strategies.local:Plain", "fedprox": "fedelta.strategies.local:FedProx"},
    _find_more,
)
CODECS = Registry(
    Kind("codec", "fedelta.codecs.base:Codec", ("pack", "unpack")),
    ("codec.name", "codec.down.name", "codec.up.name"),
    {
        "float32": "fedelta.codecs.cast:Cast",
        "float16": "fedelta.codecs.cast:Cast",
        "bfloat16": "fedelta.codecs.cast:Cast",
        "int8": "fedelta.codecs.quantize:Integers",
        "int4": "fedelta.codecs.quantize:Integers",
        "sign": "fedelta.codecs.sign:Sign",
        "top-k": "fedelta.codecs.sparse:TopK",
        "random-k": "fedelta.codecs.sparse:RandomK",
    },
    _find_more,
)
TASKS = Registry(
    Kind("task", "fedelta.tasks.base:Task", ("losses", "sums")),
    ("task.name",),
    {
        "classification": "fedelta.tasks.classification:Classification",
        "multi-label": "fedelta.tasks.multi_label:MultiLabel",
        "regression": "fedelta.tasks.regression:Regression",
        "tokens": "fedelta.tasks.tokens:Tokens",
        "language": "fedelta.tasks.language:Language",
        "own-loss": "fedelta.tasks.own_loss:OwnLoss",
    },
    _find_more,
)
PARTITIONERS = Registry(
    Kind("partitioner", "fedelta.data.division:Partitioner", ("divide",)),
    ("partition.name",),
    {
        "iid": "fedelta.data.partition:Iid",
        "dirichlet": "fedelta.data.label_skew:Dirichlet",
        "pathological": "fedelta.data.label_skew:Pathological",
        "natural": "fedelta.data.partition:Natural",
        "quantity": "fedelta.data.partition:Quantity",
    },
    _find_more,
)
OPTIMIZERS = Registry(
    Kind("optimizer", "fedelta.engine.optimizers:Optimizer", ("step", "effective_steps")),
    ("client.optimizer.name",),
    {"sgd": "fedelta.engine.optimizers:Sgd", "adamw": "fedelta.engine.optimizers:AdamW"},
    _find_more,
)
SCHEDULES = Registry(
    Kind("schedule", "fedelta.engine.optimizers:Schedule", ("factor",)),
    ("client.schedule.name",),
    {
        "constant": "fedelta.engine.optimizers:Constant",
        "cosine": "fedelta.engine.optimizers:Cosine",
        "linear": "fedelta.engine.optimizers:Linear",
        "step": "fedelta.engine.optimizers:Step",
    },
    _find_more,
)
# What `personalization.tune` can ask for; tuning/scopes.py says which tensors these are.
Scope = Literal["all", "adapters", "token"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# In the order of the sections of a configuration.
ALL = (
    TUNING_METHODS, COMBINATIONS, PARTITIONERS, TASKS, STRATEGIES, MEANS, LOW_RANK, LOCAL_RULES, OPTIMIZERS, SCHEDULES,
    CODECS,
)  # fmt: skip
