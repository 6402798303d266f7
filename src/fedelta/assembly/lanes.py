"""How many lanes a run gets, before free memory limits them (fitting.py)."""

from __future__ import annotations

from fedelta.assembly.site import dp_of
from fedelta.config import Config
from fedelta.models.hub import Backbone
from fedelta.tuning.full import Full

# Tokens of a step times features of a token; more is no longer in a core's cache. For LoRA on Llamas of widths 64 and
# 256, with batches of 4 rows of up to 128 tokens, 8 and 2 lanes took the least time (docs/results/language.md).
_CACHED_FEATURES = 2**18


def num_lanes(config: Config, backbone: Backbone, num_clients: int | None = None, places: int | None = None) -> int:
    """Number of lanes for the cohorts of the run.

    Args:
        config: of the run.
        backbone: the model, before a tuning method is applied.
        num_clients: clients that may be in a cohort, if they are not all; a site has only some.
        places: how many packs are trained side by side; None: as many as this machine can.
    """
    dp, runtime, batch_size = dp_of(config.privacy), config.runtime, config.client.batch_size
    clients_per_round = config.strategy.clients_per_round
    if dp is not None and dp.of_examples:
        num = runtime.num_lanes_of_examples(batch_size, model_scalars(config, backbone))
        return with_tokens(config, backbone, num, batch_size=1)
    num = runtime.num_lanes(
        clients_per_round=clients_per_round if num_clients is None else min(clients_per_round, num_clients),
        batch_size=batch_size,
        places=runtime.places if places is None else places,
        model_scalars=model_scalars(config, backbone),
    )
    return with_tokens(config, backbone, num, batch_size=batch_size)


def model_scalars(config: Config, backbone: Backbone) -> int | None:
    """Number of parameters of the model if all are trained, so that every lane has them; None otherwise."""
    return backbone.num_parameters if isinstance(config.tuning, Full) else None


def with_tokens(config: Config, backbone: Backbone, num_lanes: int, *, batch_size: int) -> int:
    """Returns fewer automatic lanes for a language model on a CPU whose tokens would not stay in a core's cache.

    Args:
        config: of the run.
        backbone: the model.
        num_lanes: that would be used otherwise.
        batch_size: rows of each lane in a step.
    """
    runtime, longest = config.runtime, backbone.longest
    if longest is None or backbone.vocabulary is None or runtime.lanes != "auto" or runtime.torch_device() != "cpu":
        return num_lanes
    width = backbone.module.get_submodule(backbone.vocabulary.path).get_parameter("weight").shape[1]
    return max(1, min(num_lanes, _CACHED_FEATURES // (batch_size * longest * width)))
