"""Conversations held and judged under a run's settings, divided over its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from gspo_cli.config.schema import RunConfig
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.scoring import score_all
from gspo_cli.rollout.conversations import Limits, Rollout, Start, roll_out
from gspo_cli.rollout.engine import RolloutEngine, Sampling
from gspo_cli.tasks.base import Task
from gspo_cli.training.clock import Clock
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.types import Trajectory


@dataclass(frozen=True)
class Conversations:
    """What holding conversations takes but their starts. `ranks`: each rank holds its share of the groups;
    `generating` makes the weights whole for that long."""

    config: RunConfig
    task: Task
    reward: RewardFunction
    engine: RolloutEngine
    chat: ChatFormat
    ranks: ProcessGroup = field(default_factory=ProcessGroup)
    generating: Callable[[], AbstractContextManager[None]] = nullcontext

    def hold(
        self, groups: Sequence[Sequence[Start]], sampling: Sampling, seed: int, clock: Clock | None = None
    ) -> Rollout:
        """Hold and score the conversations of all `groups`, none of which is split across ranks.

        -> all trajectories in the order of their starts, on every rank."""
        clock = clock or Clock()
        starts = [start for group in self.ranks.share(groups) for start in group]
        with clock.timing("rollout"), self.generating():
            limits = Limits.of(self.config.rollout, self.engine)
            result = roll_out(
                self.engine,
                self.chat,
                self.task.environment,
                starts,
                sampling,
                limits,
                seed,
                self.task.system_prompt_and_tools(),
            )
        with clock.timing("reward"):
            self.judge(result.trajectories)
        if self.ranks.size == 1:
            return result
        with clock.timing("rollout"):  # waiting for the slowest rank counts
            together = self.ranks.gather([result])
        trajectories = [t for part in together for t in part.trajectories]
        turns = [sum(t.num_turns for t in part.trajectories) for part in together]
        mass = sum(part.truncated_mass * count for part, count in zip(together, turns, strict=True))
        return Rollout(trajectories, mass / max(1, sum(turns)))

    def judge(self, trajectories: Sequence[Trajectory]) -> None:
        """Score `trajectories` by the run's reward under its limits."""
        training = self.config.training
        score_all(
            self.reward,
            trajectories,
            training.reward_errors,
            limit=training.reward_concurrency,
            timeout=training.reward_timeout,
        )
