"""Federated fine-tuning of pre-trained models that sends almost nothing over the network.

Everything public is here; names are imported on first use, so that `import fedelta` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedelta.aggregation.base import Aggregation as Aggregation
    from fedelta.aggregation.fedex import FedEx as FedEx
    from fedelta.aggregation.fedsa import FedSa as FedSa
    from fedelta.aggregation.ffa import Ffa as Ffa
    from fedelta.aggregation.flora import Flora as Flora
    from fedelta.aggregation.geometric_median import GeometricMedian as GeometricMedian
    from fedelta.aggregation.hlora import Hlora as Hlora
    from fedelta.aggregation.krum import Krum as Krum
    from fedelta.aggregation.krum import MultiKrum as MultiKrum
    from fedelta.aggregation.low_rank import Apart as Apart
    from fedelta.aggregation.low_rank import LowRank as LowRank
    from fedelta.aggregation.means import Clipped as Clipped
    from fedelta.aggregation.means import Uniform as Uniform
    from fedelta.aggregation.means import Weighted as Weighted
    from fedelta.aggregation.robust import Median as Median
    from fedelta.aggregation.robust import Trimmed as Trimmed
    from fedelta.aggregation.rolora import RoLora as RoLora
    from fedelta.assembly.objects import Objects as Objects
    from fedelta.codecs.base import Codec as Codec
    from fedelta.codecs.cast import Cast as Cast
    from fedelta.codecs.channel import Channel as Channel
    from fedelta.codecs.quantize import Integers as Integers
    from fedelta.codecs.sign import Sign as Sign
    from fedelta.codecs.sparse import RandomK as RandomK
    from fedelta.codecs.sparse import TopK as TopK
    from fedelta.comparison.compare import compare as compare
    from fedelta.comparison.result import Comparison as Comparison
    from fedelta.config import Config as Config
    from fedelta.config import load_config as load_config
    from fedelta.data.augmentation import Augmentation as Augmentation
    from fedelta.data.batches import Examples as Examples
    from fedelta.data.batches import FederatedData as FederatedData
    from fedelta.data.division import Partitioner as Partitioner
    from fedelta.data.label_skew import Dirichlet as Dirichlet
    from fedelta.data.label_skew import Pathological as Pathological
    from fedelta.data.partition import Iid as Iid
    from fedelta.data.partition import Natural as Natural
    from fedelta.data.partition import Quantity as Quantity
    from fedelta.data.sources import DataSource as DataSource
    from fedelta.engine.exits import ExitSettings as ExitSettings
    from fedelta.engine.optimizers import AdamW as AdamW
    from fedelta.engine.optimizers import Constant as Constant
    from fedelta.engine.optimizers import Cosine as Cosine
    from fedelta.engine.optimizers import Linear as Linear
    from fedelta.engine.optimizers import Optimizer as Optimizer
    from fedelta.engine.optimizers import Schedule as Schedule
    from fedelta.engine.optimizers import Sgd as Sgd
    from fedelta.engine.optimizers import Step as Step
    from fedelta.engine.work import ClientSettings as ClientSettings
    from fedelta.errors import FedeltaError as FedeltaError
    from fedelta.errors import InputError as InputError
    from fedelta.errors import PluginError as PluginError
    from fedelta.errors import RoundError as RoundError
    from fedelta.experiment import Experiment as Experiment
    from fedelta.experiment import Result as Result
    from fedelta.federating import federate as federate
    from fedelta.federation.held_out import Personalization as Personalization
    from fedelta.inference.predict import Predictor as Predictor
    from fedelta.modalities.settings import AudioSettings as AudioSettings
    from fedelta.models.anatomy import Anatomy as Anatomy
    from fedelta.models.bundles import bundled_path as bundled_path
    from fedelta.models.hub import Backbone as Backbone
    from fedelta.models.native import register_networks as register_networks
    from fedelta.models.source import ModelSource as ModelSource
    from fedelta.params import ParamSpec as ParamSpec
    from fedelta.params import TensorSpec as TensorSpec
    from fedelta.personalization import personalize as personalize
    from fedelta.plugins import load_plugin as load_plugin
    from fedelta.plugins import register as register
    from fedelta.privacy.settings import Privacy as Privacy
    from fedelta.report.writing import write_report as write_report
    from fedelta.runtimes.remote.settings import Deployment as Deployment
    from fedelta.runtimes.settings import RuntimeSettings as RuntimeSettings
    from fedelta.runtimes.stability import Stability as Stability
    from fedelta.settings.base import Settings as Settings
    from fedelta.strategies.base import LocalRule as LocalRule
    from fedelta.strategies.base import Strategy as Strategy
    from fedelta.strategies.fedavg import FedAvg as FedAvg
    from fedelta.strategies.fedavg import FedAvgM as FedAvgM
    from fedelta.strategies.fedlama import FedLama as FedLama
    from fedelta.strategies.fedlama_auto import FedLamaAuto as FedLamaAuto
    from fedelta.strategies.fedluar import FedLuar as FedLuar
    from fedelta.strategies.fednova import FedNova as FedNova
    from fedelta.strategies.fedopt import FedAdagrad as FedAdagrad
    from fedelta.strategies.fedopt import FedAdam as FedAdam
    from fedelta.strategies.fedopt import FedYogi as FedYogi
    from fedelta.strategies.local import FedProx as FedProx
    from fedelta.strategies.local import Plain as Plain
    from fedelta.strategies.scaffold import Scaffold as Scaffold
    from fedelta.tasks.base import Task as Task
    from fedelta.tasks.classification import Classification as Classification
    from fedelta.tasks.classification import Prediction as Prediction
    from fedelta.tasks.labels import Labels as Labels
    from fedelta.tasks.language import Language as Language
    from fedelta.tasks.multi_label import MultiLabel as MultiLabel
    from fedelta.tasks.own_loss import OwnLoss as OwnLoss
    from fedelta.tasks.regression import Regression as Regression
    from fedelta.tasks.tokens import Tokens as Tokens
    from fedelta.tracking.settings import Tracking as Tracking
    from fedelta.tuning.accumulator import Accumulator as Accumulator
    from fedelta.tuning.adapter import Adapter as Adapter
    from fedelta.tuning.base import TuningMethod as TuningMethod
    from fedelta.tuning.bias import Bias as Bias
    from fedelta.tuning.combined import Combined as Combined
    from fedelta.tuning.exit_heads import ExitHeads as ExitHeads
    from fedelta.tuning.full import Full as Full
    from fedelta.tuning.head import Head as Head
    from fedelta.tuning.lanes import Lanes as Lanes
    from fedelta.tuning.lora import Lora as Lora
    from fedelta.tuning.parallel import Parallel as Parallel
    from fedelta.tuning.prompt import Prompt as Prompt
    from fedelta.tuning.ranks import RankByClient as RankByClient

__version__ = "0.1.0"

_MODULES = {
    "aggregation.base": ("Aggregation",),
    "aggregation.fedex": ("FedEx",),
    "aggregation.fedsa": ("FedSa",),
    "aggregation.ffa": ("Ffa",),
    "aggregation.flora": ("Flora",),
    "aggregation.geometric_median": ("GeometricMedian",),
    "aggregation.hlora": ("Hlora",),
    "aggregation.krum": ("Krum", "MultiKrum"),
    "aggregation.low_rank": ("Apart", "LowRank"),
    "aggregation.means": ("Clipped", "Uniform", "Weighted"),
    "aggregation.robust": ("Median", "Trimmed"),
    "aggregation.rolora": ("RoLora",),
    "assembly.objects": ("Objects",),
    "codecs.base": ("Codec",),
    "codecs.cast": ("Cast",),
    "codecs.channel": ("Channel",),
    "codecs.quantize": ("Integers",),
    "codecs.sign": ("Sign",),
    "codecs.sparse": ("RandomK", "TopK"),
    "comparison.compare": ("compare",),
    "comparison.result": ("Comparison",),
    "config": ("Config", "load_config"),
    "data.augmentation": ("Augmentation",),
    "data.batches": ("Examples", "FederatedData"),
    "data.division": ("Partitioner",),
    "data.label_skew": ("Dirichlet", "Pathological"),
    "data.partition": ("Iid", "Natural", "Quantity"),
    "data.sources": ("DataSource",),
    "engine.exits": ("ExitSettings",),
    "engine.optimizers": ("AdamW", "Constant", "Cosine", "Linear", "Optimizer", "Schedule", "Sgd", "Step"),
    "engine.work": ("ClientSettings",),
    "errors": ("FedeltaError", "InputError", "PluginError", "RoundError"),
    "experiment": ("Experiment", "Result"),
    "federating": ("federate",),
    "federation.held_out": ("Personalization",),
    "inference.predict": ("Predictor",),
    "modalities.settings": ("AudioSettings",),
    "models.anatomy": ("Anatomy",),
    "models.bundles": ("bundled_path",),
    "models.hub": ("Backbone",),
    "models.native": ("register_networks",),
    "models.source": ("ModelSource",),
    "params": ("ParamSpec", "TensorSpec"),
    "personalization": ("personalize",),
    "plugins": ("load_plugin", "register"),
    "privacy.settings": ("Privacy",),
    "report.writing": ("write_report",),
    "runtimes.remote.settings": ("Deployment",),
    "runtimes.settings": ("RuntimeSettings",),
    "runtimes.stability": ("Stability",),
    "settings.base": ("Settings",),
    "strategies.base": ("LocalRule", "Strategy"),
    "strategies.fedavg": ("FedAvg", "FedAvgM"),
    "strategies.fedlama": ("FedLama",),
    "strategies.fedlama_auto": ("FedLamaAuto",),
    "strategies.fedluar": ("FedLuar",),
    "strategies.fednova": ("FedNova",),
    "strategies.fedopt": ("FedAdagrad", "FedAdam", "FedYogi"),
    "strategies.local": ("FedProx", "Plain"),
    "strategies.scaffold": ("Scaffold",),
    "tasks.base": ("Task",),
    "tasks.classification": ("Classification", "Prediction"),
    "tasks.labels": ("Labels",),
    "tasks.language": ("Language",),
    "tasks.multi_label": ("MultiLabel",),
    "tasks.own_loss": ("OwnLoss",),
    "tasks.regression": ("Regression",),
    "tasks.tokens": ("Tokens",),
    "tracking.settings": ("Tracking",),
    "tuning.accumulator": ("Accumulator",),
    "tuning.adapter": ("Adapter",),
    "tuning.base": ("TuningMethod",),
    "tuning.bias": ("Bias",),
    "tuning.combined": ("Combined",),
    "tuning.exit_heads": ("ExitHeads",),
    "tuning.full": ("Full",),
    "tuning.head": ("Head",),
    "tuning.lanes": ("Lanes",),
    "tuning.lora": ("Lora",),
    "tuning.parallel": ("Parallel",),
    "tuning.prompt": ("Prompt",),
    "tuning.ranks": ("RankByClient",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)  # noqa: PLE0605 the names are literals above


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedelta' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"fedelta.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
