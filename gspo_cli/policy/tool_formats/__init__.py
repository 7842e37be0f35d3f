"""A model's own format of tool calls: chosen by a round trip through its chat template, and read from what it
samples."""

from gspo_cli.policy.tool_formats.choosing import (
    LINES,
    ToolFormat,
    call_id,
    choose,
    closing_of,
    opened,
    turn_text,
    without_end,
)
from gspo_cli.policy.tool_formats.families import Form
from gspo_cli.policy.tool_formats.reading import read

__all__ = [
    "LINES",
    "Form",
    "ToolFormat",
    "call_id",
    "choose",
    "closing_of",
    "opened",
    "read",
    "turn_text",
    "without_end",
]
