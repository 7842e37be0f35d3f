"""The former place of `gspo_cli.tasks.tools`, for modules of users that import it."""

from gspo_cli.tasks.tools import BadCall, Kind, Parameter, Speech, Tool, ToolCall, read_turn

__all__ = ["BadCall", "Kind", "Parameter", "Speech", "Tool", "ToolCall", "read_turn"]
