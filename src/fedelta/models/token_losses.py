"""The loss of a language model on the tokens that it is trained on, without the logits of all tokens.

A stand-in takes the place of the output embedding. It gets the hidden states [B, T, D], keeps those at positions whose
next token is a target, and computes their cross-entropy in chunks, so that logits of a bounded number of tokens are in
memory at once. The embedding is frozen, so the gradient of a loss by its hidden state is known in the forward pass:

    loss = logsumexp(W h) - (W h)[target],    d loss / d h = (p - onehot(target)) W,  p = exp(W h - logsumexp(W h))

Where a family changes the logits behind its output embedding (soft caps, scales), or the embedding is tuned itself, the
model's own logits are used. Which it is, is tried when the model is built (`reads_head`).

Shapes: B rows, T tokens, P positions with a target, D features, V words of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

from fedelta.models.frozen import linear

# Logits in memory at once; on a GPU, products of few rows would leave it idle.
_CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**26}
IGNORED = -100  # as in transformers


def next_tokens(labels_BT: Tensor) -> Tensor:
    """What each position predicts: the labels moved left by one, [B, T]; `IGNORED` where there is no target."""
    return functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)


class LossHead(nn.Module):
    """Stands in for an output embedding, and sums the losses of each row.

    Args:
        head: the output embedding, a linear layer.
        targets_BT: the token that each position predicts, int64; `IGNORED` for none.

    Attributes:
        sums_B: the sum of the losses of each row, float32; None before the call.
    """

    def __init__(self, head: nn.Module, targets_BT: Tensor) -> None:
        super().__init__()
        self.head = head
        self.targets_BT = targets_BT
        self.sums_B: Tensor | None = None

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] to zeros [B, T, 1], in place of logits."""
        self.sums_B = row_sums(self.head, hidden_BTD, self.targets_BT)
        return hidden_BTD.new_zeros(*hidden_BTD.shape[:2], 1)


def row_sums(head: nn.Module, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """The sum of the cross-entropies at the positions of each row that have a target: float32 of shape [B]."""
    weight, bias = head.get_parameter("weight"), dict(head.named_parameters()).get("bias")
    is_target = targets_BT != IGNORED
    hidden_PD, targets_P = hidden_BTD[is_target], targets_BT[is_target]
    if weight.requires_grad and torch.is_grad_enabled():
        losses_P = functional.cross_entropy(
            functional.linear(hidden_PD, weight, bias).float(), targets_P, reduction="none"
        )
    else:
        losses_P = _TokenLosses.apply(hidden_PD, weight, bias, targets_P)  # type: ignore[no-untyped-call]  # PyTorch's
    row_of_P = is_target.nonzero()[:, 0]
    return losses_P.new_zeros(len(targets_BT)).index_add(0, row_of_P, losses_P)


def sums_of_logits(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """As `row_sums`, from the logits of the model itself."""
    is_target = targets_BT != IGNORED
    losses_P = functional.cross_entropy(logits_BTV[is_target].float(), targets_BT[is_target], reduction="none")
    return losses_P.new_zeros(len(targets_BT)).index_add(0, is_target.nonzero()[:, 0], losses_P)


class _TokenLosses(Function):
    """The cross-entropy of each position with a frozen output embedding: [P, D] to float32 [P]."""

    # Any: a context has the attributes that a function gives it.
    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_P: Tensor) -> Tensor:
        losses_P = hidden_PD.new_empty(len(hidden_PD), dtype=torch.float32)
        of_hidden_PD = torch.empty_like(hidden_PD) if ctx.needs_input_grad[0] else None
        size = max(1, _CHUNK_LOGITS.get(hidden_PD.device.type, 2**22) // len(weight_VD))
        dtype = weight_VD.dtype
        with torch.autocast(hidden_PD.device.type, enabled=False):
            for start in range(0, len(hidden_PD), size):
                part = slice(start, start + size)
                logits_CV = linear(hidden_PD[part].to(dtype), weight_VD, bias_V).float()
                target_C1 = targets_P[part].unsqueeze(1)
                total_C1 = logits_CV.logsumexp(1, keepdim=True)
                losses_P[part] = (total_C1 - logits_CV.gather(1, target_C1)).squeeze(1)
                if of_hidden_PD is not None:
                    of_logits_CV = logits_CV.sub_(total_C1).exp_()
                    of_logits_CV.scatter_add_(1, target_C1, -torch.ones_like(total_C1))
                    of_hidden_PD[part] = linear(of_logits_CV.to(dtype), weight_VD.T)
        ctx.save_for_backward(of_hidden_PD)
        return losses_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        (of_hidden_PD,) = ctx.saved_tensors
        return (of_hidden_PD * grad_P.unsqueeze(1)).to(of_hidden_PD.dtype), None, None, None
