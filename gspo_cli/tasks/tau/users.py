"""Users of the retail shop: what one is, and a ticket that asks nothing."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from gspo_cli.tasks.llm_user import Reply
from gspo_cli.tasks.tau.tickets import TICKET, TICKET_ANSWER, says_done
from gspo_cli.tasks.tools import ToolCall


class User(Protocol):
    """Whom the agent talks to. `clarifications` counts the messages that made no sense to the user."""

    clarifications: int

    def opening(self) -> str:
        """The first message of the conversation."""

    def hear(self, text: str) -> Reply | Awaitable[Reply]:
        """What the user answers to the agent's words."""

    def agrees(self, call: ToolCall) -> bool:
        """Whether the user has said yes to a change."""

    def notice(self, call: ToolCall) -> None:
        """A change has been made."""


class TicketUser:
    """The whole instruction as the first message, consent included; words get one fixed answer."""

    def __init__(self, instruction: str) -> None:
        self.instruction = instruction
        self.clarifications = 0

    def opening(self) -> str:
        """The ticket."""
        return TICKET + self.instruction

    def hear(self, text: str) -> Reply:
        """The end where the agent's words begin or end with "done"."""
        if says_done(text):
            return Reply("", done=True)
        self.clarifications += 1
        return Reply(TICKET_ANSWER)

    def agrees(self, call: ToolCall) -> bool:
        """A ticket is written consent."""
        return True

    def notice(self, call: ToolCall) -> None:
        """Nobody watches."""
