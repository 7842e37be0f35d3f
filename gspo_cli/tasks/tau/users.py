"""Users of the retail shop: their protocol, and a ticket that has everything in it and answers nothing."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Protocol

from gspo_cli.tasks.scripted import Reply
from gspo_cli.tasks.tools import ToolCall

BEGINS = re.compile(r"\Adone\b", re.IGNORECASE)
ENDS = re.compile(r"\bdone\W*\Z", re.IGNORECASE)
CLAUSE_END = re.compile(r"[.!?;,:\n]\s|\bbut\b", re.IGNORECASE)
DENIES = re.compile(r"\b(?:not|cannot|never)\b|n['’]t\b", re.IGNORECASE)
LONGEST_CLAUSE = 200  # characters
TICKET = (
    'A ticket from a customer, who cannot be asked: use the tools, and write "done" when you have finished, '
    "with what the customer wants to know.\n\n"
)
TICKET_ANSWER = 'Nobody reads this. Use the tools, and write "done" when you have finished.'


# added to the published policies, which are written for a user who can be asked
TICKET_NOTE = (
    "## Tickets\n\nThe customer of a ticket cannot be asked. Find their user id with a tool first, as "
    "always, even if the ticket names it. The ticket is their yes to all that it asks for."
)


class User(Protocol):
    """Whom the agent talks to. `clarifications` counts the messages that the user could not follow."""

    clarifications: int

    def opening(self) -> str:
        """The first message of the conversation."""

    def respond(self, text: str) -> Reply | Awaitable[Reply]:
        """The user's answer to the agent's text."""

    def agrees(self, call: ToolCall) -> bool:
        """Whether the user has said yes to a change."""

    def notice(self, call: ToolCall) -> None:
        """Record a change that was made."""


class TicketUser:
    """The whole instruction as the first message, consent included; words get one fixed answer."""

    def __init__(self, instruction: str) -> None:
        self.instruction = instruction
        self.clarifications = 0

    def opening(self) -> str:
        """The ticket."""
        return TICKET + self.instruction

    def respond(self, text: str) -> Reply:
        """The end where the agent's words begin or end with "done"."""
        if says_done(text):
            return Reply("", done=True)
        self.clarifications += 1
        return Reply(TICKET_ANSWER)

    def agrees(self, call: ToolCall) -> bool:
        """A ticket is written consent."""
        return True

    def notice(self, call: ToolCall) -> None:
        """Does nothing."""


def says_done(text: str) -> bool:
    """Whether words begin or end with "done"; "this cannot be done" says the opposite."""
    text = text.strip()
    if BEGINS.match(text):
        return True
    ending = ENDS.search(text)
    if ending is None:
        return False
    clause = CLAUSE_END.split(text[max(0, ending.start() - LONGEST_CLAUSE) : ending.start()])[-1]
    return DENIES.search(clause) is None
