"""Conversations with a model as text that can be shown. What a model wrote is data, and never markup."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

JOINERS = "\n\t\u200d"  # beside what can be printed: lines, tabs and the joiner of emoji


def printable(text: str) -> str:
    """Text of many lines with nothing in it that a page or a terminal would obey, and that UTF-8 can hold."""
    shown = text.replace("\r\n", "\n")
    return "".join(
        c if c.isprintable() or c in JOINERS else " " if unicodedata.category(c) == "Zs" else "�"
        for c in shown
    )


def shared_start(conversations: Sequence[Sequence[Mapping[str, str]]]) -> int:
    """How many messages all conversations begin with alike, before any arm has its say."""
    for place, messages in enumerate(zip(*conversations, strict=False)):
        if any(message != messages[0] or message["role"] == "assistant" for message in messages):
            return place
    return min((len(messages) for messages in conversations), default=0)
