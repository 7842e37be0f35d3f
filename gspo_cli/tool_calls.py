"""Former location of `gspo_cli.tasks.tools`, for user modules that import it."""

from gspo_cli.tasks.tools import (
    LONGEST_CALL,
    LONGEST_SPEECH,
    BadCall,
    Kind,
    Parameter,
    Speech,
    Tool,
    ToolCall,
    line_guide,
    read_turn,
    write_line,
)

__all__ = [
    "LONGEST_CALL",
    "LONGEST_SPEECH",
    "BadCall",
    "Kind",
    "Parameter",
    "Speech",
    "Tool",
    "ToolCall",
    "line_guide",
    "read_turn",
    "write_line",
]
