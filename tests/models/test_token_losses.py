from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedelta.models import token_losses
from fedelta.models.token_losses import IGNORED, LossHead, next_tokens, row_sums, sums_of_logits


def head(bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 11, bias=bias).requires_grad_(False)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 5, 6, generator=generator)
    targets = torch.randint(11, (3, 5), generator=generator)
    targets[0, 2:] = IGNORED
    targets[2] = IGNORED
    return hidden, targets


def expected(layer: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = functional.cross_entropy(layer(hidden).transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    return losses.sum(1)


def test_each_position_predicts_the_next_token():
    assert next_tokens(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, IGNORED]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 22, 2**20])  # logits at once: fewer than a token has, of two tokens, of all
def test_sums_and_gradients_are_those_of_the_logits_in_chunks_of_any_size(bias: bool, chunk: int, monkeypatch):
    monkeypatch.setattr(token_losses, "_CHUNK_LOGITS", {"cpu": chunk})
    layer, (hidden, targets) = head(bias), batch()
    weights = torch.tensor([2.0, -1.0, 3.0])
    ours, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    sums, reference = row_sums(layer, ours, targets), expected(layer, plain, targets)
    torch.testing.assert_close(sums, reference)
    (sums * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_a_row_without_a_target_has_the_loss_zero_and_no_gradient():
    layer, (hidden, targets) = head(), batch()
    hidden.requires_grad_()
    sums = row_sums(layer, hidden, targets)
    sums.sum().backward()
    assert float(sums.detach()[2]) == 0.0
    assert hidden.grad is not None
    assert not hidden.grad[2].any()


def test_a_tuned_output_embedding_gets_its_gradient():
    layer, (hidden, targets) = head().requires_grad_(), batch()
    (ours,) = torch.autograd.grad(row_sums(layer, hidden, targets).sum(), layer.weight)
    (plain,) = torch.autograd.grad(expected(layer, hidden, targets).sum(), layer.weight)
    torch.testing.assert_close(ours, plain)


def test_sums_of_logits_are_the_same():
    layer, (hidden, targets) = head(), batch()
    torch.testing.assert_close(sums_of_logits(layer(hidden), targets), expected(layer, hidden, targets))


def test_the_stand_in_gives_no_logits():
    layer, (hidden, targets) = head(), batch()
    stand_in = LossHead(layer, targets)
    assert stand_in(hidden).shape == (3, 5, 1)
    torch.testing.assert_close(stand_in.sums_B, expected(layer, hidden, targets))


def test_no_more_logits_than_a_chunk_are_in_memory():
    # 4,096 tokens and a vocabulary of 4,096 would be 64 MiB; a chunk is 2^22 logits, 16 MiB.
    layer = nn.Linear(4, 4096, bias=False).requires_grad_(False)
    hidden, targets = torch.randn(1, 4096, 4), torch.zeros(1, 4096, dtype=torch.int64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> object:
            nonlocal largest
            output = function(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                largest = max(largest, output.numel())
            return output

    with Watch():
        row_sums(layer, hidden, targets)
    assert largest == 2**22
