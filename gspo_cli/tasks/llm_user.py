"""A user played by a language model behind any OpenAI-compatible URL."""

from __future__ import annotations

import re

from gspo_cli.chat_endpoint import ChatEndpoint
from gspo_cli.tasks.scripted import Reply
from gspo_cli.tasks.tools import ToolCall

STOP = "###STOP###"
LONGEST_REPLY = 2000  # characters
YES = re.compile(r"\byes\b", re.IGNORECASE)
RULES = (
    "You are a customer who writes to a shop's support agent. Play the person described below, one short "
    "message at a time. Say only what the last message calls for, do not give all of it away at once, and "
    "invent nothing. Before the agent changes anything it asks you to confirm: answer yes if it is what you "
    f"want. When your wishes are fulfilled, or cannot be, write {STOP} and nothing else."
)


class LlmUser:
    """Plays `scenario`. To the endpoint the user is the assistant, and the agent is the user.

    Raises EndpointError if the endpoint gives no answer; the conversation is then left out of training."""

    def __init__(self, endpoint: ChatEndpoint, scenario: str, greeting: str) -> None:
        self.endpoint = endpoint
        self.greeting = greeting
        self.history = [
            {"role": "system", "content": f"{RULES}\n\n{scenario}"},
            {
                "role": "user",
                "content": "Hello, how can I help you?",
            },  # many templates require the user first
            {"role": "assistant", "content": greeting},
        ]
        self.clarifications = 0
        self.consents = False  # whether the last answer is a yes that no change has followed yet

    def opening(self) -> str:
        """A fixed greeting; the model writes from the second message on."""
        return self.greeting

    async def respond(self, text: str) -> Reply:
        """What the model answers."""
        self.consents = False
        self.history.append({"role": "user", "content": text or "(says nothing)"})
        answer = await self.endpoint.complete(self.history)
        words, stop, _ = answer.partition(STOP)
        words = words.strip()[:LONGEST_REPLY]
        self.history.append({"role": "assistant", "content": words})
        self.consents = YES.search(words) is not None
        done = stop != ""
        return Reply(words if words or done else "...", done)

    def agrees(self, call: ToolCall) -> bool:
        """Whether the user's last message is a yes, and nothing has changed since."""
        return self.consents

    def notice(self, call: ToolCall) -> None:
        """One yes covers one change. The model learns of the change only from the agent."""
        self.consents = False
