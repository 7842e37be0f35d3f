"""The prompts of a run as token ids; each different opening is rendered once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

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
