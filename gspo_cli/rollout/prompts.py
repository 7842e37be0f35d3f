"""The prompts of a run as token ids; each different opening is rendered once."""

from __future__ import annotations

from functools import lru_cache

from gspo_cli.policy.chat import ChatFormat
from gspo_cli.tasks.base import NO_SYSTEM_PROMPT, SystemPrompt
from gspo_cli.types import Message

KEPT = 10_000  # openings whose ids are kept, the most recently used ones


class Prompts:
    """A task's system prompt and tools in front of a conversation's opening, by the model's chat template."""

    def __init__(self, chat: ChatFormat, system: SystemPrompt = NO_SYSTEM_PROMPT) -> None:
        self.chat, self.system = chat, system
        self._ids = lru_cache(maxsize=KEPT)(self._render)

    def messages(self, opening: tuple[Message, ...]) -> tuple[Message, ...]:
        """What the agent reads first: the system prompt, unless the opening has its own, and the opening."""
        if not self.system.text or opening[0].role == "system":
            return opening
        return (Message("system", self.system.text), *opening)

    def ids(self, opening: tuple[Message, ...]) -> tuple[int, ...]:
        """Token ids of `messages`, tools included, up to the agent's turn. Raises UserError if the template
        rejects them."""
        return self._ids(opening)

    def _render(self, opening: tuple[Message, ...]) -> tuple[int, ...]:
        return tuple(self.chat.prompt_ids(self.messages(opening), self.system.tools))
