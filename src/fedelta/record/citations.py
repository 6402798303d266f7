"""The papers that a run is based on: `citations.bib`, made from its resolved configuration.

To cite a paper for a new method, add its entry to papers.bib and one row to `WORKS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ALWAYS = ("fedelta", "paszke2019pytorch", "wolf2020transformers", "lhoest2021datasets")

_ACCOUNTING = ("mironov2017renyi", "koskela2020computing", "doroshenko2022connect")

# Key and value in the configuration, and the papers they are based on. "*" is any value except false and 0.
WORKS: dict[tuple[str, object], tuple[str, ...]] = {
    ("model.source", "bundled:vit-micro"): (
        "dosovitskiy2021image",
        "kataoka2020pretraining",
        "nakashima2022can",
    ),
    ("model.source", "bundled:resnet-micro"): (
        "he2016deep",
        "rebuffi2018efficient",
        "kataoka2020pretraining",
        "nakashima2022can",
    ),
    ("model.architecture.model_type", "vit"): ("dosovitskiy2021image",),
    ("model.architecture.model_type", "resnet20"): ("he2016deep",),
    ("model.architecture.model_type", "resnet26"): ("he2016deep", "rebuffi2018efficient"),
    ("model.architecture.model_type", "wrn28-10"): ("zagoruyko2016wide",),
    ("model.architecture.model_type", "femnist-cnn"): ("caldas2018leaf",),
    ("model.batch_norm", "local"): ("li2021fedbn",),
    ("model.batch_norm", "group"): ("wu2018group",),
    ("tuning.name", "head"): ("sun2022fedpeft",),
    ("tuning.name", "bias"): ("sun2022fedpeft", "benzaken2022bitfit"),
    ("tuning.name", "lora"): ("sun2022fedpeft", "hu2022lora"),
    ("tuning.name", "adapter"): ("sun2022fedpeft", "houlsby2019parameter"),
    ("tuning.name", "prompt"): ("sun2022fedpeft", "jia2022visual"),
    ("tuning.name", "parallel"): ("elvebakken2023adaptive", "rebuffi2018efficient"),
    ("tuning.name", "accumulator"): ("liu2022federated",),
    ("tuning.name", "exit-heads"): ("liu2022federated",),
    ("tuning.placement", "parallel"): ("chen2022adaptformer",),
    ("tuning.use_rslora", True): ("kalajdzievski2023rank",),
    ("data.source", "digits"): ("alpaydin1998optical", "pedregosa2011scikit"),
    ("partition.name", "*"): ("beutel2020flower",),
    ("partition.name", "dirichlet"): ("hsu2019measuring", "yurochkin2019bayesian", "li2022silos"),
    ("partition.name", "pathological"): ("mcmahan2017communication", "li2022silos"),
    ("partition.name", "quantity"): ("li2022silos",),
    ("augmentation.crop_padding", "*"): ("he2016deep",),
    ("augmentation.flip", True): ("he2016deep",),
    ("augmentation.resized_crop", "*"): ("szegedy2015going",),
    ("exits.train", "sum"): ("lee2024recurrent",),
    ("exits.train", "distill"): ("lee2024recurrent",),
    ("strategy.name", "fedavg"): ("mcmahan2017communication",),
    ("strategy.name", "fedavgm"): ("hsu2019measuring",),
    ("strategy.name", "fedadagrad"): ("reddi2021adaptive",),
    ("strategy.name", "fedadam"): ("reddi2021adaptive",),
    ("strategy.name", "fedyogi"): ("reddi2021adaptive",),
    ("strategy.name", "fednova"): ("wang2020tackling",),
    ("strategy.name", "scaffold"): ("karimireddy2020scaffold",),
    ("strategy.name", "fedlama"): ("lee2023layer",),
    ("strategy.name", "fedlama-auto"): ("lee2023layer",),
    ("strategy.name", "fedluar"): ("kim2025layer",),
    ("strategy.mean.name", "median"): ("yin2018byzantine",),
    ("strategy.mean.name", "trimmed"): ("yin2018byzantine",),
    ("strategy.mean.name", "krum"): ("blanchard2017machine",),
    ("strategy.mean.name", "multi-krum"): ("blanchard2017machine",),
    ("strategy.mean.name", "geometric-median"): ("pillutla2022robust",),
    ("strategy.mean.name", "clipped"): ("sun2019can",),
    ("aggregation.name", "ffa"): ("sun2024improving",),
    ("aggregation.name", "rolora"): ("chen2025robust",),
    ("aggregation.name", "fedsa"): ("guo2024selective",),
    ("aggregation.name", "hlora"): ("liu2025hlora", "bai2024federated"),
    ("aggregation.name", "flexlora"): ("bai2024federated",),
    ("aggregation.name", "flora"): ("wang2024flora",),
    ("aggregation.name", "fedex"): ("singhal2024fedex",),
    ("local_rule.name", "fedprox"): ("li2020federated",),
    ("privacy.unit", "example"): (*_ACCOUNTING, "abadi2016deep"),
    ("privacy.unit", "client"): (*_ACCOUNTING, "mcmahan2018learning"),
    ("privacy.unit", "local"): (*_ACCOUNTING,),
    ("privacy.clipping", "adaptive"): ("andrew2021differentially",),
    ("privacy.mechanism", "banded"): ("kairouz2021practical", "choquette2023amplified"),
    ("privacy.mechanism", "fedpeft-code"): ("sun2022fedpeft",),
    ("privacy.mechanism", "fedpeft-text"): ("sun2022fedpeft",),
    ("client.optimizer.name", "adamw"): ("loshchilov2019decoupled",),
    ("client.schedule.name", "cosine"): ("loshchilov2017sgdr",),
}


def citations(config: Mapping[str, object]) -> str:
    """The BibTeX entries for a run, each once, in the order of papers.bib.

    Args:
        config: the resolved configuration, sections as nested mappings. Settings without a paper, or that fedelta
            does not know (such as a model by its directory), are left out.
    """
    cited = set(ALWAYS)
    tuning = config.get("tuning")
    methods = tuning.get("methods", [tuning]) if isinstance(tuning, Mapping) else [None]
    for method in methods:
        for (path, value), keys in WORKS.items():
            setting = _at({**config, "tuning": method}, path)
            # False and 0 switch a method off.
            if setting and value in {"*", setting}:
                cited.update(keys)
    return "\n\n".join(entry for key, entry in entries().items() if key in cited) + "\n"


def entries() -> dict[str, str]:
    """The entries of papers.bib by key."""
    text = Path(__file__).with_name("papers.bib").read_text(encoding="utf-8")
    texts = (entry.strip() for entry in re.split(r"\n(?=@)", text))
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in texts}


def _at(config: Mapping[str, object], path: str) -> object:
    value: object = config
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value if isinstance(value, str | bool | int | float) else None
