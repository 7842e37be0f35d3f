"""Work without a person to talk to: a ticket says everything, the agent uses its tools and says when it is
done."""

from __future__ import annotations

import re

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
