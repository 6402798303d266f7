"""Which base model it is, by what is not tuned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.tuning.full import Full
from fedelta.tuning.identity import identity
from fedelta.tuning.lanes import Lanes


class Tied(nn.Module):
    """Two tables of one tensor, as an encoder and its decoder have them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.classifier = nn.Embedding(5, 3), nn.Embedding(5, 3), nn.Linear(3, 2)
        self.decoder.weight = self.encoder.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.classifier((self.encoder(input_ids) + self.decoder(input_ids)).mean(1))


def test_a_tied_tensor_that_is_tuned_is_no_part_of_the_base_under_any_of_its_names():
    backbone = Backbone(Tied(), Anatomy(("classifier",)))
    spec = Full().apply(backbone, Lanes(1), torch.Generator())
    recorded = identity(backbone, spec.names, None)
    with torch.no_grad():
        backbone.module.get_parameter("encoder.weight").add_(1)
    assert identity(backbone, spec.names, None) == recorded
