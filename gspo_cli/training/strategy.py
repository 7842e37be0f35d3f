"""How gradients become new weights: here in one process; `gspo_cli.training.zero` does it over many."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gspo_cli.config.schema import RunConfig
from gspo_cli.policy.optimizers import make_optimizer
from gspo_cli.policy.policy import Policy
from gspo_cli.training.process_group import ProcessGroup

Scores = tuple[Tensor, ...]  # log-probabilities, entropy, and values where a value head was given
OptimizerState = dict[str, Any]  # of torch's AdamW over `policy.trainable()`, gathered, for every strategy


class Strategy(Protocol):
    """Owns the optimizer. All calls but `ranks` are made by all ranks in the same order."""

    ranks: ProcessGroup
    collective: bool  # a step needs a backward pass on every rank, and no rank can leave it in the middle

    def forward(self, token_ids: Tensor, action_mask: Tensor, temperature: float, **options: Any) -> Scores:
        """`Policy.forward`, with weights gathered where they are sharded."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's share of the loss; shares add up over micro-batches and ranks."""

    def drop_gradient(self) -> None:
        """Discard what `backward` added since the last step."""

    def step(self, rate: float) -> float:
        """Clip the gradient and take a step at learning rate `rate`. Returns the norm before clipping.

        Where it is not finite nothing is changed: such a gradient is never applied."""

    def generating(self) -> AbstractContextManager[None]:
        """A block in which this rank may run the model independently of others, without gradient."""

    def save(self, folder: Path) -> OptimizerState:
        """Write the model to `folder` (on the first rank); returns the optimizer's state (there)."""

    def restore_optimizer(self, state: OptimizerState) -> None:
        """Continue from a state that `save` returned under any strategy and number of ranks."""

    def restore_weights(self, folder: Path) -> None:
        """Replace the present weights by those that `save` wrote."""


class OneProcess:
    """`Strategy` of a single process."""

    collective = False

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        self.policy, self.ranks = policy, ProcessGroup()
        self.max_grad_norm = config.training.max_grad_norm
        self.optimizer = make_optimizer(policy.trainable(), config)

    def forward(self, token_ids: Tensor, action_mask: Tensor, temperature: float, **options: Any) -> Scores:
        """See `Policy.forward`."""
        return self.policy(token_ids, action_mask, temperature, **options)

    def backward(self, loss: Tensor) -> None:
        """Plain autograd."""
        loss.backward()

    def drop_gradient(self) -> None:
        """Also after an error in the middle of `backward`."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, rate: float) -> float:
        """See `Strategy`."""
        parameters = self.policy.trainable()
        for parameter in parameters:
            if parameter.grad is None:  # nothing needed compute: take the step of a zero gradient
                parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm).item()
        if math.isfinite(norm):
            self.optimizer.step()
        self.drop_gradient()
        return norm

    def generating(self) -> AbstractContextManager[None]:
        """Nothing to prepare."""
        return nullcontext()

    def save(self, folder: Path) -> OptimizerState:
        """See `Strategy`."""
        self.policy.save(folder)
        return self.optimizer.state_dict()

    def restore_optimizer(self, state: OptimizerState) -> None:
        """See `Strategy`."""
        # how a step is computed is not part of the state, and decides where its counters go
        own = [{"fused": group["fused"]} if "fused" in group else {} for group in self.optimizer.param_groups]
        groups = [saved | mine for saved, mine in zip(state["param_groups"], own, strict=True)]
        self.optimizer.load_state_dict({**state, "param_groups": groups})

    def restore_weights(self, folder: Path) -> None:
        """See `Strategy`."""
        self.policy.load_weights(folder)
