"""What tasks with scripted users share: their settings, the system prompt, and demonstrations by an agent
that knows how, from nothing but the messages it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gspo_cli.config.checks import require, require_positive
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.conversation import conversation_reward
from gspo_cli.tasks.base import Environment, SystemPrompt, Task
from gspo_cli.tasks.tools import Tool
from gspo_cli.types import Demonstration, Message, Outcome, Problem

Agent = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class Transcript:
    """A finished conversation: what was said, how things stand at the end, its outcome, and whether it ended
    by itself."""

    messages: tuple[Message, ...]
    progress: Mapping[str, float]
    outcome: Outcome
    ended: bool

    @property
    def turns(self) -> int:
        """How often the agent spoke."""
        return sum(message.role == "assistant" for message in self.messages)


def converse(
    environment: Environment, problem: Problem, agent: Agent, seed: int, max_turns: int
) -> Transcript:
    """Let `agent`, a function of the messages so far, talk to an environment with plain steps."""
    messages = list(environment.reset(problem, seed))
    progress: Mapping[str, float] = {}
    for _ in range(max_turns):
        text = agent(messages)
        step = environment.step(text)
        messages += [Message("assistant", text), *step.messages]
        progress = step.progress
        if step.done:
            break
    return Transcript(tuple(messages), progress, environment.finish(), step.done)


@dataclass
class ScriptedTask(Task):
    """Base of tasks with a scripted user. A tiny model gets no `instructions`: it learns policy and tools
    from the demonstrations."""

    instructions: bool = True
    """Puts policy and tools in the system prompt of each conversation; false for a model that learned them
    from demonstrations."""
    max_turns: int = 12
    """Default of `rollout.max_turns`, and the maximum turns of a demonstration; above 0."""
    heldout: int = 100
    """Number of held-out problems; above 0."""
    demonstrations_count: int = 2000
    """Maximum demonstrations, one per training problem; above 0."""

    def __post_init__(self) -> None:
        require_positive("task", self, "max_turns", "heldout", "demonstrations_count")

    def policy(self) -> str:
        """The instructions of an agent, where `system_prompt` gives no others."""
        raise NotImplementedError

    def tools(self) -> tuple[Tool, ...]:
        """What the agent may call."""
        return ()

    def agent(self, messages: Sequence[Message]) -> str:
        """What an agent that solves the task says next; tasks without one have their own demonstrations."""
        raise NotImplementedError

    def demonstrator(self, seed: int) -> Agent:
        """Who gives demonstration number `seed`."""
        return self.agent

    def system_prompt_and_tools(self) -> SystemPrompt:
        """Policy and tools, or `system_prompt` alone for a model that learns both from demonstrations."""
        if not self.instructions:
            return SystemPrompt(self.system_prompt)
        return SystemPrompt(self.system_prompt or self.policy(), self.tools())

    def demonstrations(self) -> Sequence[Demonstration]:
        """Conversations of the `demonstrator` over training problems, `demonstrations_count` at most."""
        shown = self.train_problems()[: self.demonstrations_count]
        return [self._demonstration(problem, seed) for seed, problem in enumerate(shown)]

    def reward(self) -> RewardFunction:
        """Goal, facts, policy and manner."""
        return conversation_reward()

    def _demonstration(self, problem: Problem, seed: int) -> Demonstration:
        talk = converse(self.environment(), problem, self.demonstrator(seed), seed, self.max_turns)
        require(talk.ended, f"task.max_turns={self.max_turns}: is too few; give more")
        last = max(i for i, message in enumerate(talk.messages) if message.role == "assistant")
        return Demonstration(talk.messages[: last + 1])
