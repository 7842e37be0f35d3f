"""What tasks have in common whose agent talks to the policy by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, ClassVar

from gspo_cli.agents.running import Agent
from gspo_cli.config.checks import require, require_positive
from gspo_cli.config.choices import AgentSchedule
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.composition import WeightedReward
from gspo_cli.rewards.returned import ReturnedReward
from gspo_cli.tasks.base import Environment, Task

if TYPE_CHECKING:
    from gspo_cli.agents.host import AgentHost
    from gspo_cli.policy.chat import ChatFormat
    from gspo_cli.rollout.engine import RolloutEngine


@dataclass
class AgentBase(Task):
    """Base of tasks with an agent of its own, which subclasses make in `make_agent`. What it returns is its
    reward."""

    runs_agent: ClassVar[bool] = True

    return_share: float | None = None
    """Weight of what the agent returns, where something else scores too, which has the rest. null is 0 with
    it and 1 without; 0 to 1."""
    schedule: AgentSchedule = AgentSchedule.lockstep
    """When the policy generates."""
    concurrency: int = 256
    """Conversations that run at once, each with a thread or a process of its own, unless the function is
    async; above 0."""

    def __post_init__(self) -> None:
        require_positive("task", self, "concurrency")
        share = self.return_share
        require(
            share is None or 0 <= share <= 1,
            f"task.return_share={share}: must be from 0 to 1; give such as 0.5",
        )

    @property
    def single_turn(self) -> bool:
        """False: how many answers an agent asks for is its own affair."""
        return False

    def environment(self) -> Environment:
        """Raises UserError: there is none."""
        raise UserError(f"task={self.name}: has no environment; its agent talks to the policy itself")

    def reward(self) -> RewardFunction:
        """What the agent returns."""
        return self.scored_by(None)

    def scored_by(self, given: RewardFunction | None) -> RewardFunction:
        """`given`, what the agent returned, or both, weighted. Raises UserError where there is nothing to
        weigh."""
        if given is None:
            require(
                self.return_share is None,
                f"task.return_share={self.return_share}: there is nothing to weigh it against; let something "
                "else score too, such as reward=, or leave it out",
            )
            return ReturnedReward()
        share = self.return_share or 0.0
        parts = {"agent": (share, ReturnedReward()), "scored": (1 - share, given)}
        weighted = {name: part for name, part in parts.items() if part[0]}
        return given if share == 0 else WeightedReward(weighted, -inf, inf)

    def make_agent(self) -> Agent:
        """What runs the agent. Raises UserError where it cannot be run here."""
        raise NotImplementedError

    @cached_property
    def _agent(self) -> Agent:
        return self.make_agent()

    def check_agent(self) -> None:
        """Raise UserError where the agent cannot be run here: before a model is loaded."""
        try:
            import gspo_cli.agents.host  # noqa: F401
        except ImportError as error:
            raise UserError(f"task={self.name}: needs packages ({error}); {install('agents')}") from error
        _ = self._agent

    def host(
        self, engine: RolloutEngine, chat: ChatFormat, warn: Callable[[str], None] = lambda text: None
    ) -> AgentHost:
        """Runs the agent with the policy of `engine`; to be closed. Raises as `check_agent` does."""
        self.check_agent()
        from gspo_cli.agents.host import AgentHost
        from gspo_cli.agents.rollout import Waits

        return AgentHost(engine, chat, self._agent, Waits(self.schedule, self.concurrency), warn)
