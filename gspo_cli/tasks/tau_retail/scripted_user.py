"""A user of the retail shop who follows a script read from the published instructions."""

from __future__ import annotations

import re

from gspo_cli.randomness import generator
from gspo_cli.tasks.scripted import Reply
from gspo_cli.tasks.tau_retail.instructions import OrderRequest, UserScript
from gspo_cli.tasks.tools import ToolCall

CLARIFICATIONS = 3  # at most this many; the next unclear message ends the conversation
CONFIRMS = re.compile(r"\?|\b(?:confirm|proceed|go ahead|correct|yes)\b")
IDENTIFIES = re.compile(r"\b(?:e-?mail|zip|name|identity|identify|verify|who you are|authenticate)\b")
# "which items of #W1?" wants an answer, not a yes
OPEN = re.compile(r"\b(?:what|which|why|where|when|who)\b[^.?!\n]*\?")
AGREED = re.compile(r"\b(?:confirm|proceed|go ahead|correct|yes|shall i|should i|may i|would you like me)\b")
ASKS = re.compile(r"\?|\b(?:help|assist|what|how|which|tell me|request|next|else|anything|wish|do for you)\b")
REFUSES = re.compile(r"\b(?:cannot|can't|can not|unable|not possible|impossible)\b")
ORDER_IDS = re.compile(r"#?\bw\d{1,12}\b")

GREETINGS = ("Hello, I need help with my orders.", "Hi! I have a question about an order.", "Good day.")
AGREEMENTS = ("Yes, please.", "Yes, go ahead.", "Yes, that is right.")
UNCLEAR = ("Sorry, I do not understand.", "I am not sure what you mean.", "Could you say that again?")
FAREWELLS = ("That is all, thank you.", "Thank you, nothing else.", "No, that was everything. Bye!")
# added to the published policy, which leaves open in which words the user is asked
USER_NOTE = (
    "## The user\n\nThe user answers one question at a time. Ask who they are: "
    '"May I have your email, or your name and zip code?" Then ask how you can help. '
    "Ask for a yes to a change in a question with the order id: "
    '"I will cancel order #W0000000. Do you confirm?" After the change ask for the next wish: '
    '"That is done. Can I help you with anything else?" Say so if a wish is not possible. '
    "The user says goodbye when nothing is left."
)
GIVES_UP = "I will try again another time."


class ScriptedUser:
    """States the requests of a script one by one; the wording varies with the seed.

    Gives name and zip code, or email, when asked. States the next request when asked or when the one before
    is done or refused, and says yes to a question that names the order of the stated one."""

    def __init__(self, script: UserScript, seed: int) -> None:
        self.script = script
        self.style = int(generator(seed, "retail user").integers(3))
        self.waiting = list(script.requests)
        self.stated: OrderRequest | None = None
        self.confirmed: OrderRequest | None = None
        self.identified = False
        self.clarifications = 0

    def opening(self) -> str:
        """A greeting without any request."""
        return GREETINGS[self.style]

    def respond(self, text: str) -> Reply:
        """The answer to the agent's words: that of the first case that applies."""
        words = text.lower()
        if self.stated is not None and _asks_for_a_yes(words) and _names_the_order(words, self.stated):
            self.confirmed = self.stated
            return Reply(AGREEMENTS[self.style])
        if not self.identified and IDENTIFIES.search(words):
            self.identified = True
            return Reply(self._identity())
        if self.stated is None:
            return self._state_next() if self._is_next(words) else self._unclear()
        if REFUSES.search(words):
            self.stated = None
            return self._state_next()
        if IDENTIFIES.search(words):
            return self._unclear(self._identity())
        return self._unclear(self.stated.words if ASKS.search(words) else "")

    def agrees(self, call: ToolCall) -> bool:
        """Whether the user has said yes to what this call does."""
        return self.confirmed is not None and _fulfills(call, self.confirmed)

    def notice(self, call: ToolCall) -> None:
        """A request is done once its tool was used on its order, with or without a yes."""
        if self.stated is not None and _fulfills(call, self.stated):
            self.stated = self.confirmed = None
            return
        self.waiting = [request for request in self.waiting if not _fulfills(call, request)]

    def _is_next(self, words: str) -> bool:
        started = len(self.waiting) < len(self.script.requests)
        return started or ASKS.search(words) is not None

    def _identity(self) -> str:
        who = f"I am {self.script.first_name} {self.script.last_name}"
        if self.script.email is not None:
            return f"{who}, my email is {self.script.email}."
        return f"{who}, my zip code is {self.script.zip}."

    def _state_next(self) -> Reply:
        if not self.waiting:
            return Reply(FAREWELLS[self.style], done=True)
        self.stated = self.waiting.pop(0)
        return Reply(self.stated.words)

    def _unclear(self, instead: str = "") -> Reply:
        """Repeat the request, or say that the message is not clear; at most CLARIFICATIONS times."""
        if self.clarifications == CLARIFICATIONS:
            return Reply(GIVES_UP, done=True)
        self.clarifications += 1
        return Reply(instead or UNCLEAR[self.style])


def _asks_for_a_yes(words: str) -> bool:
    return CONFIRMS.search(words) is not None and (
        OPEN.search(words) is None or AGREED.search(words) is not None
    )


def _names_the_order(words: str, request: OrderRequest) -> bool:
    wanted = request.order_id.lower().lstrip("#")
    return wanted in {found.lstrip("#") for found in ORDER_IDS.findall(words)}


def _fulfills(call: ToolCall, request: OrderRequest) -> bool:
    return call.name == request.tool and call.arguments.get("order_id") == request.order_id
