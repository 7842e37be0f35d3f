"""The prompts of a run as token ids; each different opening is rendered once."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from gspo_cli.policy.chat import ChatFormat
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.tasks.base import NO_SYSTEM_PROMPT, SystemPrompt
from gspo_cli.types import Message

KEPT_TOKENS = 8_000_000  # tokens of prompts that stay in memory, 4 bytes each: those used last


class Prompts:
    """A task's system prompt and tools in front of a conversation's opening, by the model's chat template.

    Raises UserError where the task asks for a format of tool calls that the model does not have."""

    def __init__(self, chat: ChatFormat, system: SystemPrompt = NO_SYSTEM_PROMPT) -> None:
        self.chat, self.system = chat, system
        self.turns = TurnFormat(chat, system)
        self._ids: dict[tuple[Message, ...], array[int]] = {}  # the one used last comes last
        self._tokens = 0

    def messages(self, opening: tuple[Message, ...]) -> tuple[Message, ...]:
        """What the agent reads first: the system prompt, unless the opening has its own, and the opening."""
        if not self.system.text or opening[0].role == "system":
            return opening
        return (Message("system", self.system.text), *opening)

    def pieces(self, messages: Sequence[Message], given: int = 0) -> Iterator[tuple[list[int], bool]]:
        """A conversation, system prompt included, as the ids of one part after the other: what the agent
        reads, and, with True, its turns from message `given` on. Ends with what the next turn answers.

        Raises UserError where the template rejects messages, or cannot write a turn."""
        start, said, last = 0, "", -1
        for end in range(given, len(messages) + 1):
            whole = end == len(messages)
            if (whole and start == end) or (not whole and messages[end].role != "assistant"):
                continue
            read = tuple(messages[start:end])
            context = (
                self.turns.prompt_ids(read, self.system.announced)
                if last < 0
                else self.turns.after(said, read, last)
            )
            yield context, False
            if not whole:
                said, start = messages[end].content, end + 1
                answer = self.turns.ids(said)
                last = answer[-1]
                yield answer, True

    def ids(self, opening: tuple[Message, ...]) -> Sequence[int]:
        """Token ids of `messages`, tools included, up to the agent's turn. Raises UserError if the template
        rejects them."""
        found = self._ids.pop(opening, None)
        if found is None:
            found = array("i", self.turns.prompt_ids(self.messages(opening), self.system.announced))
            self._tokens += len(found)
        self._ids[opening] = found
        while self._tokens > KEPT_TOKENS and len(self._ids) > 1:
            self._tokens -= len(self._ids.pop(next(iter(self._ids))))
        return found
