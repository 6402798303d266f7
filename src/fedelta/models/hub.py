"""Builds models in Hugging Face form: from a local directory, a hub name, or a backbone bundled with this package.

Section `[model]` is a `ModelSource`; `build` turns it into a `Backbone`: the module in evaluation mode, the paths of
its parts, and the modality that turns raw examples into its inputs. Evaluation mode switches dropout off, as in
FedPEFT; lanes could not be independent with dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.modalities.base import Modality, ModelFiles
from fedelta.modalities.dialogues import Dialogues
from fedelta.modalities.image import Images
from fedelta.modalities.text import Texts
from fedelta.modalities.words import WORD_STARTS, Words, at_words
from fedelta.models.anatomy import Anatomy, anatomy_of
from fedelta.models.decoders import check_causal, decoder_of
from fedelta.models.heads import HeadClasses, class_names_of
from fedelta.models.layers import is_plain
from fedelta.models.light import without_symbols
from fedelta.models.native import FAMILIES
from fedelta.models.quantised import settle_layers
from fedelta.models.sizes import check_patches, inputs_for, native_size
from fedelta.models.source import ModelSource, locate, modality_of, read_config
from fedelta.models.texts import num_positions, settle_padding, settle_words, with_context
from fedelta.models.usable import check_family, check_inputs, disable_caches
from fedelta.models.vocabulary import Vocabulary, vocabulary_of
from fedelta.models.weights import load_network, quiet_transformers
from fedelta.seeds import derive
from fedelta.tasks.base import Task, reads_dialogues
from fedelta.tasks.classification import Classification

if TYPE_CHECKING:
    from transformers import PretrainedConfig


_NO_EXITS = "it answers for each word, and exits read the first token of a text"


@dataclass(frozen=True)
class Backbone:
    """A model, with the properties of it that fedelta uses.

    Args:
        module: takes keyword tensors; returns outputs [B, ...] (a classifier: logits [B, C]), or an object that has
            them as `.logits`.
        anatomy: where its parts are.
        modality: turns examples into inputs; None for a module that is fed ready inputs.
        extra_inputs: constant keyword arguments of every call.
        batch_norm: treatment of tuned batch norms (`ModelSource`).
        lost_head: why the checkpoint's head is not used, if it has one; else None.
        vocabulary: where a language model gives its words; None for any other model.
        read: computes the outputs of a batch, if calling the module with keywords does not.
        checkpoint: directory or hub name from which the caller has loaded a model that was given as an object; empty
            if unknown.
    """

    module: nn.Module
    anatomy: Anatomy
    modality: Modality | None = None
    extra_inputs: dict[str, bool] = field(default_factory=dict)
    batch_norm: Literal["average", "local", "group"] = "average"
    lost_head: str | None = None
    vocabulary: Vocabulary | None = None
    read: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None
    checkpoint: str = ""

    def __repr__(self) -> str:
        return f"Backbone({type(self.module).__name__})"

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Outputs [B, ...] for a batch of inputs; of a classifier, logits [B, C].

        Where inputs say where words start, the outputs are those of the words (`at_words`). A language model that gets
        `labels` gives the sum of the losses of each row, [B, 1].
        """
        if self.read is not None:
            return self.read(self.module, inputs)
        if self.vocabulary is not None and "labels" in inputs:
            return self.vocabulary.sums(self.module, inputs, self.extra_inputs)
        starts = inputs.get(WORD_STARTS)
        read = inputs if starts is None else {name: value for name, value in inputs.items() if name != WORD_STARTS}
        output = self.module(**read, **self.extra_inputs)
        outputs: Tensor = output if isinstance(output, Tensor) else output.logits
        return outputs if starts is None else at_words(outputs, starts)

    @property
    def longest(self) -> int | None:
        """The largest number of tokens of a row of a language model; None for any other model."""
        return self.modality.limit if isinstance(self.modality, Dialogues) else None

    @property
    def num_parameters(self) -> int:
        """Number of scalars in the module, including modules added by tuning."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def num_bytes(self) -> int:
        """Size of the tensors that a file with the module's state would hold, each counted once."""
        tensors = {id(tensor): tensor for tensor in self.module.state_dict(keep_vars=True).values()}
        return sum(tensor.nbytes for tensor in tensors.values() if isinstance(tensor, Tensor))


