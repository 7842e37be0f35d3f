"""Work without a person to talk to: a ticket says everything, the agent uses its tools and says when it is
done."""

from __future__ import annotations

import re

DONE = re.compile(r"\Adone\b|\bdone\W*\Z", re.IGNORECASE)
TICKET = (
    'A ticket from a customer, who cannot be asked: use the tools, and write "done" when you have finished, '
    "with what the customer wants to know.\n\n"
)
TICKET_ANSWER = 'Nobody reads this. Use the tools, and write "done" when you have finished.'


def says_done(text: str) -> bool:
    """Whether words begin or end with "done"."""
    return DONE.search(text.strip()) is not None
