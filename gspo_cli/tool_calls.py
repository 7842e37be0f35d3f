"""Former location of `gspo_cli.tasks.tools`, for user modules that import it."""

from gspo_cli.tasks.tools import BadCall, Kind, Parameter, Speech, Tool, ToolCall, read_turn

__all__ = ["BadCall", "Kind", "Parameter", "Speech", "Tool", "ToolCall", "read_turn"]
