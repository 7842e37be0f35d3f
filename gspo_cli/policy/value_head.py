"""A value head: what a conversation is still worth, from the last hidden state of each position."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """One linear output over D hidden units, in fp32, 0 before training. `share` of its gradient reaches the
    model below.

    It is no part of the policy's module: it is as small as one token's embedding, every rank has all of it,
    and no checkpoint of the model contains it."""

    def __init__(self, hidden_size: int, share: float, device: torch.device) -> None:
        super().__init__()
        self.share = share
        self.weight = nn.Parameter(torch.zeros(hidden_size, device=device))
        self.bias = nn.Parameter(torch.zeros((), device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (N,)"""
        hidden = hidden.float()
        read = hidden.detach()
        if self.share:
            read = read + self.share * (hidden - read)  # the same numbers: the difference is 0
        return read @ self.weight + self.bias
