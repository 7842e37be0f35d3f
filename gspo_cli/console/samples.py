"""Conversations as a table for the terminal.

What a model wrote goes through `clean` and into rich's Text: neither markup nor control characters in it have
an effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from gspo_cli.console.reporting import ShownSample
from gspo_cli.console.words import clean, fixed, number, tail

LONGEST = 1000  # characters of a text that are looked at: a frame is drawn twice a second


def samples_table(samples: Sequence[ShownSample], width: int) -> Table:
    """Conversations in two lines each, `width` terminal cells wide."""
    reward_width = max(24, width // 4)
    text_width = (width - reward_width - 4) // 2
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, cells in (("prompt", text_width), ("answer", text_width), ("reward", reward_width)):
        table.add_column(name, width=cells, no_wrap=True, overflow="ellipsis")
    for sample in samples:
        table.add_row(*_sample_cells(sample, text_width))
    return table


def exchange(messages: Sequence[Mapping[str, str]], answered: bool = True) -> tuple[str, str]:
    """What the agent last answered to, and its answer; both may be empty. `answered` is false where the
    agent took no turn: answers in the messages are then examples."""
    turns = [i for i, message in enumerate(messages) if answered and message["role"] == "assistant"]
    last = turns[-1] if turns else len(messages)
    prompt = messages[last - 1]["content"] if last > 0 else ""
    return prompt, messages[last]["content"] if turns else ""


def _sample_cells(sample: ShownSample, width: int) -> list[Text]:
    """Prompt, answer and reward; below them which problem it is, what was expected, and the parts."""
    said = [message["role"] == "assistant" for message in sample.messages]
    turns = sum(said) if sample.turns is None else sample.turns
    prompt, answer = exchange(sample.messages, answered=turns > 0)
    about = [
        sample.problem_id,
        f"{turns} turns" * (turns > 1),
        "truncated" * (sample.finish_reason == "length"),
    ]
    parts = ", ".join(f"{name} {number(value)}" for name, value in sample.components.items())
    advantage = sample.advantage or 0.0  # an evaluation has none
    style = "green" if advantage > 0 else "yellow" if advantage < 0 else ""
    compared = "" if sample.advantage is None else f"  advantage {advantage:+.2f}"
    cells = (
        (tail(clean(prompt[-LONGEST:]), width), "", " · ".join(filter(None, about))),
        (clean(answer[:LONGEST]), "", f"expected {sample.expected}"),
        (fixed(sample.reward) + compared, style, sample.excluded or parts),
    )
    return [Text.assemble((top, style), "\n", (clean(below[:LONGEST]), "dim")) for top, style, below in cells]
