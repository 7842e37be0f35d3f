"""Shared code of tasks with scripted users: an environment that reads and counts turns, the conversation
loop, and demonstrations by an agent that solves the task from the messages it reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gspo_cli.concurrency import gather
from gspo_cli.config.checks import require, require_positive
from gspo_cli.config.choices import ToolForm
from gspo_cli.randomness import generator
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.conversation import conversation_reward
from gspo_cli.tasks.base import Environment, Step, SystemPrompt, Task
from gspo_cli.tasks.tools import BadCall, Observation, Speech, Tool, ToolCall, read_calls
from gspo_cli.types import Demonstration, Message, Outcome, Problem

Agent = Callable[[Sequence[Message]], str | None]  # None: the agent has nothing more to say

MOST_TURNS = 1000  # for an agent that ends by itself


@dataclass(frozen=True)
class Reply:
    """What a user answers; `done` where the user leaves after it."""

    text: str
    done: bool = False


class ScriptedEnvironment:
    """Base of environments with a user and tools: an agent's text goes to `respond`, its calls to `call`.

    `tools` are those that the agent may call. `violations` are the broken rules in words, each of which costs
    `violation_cost` of the policy's progress. Subclasses write `opening`, `respond`, `call`, `progress`,
    `finish` and `changes`."""

    single_turn = False
    tools: Mapping[str, Tool]
    violation_cost = 0.25
    one_call_at_a_time = False  # whether several calls in one turn are refused
    error_prefix = "error: "  # of observations of failed calls
    counts_bad_calls = True  # whether calls that cannot be read are in `tool_calls`

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """Start over, and return the user's first messages."""
        self.seed, self.turn, self.done = seed, 0, False
        self.tool_calls = self.tool_errors = self.clarifications = 0
        self.violations: list[str] = []
        return self.opening(problem)

    def step(self, text: str) -> Step | Awaitable[Step]:
        """The user's answer, or a tool's; a coroutine where the user's answer is one. Nothing happens once
        the conversation is over."""
        self.turn += 1
        if self.done:
            return self._step()
        turn = read_calls(text, self.tools, self.one_call_at_a_time)
        if not isinstance(turn, Speech):
            return self._step(*(Message("tool", self._observe(call)) for call in turn))
        reply = self.respond(turn.text)
        return self._replied(reply) if isinstance(reply, Reply) else self._awaited(reply)

    def observe(self, text: str) -> list[str] | None:
        """The tools' answers to an agent's turn; None if it is text for the user."""
        turn = read_calls(text, self.tools, self.one_call_at_a_time)
        return None if isinstance(turn, Speech) else [self._observe(call) for call in turn]

    def opening(self, problem: Problem) -> tuple[Message, ...]:
        """Set the conversation up, and return the user's first messages."""
        raise NotImplementedError

    def respond(self, text: str) -> Reply | Awaitable[Reply]:
        """The user's answer to the agent's text."""
        raise NotImplementedError

    def call(self, call: ToolCall) -> Observation:
        """Run a well-formed call."""
        raise NotImplementedError

    def progress(self) -> Mapping[str, float]:
        """See `Step.progress`."""
        raise NotImplementedError

    def counts(self) -> dict[str, float]:
        """The counts that all such environments report in `Outcome.counts`."""
        return {
            "tool_calls": self.tool_calls,
            "tool_errors": self.tool_errors,
            "violations": len(self.violations),
            "clarifications": self.clarifications,
        }

    def policy_progress(self) -> float:
        """0 while no rule is broken, and -1 at worst."""
        return max(-1.0, 0.0 - self.violation_cost * len(self.violations))

    def clarify(self, text: str, patience: int) -> str:
        """Count a turn that the user cannot follow and answers with `text`; the last of `patience` ends the
        conversation."""
        self.clarifications += 1
        self.done = self.clarifications >= patience
        return text

    def pick(self, purpose: str, texts: Sequence[str]) -> str:
        """One of `texts`, drawn by seed and turn."""
        return texts[int(generator(self.seed, purpose, self.turn).integers(len(texts)))]

    def _observe(self, turn: ToolCall | BadCall) -> str:
        if isinstance(turn, BadCall):
            self.tool_calls += self.counts_bad_calls
            observation = Observation(turn.reason, ok=False)
        else:
            self.tool_calls += 1
            observation = self.call(turn)
        self.tool_errors += not observation.ok
        return observation.text if observation.ok else self.error_prefix + observation.text

    def _replied(self, reply: Reply) -> Step:
        self.done = self.done or reply.done
        return self._step(*([Message("user", reply.text)] if reply.text else []))

    async def _awaited(self, reply: Awaitable[Reply]) -> Step:
        return self._replied(await reply)

    def _step(self, *messages: Message) -> Step:
        return Step(messages, self.done, progress=self.progress())


