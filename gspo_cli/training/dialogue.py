"""Conversations with a trained agent outside training, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gspo_cli.config.choices import RewardErrors
from gspo_cli.config.schema import RunConfig
from gspo_cli.rewards.scoring import score_all
from gspo_cli.rollout.conversations import Limits, Start, roll_out
from gspo_cli.rollout.engine import Sampling
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.tasks.base import Environment
from gspo_cli.training.evaluation import EVALUATION_SEED
from gspo_cli.training.session import build_reward, load_trained, set_threads
from gspo_cli.types import Problem, Trajectory


class Dialogues:
    """Holds dialogues with the model at `source` and its adapter; temperature 0 is greedy."""

    def __init__(self, config: RunConfig, source: str, adapter: Path | None, temperature: float) -> None:
        set_threads(config)
        self.config = config
        self.policy = load_trained(config, source, adapter)
        self.engine = TransformersEngine(self.policy, 1)
        longest = config.rollout.max_completion_length
        self.sampling = Sampling(temperature, 1.0, 0, longest, self.policy.chat.stop_ids)

    def run(
        self,
        problem: Problem,
        environment: Callable[[], Environment],
        max_turns: int | None = None,
        tools: bool = True,
    ) -> Trajectory:
        """One conversation about `problem`, to its end. `max_turns` None is the run's own limit; without
        `tools`, no tools are announced to the agent."""
        limits = Limits.of(self.config.rollout, self.engine)
        if max_turns is not None:
            # a person may begin with a longer text than a training prompt, as long as an answer fits
            longest = limits.max_positions - self.sampling.max_new_tokens
            limits = replace(limits, max_turns=max_turns, max_prompt_length=longest)
        start = Start(problem, (0,), EVALUATION_SEED)
        system = self.config.task.system_prompt_and_tools()
        prompts = Prompts(self.policy.chat, replace(system, announced=system.announced and tools))
        [trajectory], _ = roll_out(self.engine, prompts, environment, [start], self.sampling, limits, 0)
        return trajectory

    def run_agent(self, problem: Problem) -> Trajectory:
        """The task's own agent on `problem`, to its end. Raises UserError where it cannot be run."""
        limits = Limits.of(self.config.rollout, self.engine)
        start = Start(problem, (0,), EVALUATION_SEED)
        with self.config.task.host(self.engine, self.policy.chat) as agents:
            [trajectory], _ = agents.roll_out([start], self.sampling, limits, 0)
        return trajectory

    def score(self, trajectory: Trajectory) -> None:
        """Score a conversation by the run's reward."""
        training = self.config.training
        score_all(
            build_reward(self.config),
            [trajectory],
            RewardErrors.exclude,
            limit=training.reward_concurrency,
            timeout=training.reward_timeout,
        )
