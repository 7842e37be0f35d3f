"""An iteration's groups: problems drawn, answers sampled and judged, advantages assigned.

Shapes: P prompts, G answers per prompt, K turns of the longest conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gspo_cli.algorithm.advantages import group_advantages, has_spread, rewards_to_go, turn_advantages
from gspo_cli.config.choices import Credit, Truncated
from gspo_cli.config.schema import RunConfig
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.conversations import Start
from gspo_cli.rollout.engine import Sampling
from gspo_cli.training.batch import Sample
from gspo_cli.training.clock import Clock
from gspo_cli.training.conversing import Conversations
from gspo_cli.training.problem_order import ProblemOrder
from gspo_cli.training.update import Updater
from gspo_cli.types import FinishReason, Trajectory

Group = list[Trajectory]


@dataclass(frozen=True)
class Sampled:
    """`groups` to train on, `everything` that was sampled, problems drawn, and metrics of the sampling."""

    groups: list[Group]
    everything: list[Trajectory]
    problems_drawn: int
    metrics: dict[str, Any]


class GroupSampler:
    """Samples `prompts_per_iteration` groups of `num_generations` answers with the policy's current
    weights."""

    def __init__(self, config: RunConfig, conversations: Conversations, order: ProblemOrder) -> None:
        self.config, self.conversations, self.order = config, conversations, order

    def sample(self, iteration: int, cursor: int, clock: Clock) -> Sampled:
        """Draw problems from `cursor` on. With dynamic sampling, draw more until enough groups have
        different rewards or the rounds are used up; groups that teach nothing then fill the rest, so that
        the step keeps its size."""
        algorithm, wanted = self.config.algorithm, self.config.training.prompts_per_iteration
        rounds = algorithm.dynamic_sampling_max_rounds if algorithm.dynamic_sampling else 1
        informative: list[Group] = []
        flat: list[Group] = []
        masses: list[float] = []
        while len(masses) < rounds and len(informative) < wanted:
            drawn = len(informative) + len(flat)
            groups, mass = self._round(iteration, cursor, drawn, wanted - len(informative), clock)
            spread = self._spread(groups).tolist()
            informative += [group for group, differs in zip(groups, spread, strict=True) if differs]
            flat += [group for group, differs in zip(groups, spread, strict=True) if not differs]
            masses.append(mass)
        everything = informative + flat
        metrics = {
            "frac_reward_zero_std": len(flat) / len(everything),
            "sampling/rounds": len(masses),
            "sampling/truncated_mass": sum(masses) / len(masses),
        }
        return Sampled(everything[:wanted], [t for g in everything for t in g], len(everything), metrics)

    def samples(self, groups: Sequence[Group], updater: Updater) -> list[Sample]:
        """Training samples of all answers, group after group, with their advantages."""
        rewards, valid = self._rewards(groups)  # (P, G)
        samples = [Sample(self._trainable(t), [0.0]) for group in groups for t in group]
        algorithm = self.config.algorithm
        if algorithm.kl_in_reward:
            rewards = rewards - algorithm.beta * torch.tensor(updater.reward_kl(samples)).reshape(
                rewards.shape
            )
        judged = (algorithm.advantage_baseline, algorithm.advantage_scale)
        if algorithm.credit is Credit.turn:
            to_go, taken = self._turns(groups, rewards)
            advantages = turn_advantages(to_go, taken & valid[:, :, None], *judged).flatten(end_dim=1)
            for sample, turns in zip(samples, advantages.tolist(), strict=True):
                # the turn at which an environment failed counts as none, and has no place of its own
                sample.advantages = [
                    turns[i] if 0 <= i < len(turns) else 0.0 for i in sample.trajectory.turn_ids
                ]
            return samples
        advantages = group_advantages(rewards, valid, *judged)
        for sample, advantage in zip(samples, advantages.flatten().tolist(), strict=True):
            sample.advantages = [advantage]
        return samples

    def _spread(self, groups: Sequence[Group]) -> Tensor:
        """Which groups teach something: their rewards differ, or those to go at some turn. -> (P,)"""
        rewards, valid = self._rewards(groups)
        spread = has_spread(rewards, valid)
        if self.config.algorithm.credit is Credit.turn:
            to_go, taken = self._turns(groups, rewards)
            for turn in range(to_go.shape[2]):
                spread |= has_spread(to_go[:, :, turn], taken[:, :, turn] & valid)
        return spread

    def _turns(self, groups: Sequence[Group], rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Reward to go from each turn on, and which turns were taken. rewards (P, G) -> two (P, G, K).

        What the reward that is trained on differs by from the sum of the turns (a penalty, the KL term)
        belongs to the last turn."""
        longest = max(1, max(t.num_turns for group in groups for t in group))
        earned = torch.zeros(*rewards.shape, longest, dtype=torch.float64)
        taken = torch.zeros(*rewards.shape, longest, dtype=torch.bool)
        for p, group in enumerate(groups):
            for g, trajectory in enumerate(group):
                turns = trajectory.num_turns
                if turns == 0 or trajectory.reward is None:
                    continue
                earned[p, g, :turns] = torch.tensor(trajectory.turn_rewards, dtype=torch.float64)
                earned[p, g, turns - 1] += rewards[p, g] - sum(trajectory.turn_rewards)
                taken[p, g, :turns] = True
        return rewards_to_go(earned, self.config.algorithm.discount), taken

    def _round(
        self, iteration: int, cursor: int, drawn: int, count: int, clock: Clock
    ) -> tuple[list[Group], float]:
        config, size = self.config, self.config.training.num_generations
        starts = [
            [
                Start(
                    problem, (iteration, place, g), derived_seed(config.seed, "environment", iteration, place)
                )
                for g in range(size)
            ]
            for place, problem in enumerate(self.order.take(cursor + drawn, count), start=drawn)
        ]
        rollout = config.rollout
        sampling = Sampling(
            rollout.temperature,
            rollout.top_p,
            rollout.top_k,
            config.max_completion_length(iteration),
            self.conversations.chat.stop_ids,
        )
        result = self.conversations.hold(starts, sampling, config.seed, clock)
        flat = result.trajectories
        return [flat[i : i + size] for i in range(0, len(flat), size)], result.truncated_mass

    def _rewards(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """Rewards as trained on, and which count. -> two (P, G)"""
        algorithm = self.config.algorithm
        penalty = (
            algorithm.truncation_penalty if algorithm.truncated_completions is Truncated.penalise else 0.0
        )
        rewards = [
            [(t.reward or 0.0) - penalty * (t.finish_reason is not FinishReason.stop) for t in group]
            for group in groups
        ]
        valid = [[t.reward is not None for t in group] for group in groups]
        return torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid)

    def _trainable(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory, without trained tokens where it was excluded, or cut and the setting says to mask
        it."""
        masked = self.config.algorithm.truncated_completions is Truncated.mask
        cut = masked and trajectory.finish_reason is not FinishReason.stop
        if trajectory.excluded is None and not cut:
            return trajectory
        return replace(trajectory, action_mask=[False] * len(trajectory.token_ids))