@dataclass(frozen=True)
class Transcript:
    """A finished conversation. `progress` is the last one; `ended` is false if `max_turns` cut it off."""

    messages: tuple[Message, ...]
    progress: Mapping[str, float]
    outcome: Outcome
    ended: bool

    @property
    def turns(self) -> int:
        """How many turns the agent took."""
        return sum(message.role == "assistant" for message in self.messages)

    def demonstration(self) -> Demonstration:
        """The conversation up to the agent's last turn."""
        last = max(i for i, message in enumerate(self.messages) if message.role == "assistant")
        return Demonstration(self.messages[: last + 1])


def converse(
    environment: Environment, problem: Problem, agent: Agent, seed: int, max_turns: int = MOST_TURNS
) -> Transcript:
    """Let `agent`, a function of the messages so far, talk to `environment` until either ends it."""
    messages = list(environment.reset(problem, seed))
    progress: Mapping[str, float] = {}
    ended = False
    for _ in range(max_turns):
        text = agent(messages)
        if text is None:
            break
        step = _settled(environment.step(text))
        messages += [Message("assistant", text), *step.messages]
        progress, ended = step.progress, step.done
        if ended:
            break
    return Transcript(tuple(messages), progress, environment.finish(), ended)


def fixed_agent(turns: Iterable[str]) -> Agent:
    """An agent that says `turns`, whatever it reads."""
    remaining = iter(turns)
    return lambda messages: next(remaining, None)


def _settled(step: Step | Awaitable[Step]) -> Step:
    if not isinstance(step, Awaitable):
        return step
    (result,) = gather([step], limit=1, timeout=None)
    if isinstance(result, Exception):
        raise result
    return result


@dataclass
class ScriptedTask(Task):
    """Base of tasks with a scripted user. A tiny model gets no `instructions`; it learns policy and tools
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
    tool_format: ToolForm = ToolForm.auto
    """How tool calls are written."""

    def __post_init__(self) -> None:
        require_positive("task", self, "max_turns", "heldout", "demonstrations_count")

    def policy(self) -> str:
        """The instructions of an agent, unless `system_prompt` gives others."""
        raise NotImplementedError

    def tools(self) -> tuple[Tool, ...]:
        """What the agent may call."""
        return ()

    def agent(self, messages: Sequence[Message]) -> str:
        """The next turn of an agent that solves the task. A task without one overrides `demonstrations`."""
        raise NotImplementedError

    def demonstrator(self, seed: int) -> Agent:
        """The agent of demonstration number `seed`."""
        return self.agent

    def system_prompt_and_tools(self) -> SystemPrompt:
        """Policy and tools, or `system_prompt` alone for a model that learns both from demonstrations."""
        if not self.instructions:
            return SystemPrompt(self.system_prompt, self.tools(), False, self.tool_format)
        return SystemPrompt(self.system_prompt or self.policy(), self.tools(), True, self.tool_format)

    def demonstrations(self) -> Sequence[Demonstration]:
        """Conversations of the `demonstrator` over training problems, `demonstrations_count` at most."""
        shown = self.train_problems()[: self.demonstrations_count]
        return [self._demonstration(problem, seed) for seed, problem in enumerate(shown)]

    def reward(self) -> RewardFunction:
        """Goal, facts, policy and manner."""
        return conversation_reward()

    def _demonstration(self, problem: Problem, seed: int) -> Demonstration:
        transcript = converse(self.environment(), problem, self.demonstrator(seed), seed, self.max_turns)
        require(transcript.ended, f"task.max_turns={self.max_turns}: ends a demonstration early; raise it")
        return transcript.demonstration()
