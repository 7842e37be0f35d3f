"""The value head of a run and its optimizer: equal on all ranks, each of which holds all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gspo_cli.algorithm.actor_critic import ValueStats, explained_variance, gae, value_loss, whitened
from gspo_cli.algorithm.objective import aggregate
from gspo_cli.config.choices import AdvantageScale, Credit, GaeSteps
from gspo_cli.config.schema import AlgorithmConfig, RunConfig
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.value_head import ValueHead
from gspo_cli.training.batch import MicroBatch, Sample
from gspo_cli.training.credit import Group, rewards_in_turns
from gspo_cli.training.process_group import ProcessGroup


class Critic:
    """Owns the value head. `step` is called by all ranks after each step of the policy."""

    def __init__(self, policy: Policy, config: RunConfig, ranks: ProcessGroup) -> None:
        self.config, self.ranks = config, ranks
        value, training = config.algorithm.value, config.training
        width = policy.causal_model.config.get_text_config().hidden_size
        self.head = ValueHead(width, value.coefficient, policy.device)
        betas = (training.adam_beta1, training.adam_beta2)
        parameters = self.head.parameters()
        self.optimizer = torch.optim.AdamW(parameters, value.learning_rate, betas, weight_decay=0.0)

    def loss(self, values: Tensor, micro: MicroBatch, denominator: float) -> tuple[Tensor, ValueStats]:
        """A micro-batch's share of the value loss of a step, averaged as the policy's is, and its statistics.
        values (B, T)."""
        assert micro.values is not None
        assert micro.returns is not None
        algorithm, mask = self.config.algorithm, micro.action_mask
        error, stats = value_loss(values, micro.values, micro.returns, mask, algorithm.value.clip)
        return aggregate(error, mask, algorithm.aggregation, denominator, micro.weights), stats

    def step(self, rate: float) -> float:
        """Clip the gradient and take a step at learning rate `rate`. Returns the norm before clipping; where
        it is not finite nothing is changed. Each rank holds the gradient of its share of the loss, times the
        number of ranks."""
        parameters = list(self.head.parameters())
        for parameter in parameters:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parts = self.ranks.gather([grad.cpu()])
            parameter.grad = torch.stack(parts).mean(dim=0).to(parameter.device)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.training.max_grad_norm).item()
        self.optimizer.param_groups[0]["lr"] = rate
        if math.isfinite(norm):
            self.optimizer.step()
        self.drop_gradient()
        return norm

    def drop_gradient(self) -> None:
        """Discard what backward passes added since the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Head and optimizer, for a checkpoint."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])


def with_value_advantages(
    samples: Sequence[Sample],
    groups: Sequence[Group],
    algorithm: AlgorithmConfig,
    values: Sequence[Sequence[float]],
) -> list[Sample]:
    """`samples`, those of `groups`, with an advantage, a value and a return for each token. `values` are
    those of the tokens of each sample under the policy that sampled it."""
    rewards = rewards_in_turns(groups, algorithm)
    done = [
        _estimated(sample, earned, own, algorithm)
        for sample, earned, own in zip(samples, rewards, values, strict=True)
    ]
    if algorithm.advantage_scale is not AdvantageScale.batch_std:
        return done
    trained = [a for s in done for a, m in zip(s.advantages, s.action_mask, strict=True) if m]
    scaled = iter(whitened(trained, algorithm.advantage_std_floor))
    return [replace(s, advantages=[next(scaled) if m else 0.0 for m in s.action_mask]) for s in done]


def _estimated(
    sample: Sample, earned: Sequence[float], values: Sequence[float], algorithm: AlgorithmConfig
) -> Sample:
    """A sample with unscaled advantages. `earned` is the reward of each of its turns."""
    tokens = [place for place, trained in enumerate(sample.action_mask) if trained]
    turns = [sample.trajectory.turn_ids[place] for place in tokens]
    by_turn = algorithm.value.gae_steps is GaeSteps.turn
    # a step is a token, or all tokens of a turn; the state before it is that before its first token
    if not tokens:
        nothing = [0.0] * sample.length
        return replace(sample, advantages=nothing, values=nothing, returns=nothing)
    begins = [i for i in range(len(tokens)) if not by_turn or i == 0 or turns[i] != turns[i - 1]]
    ends = [*begins[1:], len(tokens)]
    rewards = [0.0] * len(begins)
    for step, end in enumerate(ends):
        last_of_turn = end == len(tokens) or turns[end] != turns[end - 1]
        if last_of_turn and 0 <= turns[end - 1] < len(earned):
            rewards[step] = earned[turns[end - 1]]
    if algorithm.credit is Credit.trajectory:
        rewards = [0.0] * (len(begins) - 1) + [sum(earned)]
    at = [values[tokens[i]] for i in begins]
    found = gae(rewards, at, algorithm.discount, algorithm.value.gae_lambda)
    advantages, returns = [0.0] * sample.length, [0.0] * sample.length
    for begin, end, advantage, value in zip(begins, ends, found, at, strict=True):
        for place in tokens[begin:end]:
            advantages[place], returns[place] = advantage, advantage + value
    return replace(sample, advantages=advantages, values=list(values), returns=returns)


def value_metrics(samples: Sequence[Sample]) -> dict[str, float | None]:
    """How well values before the updates predicted the returns of the trained tokens."""
    pairs = [
        (value, target)
        for sample in samples
        for value, target, trained in zip(
            sample.values or (), sample.returns or (), sample.action_mask, strict=True
        )
        if trained
    ]
    values, returns = [value for value, _ in pairs], [target for _, target in pairs]
    count = max(1, len(pairs))
    return {
        "value/mean": sum(values) / count,
        "value/return_mean": sum(returns) / count,
        "value/explained_variance": explained_variance(values, returns),
    }