def build(
    source: ModelSource,
    class_names: tuple[str, ...],
    *,
    seed: int,
    device: str = "cpu",
    task: Task = Classification(),  # noqa: B008 a frozen value
    logs_head: bool = True,
) -> Backbone:
    """The model that `source` describes, with a head for `task`, in float32 and evaluation mode.

    Args:
        source: what to load.
        class_names: one per class; empty if the task has no classes.
        seed: determines random weights: a new head, or all weights of a model that is not pre-trained.
        device: "meta" makes a model without memory or weights, for counting.
        task: what is predicted.
        logs_head: whether to log changes to the checkpoint's head; False if an adapter replaces the head.

    Raises:
        ModelError: the model cannot be read, does not fit the task, lacks weights, or does not support the image size.
    """
    config = read_config(source)
    check_family(config.model_type)
    head = HeadClasses(class_names_of(config), class_names, logs_head)
    is_decoder = reads_dialogues(task)
    if is_decoder:
        check_causal(config)
    else:
        _set_classes(config, class_names, task)
    config.return_dict = True  # outputs are read by name
    # 224: the size that nearly all image classifiers were trained at.
    size = source.image_size or native_size(config) or 224
    if config.model_type in FAMILIES:
        config.image_size = size
    with torch.random.fork_rng(devices=[]), quiet_transformers(), without_symbols():
        # transformers initialises new weights from the global generator; the fork restores its state afterwards.
        torch.manual_seed(derive(seed, "model"))  # noqa: TID251
        loaded = load_network(source, config, device, task, head)
    module = loaded.module
    _set_norms(module, source)
    module.eval()
    disable_caches(module)
    settle_layers(module)
    anatomy = (decoder_of if is_decoder else anatomy_of)(module, config.model_type)
    check_patches(size, config)
    backbone = Backbone(module, anatomy, batch_norm=source.batch_norm, lost_head=loaded.lost_head)
    backbone = with_vocabulary(backbone) if is_decoder else backbone
    # A model for counting needs no modality, whose files would have to be read or downloaded.
    return backbone if device == "meta" else with_modality(backbone, source, config, size, task)


def _set_classes(config: PretrainedConfig, class_names: tuple[str, ...], task: Task) -> None:
    config.num_labels = task.num_outputs(class_names)
    if class_names:
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}


def with_vocabulary(backbone: Backbone) -> Backbone:
    """A language model; keys and values of earlier calls are only of use to generate."""
    return replace(backbone, vocabulary=vocabulary_of(backbone.module), extra_inputs={"use_cache": False})


def with_modality(backbone: Backbone, source: ModelSource, config: PretrainedConfig, size: int, task: Task) -> Backbone:
    """The backbone with its modality, after a trial on one example."""
    module, (kind, loader) = backbone.module, modality_of(config, task)
    check_inputs(module, kind)
    place = None if source.source is None else locate(source.source)
    positions = num_positions(module) if kind in {Texts, Words} else None
    is_size_known = source.image_size is not None or native_size(config) is not None
    files = ModelFiles(config, place, size, is_size_known, positions)
    if loader.dialogue is not None:
        return replace(backbone, modality=Dialogues.for_model(with_context(files), loader.dialogue))
    modality = kind.for_model(files)
    if isinstance(modality, Texts):
        modality = settle_padding(module, modality)
    if isinstance(modality, Words):
        modality = Words(settle_words(module, modality.texts))
        backbone = replace(backbone, anatomy=replace(backbone.anatomy, no_exits=_NO_EXITS))
    extra_inputs = inputs_for(module, config, size) if kind is Images else {}
    return replace(backbone, modality=modality, extra_inputs=extra_inputs)


def _set_norms(module: nn.Module, source: ModelSource) -> None:
    """Replaces batch norms by group norms with the same weights and biases, if the source asks for it.

    A group has 16 channels, or fewer if 16 does not divide the layer's channels: one of the best settings in Wu and He
    2018 (arXiv 1803.08494), Table 3.
    """
    norms = [path for path, layer in module.named_modules() if is_plain(layer, nn.BatchNorm2d)]
    if source.batch_norm != "average" and not norms:
        raise ModelError(
            f"`model.batch_norm` is {source.batch_norm!r}, but {type(module).__name__} has no batch norm.",
            hint="remove `model.batch_norm`.",
        )
    for path in norms if source.batch_norm == "group" else ():
        layer = module.get_submodule(path)
        channels = layer.get_parameter("weight").shape[0]
        new = nn.GroupNorm(channels // math.gcd(channels, 16), channels)
        new.weight, new.bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, new)
