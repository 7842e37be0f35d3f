"""What a task is: problems to train on, problems held out, an environment and a reward.

A task is a dataclass named by `task._target_`; its fields are the settings of conf/task/<name>.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gspo_cli.environments.base import Environment, SingleTurn
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.types import Briefing, Demonstration, Problem


@dataclass
class Task:
    """Base of all tasks. `train_problems` and `heldout_problems` never overlap and do not depend on the
    run's seed. `prompt_length` and `answer_length`, in tokens, are what `rollout.max_prompt_length` and
    `rollout.max_completion_length` (of one turn) start from."""

    name: str
    license: str
    source: str
    is_benchmark: bool = False
    system_prompt: str = ""
    prompt_length: int = 256
    answer_length: int = 256

    def train_problems(self) -> Sequence[Problem]:
        """All problems to train on, in a fixed order; the run shuffles them. Raises UserError on unusable
        files."""
        raise NotImplementedError

    def heldout_problems(self) -> Sequence[Problem]:
        """Problems never trained on, in a fixed order; evaluation takes the first `evaluation.problems`."""
        raise NotImplementedError

    def demonstrations(self) -> Sequence[Demonstration]:
        """Solved training problems for the cold start; empty where the task has none."""
        return []

    def briefing(self) -> Briefing:
        """What the agent reads before every conversation: the system prompt, and the tools it may call."""
        return Briefing(self.system_prompt)

    def notes(self) -> Sequence[str]:
        """What a user should know of the problems before a run, such as how many are left out."""
        return []

    def environment(self) -> Environment:
        """A fresh environment for one conversation."""
        return SingleTurn()

    def reward(self) -> RewardFunction:
        """The task's own reward, in [0, 1]."""
        raise NotImplementedError
