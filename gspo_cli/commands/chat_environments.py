"""The environments of gspo-chat: a person in the user's place, or the task's own user, shown turn by turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gspo_cli.tasks.base import Environment, Step, ToolEnvironment
from gspo_cli.types import Message, Outcome, Problem

Show = Callable[[str, str], None]  # prints a text of a role


class ShownEnvironment:
    """An environment whose messages and changes are shown as they arrive."""

    def __init__(self, environment: Environment, show: Show) -> None:
        self.environment, self.show = environment, show
        self.single_turn = environment.single_turn
        self._changes: list[str] = []

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The environment's own first messages."""
        return self._shown(self.environment.reset(problem, seed))

    def step(self, text: str) -> Step | Awaitable[Step]:
        """The environment's own step."""
        self.show("assistant", text)
        step = self.environment.step(text)
        return self._observed(step) if isinstance(step, Step) else self._awaited(step)

    async def _awaited(self, step: Awaitable[Step]) -> Step:
        return self._observed(await step)

    def _observed(self, step: Step) -> Step:
        self._shown(step.messages)
        self._changes = show_changes(self.environment, self._changes, self.show)
        return step

    def finish(self) -> Outcome:
        """The environment's own outcome."""
        return self.environment.finish()

    def _shown(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        for message in messages:
            self.show(message.role, message.content)
        return messages


class HumanUser:
    """A person in the user's place, whose messages are `first` and then what `prompt` returns. EOFError,
    Ctrl-C and /quit end the conversation.

    `environment` is what the agent's tools act on; None for a conversation without tools."""

    single_turn = False

    def __init__(
        self, environment: ToolEnvironment | None, prompt: Callable[[], str], show: Show, first: str = ""
    ) -> None:
        self.environment, self.prompt, self.show, self.first = environment, prompt, show, first
        self.left = False
        self._changes: list[str] = []

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The person writes first."""
        if self.environment is not None:
            self.environment.reset(problem, seed)
        return (Message("user", self.first),)

    def step(self, text: str) -> Step:
        """A tool's answer, or the person's."""
        self.show("assistant", text)
        if self.environment is not None:
            found = self.environment.observe(text)
            if found is not None:
                observations = [found] if isinstance(found, str) else found
                for text in observations:
                    self.show("tool", text)
                self._changes = show_changes(self.environment, self._changes, self.show)
                return Step(tuple(Message("tool", text) for text in observations))
        reply = self.next_message()
        return Step(done=True) if reply is None else Step((Message("user", reply),))

    def finish(self) -> Outcome:
        """The environment's outcome. What the person thinks of the conversation is not part of it."""
        return Outcome() if self.environment is None else self.environment.finish()

    def next_message(self) -> str | None:
        """What the person writes next; None if they leave. After an empty line they are asked again."""
        text = ""
        while not text:
            try:
                text = self.prompt().strip()
            except (EOFError, KeyboardInterrupt):
                text = "/quit"
        self.left = text == "/quit"
        return None if self.left else text


def show_changes(environment: Environment, shown: list[str], show: Show) -> list[str]:
    """Show the changes of an environment that are not yet `shown`. Returns all of them."""
    changes = environment.changes() if isinstance(environment, ToolEnvironment) else []
    for change in changes:
        if change not in shown:
            show("change", change)
    return changes
