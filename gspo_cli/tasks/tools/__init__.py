"""Tools that agents call in their text: how one is declared, how a call is read, and how it is run.

A tool is a function under `@tool`. Agents read its name, the first paragraph of its docstring, and its
parameters. Parameters before `/` are what the function works on; the environment passes them:

    @tool
    def get_order(shop: Shop, /, order_id: Annotated[str, "three digits", Example("482")]) -> str: ...

An agent's turn is either words for the user or one call. A call can be written in three ways:

- the line form, for models without a format of their own: `/refund_order 482 "no longer needed"`, values in
  the order of the tool's parameters or as name=value (see `line_form`);
- `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the format of Qwen and Hermes templates;
- a bare JSON object of that shape (or with "parameters"), also after `[TOOL_CALLS]`, as Llama and Mistral do.

Agents' text is untrusted. Reading it returns a call, a message that says what is wrong, or speech, and never
raises."""

from gspo_cli.tasks.tools.arguments import BadCall
from gspo_cli.tasks.tools.declaring import (
    Example,
    FunctionTool,
    Kind,
    Observation,
    OneOf,
    Parameter,
    RefusedError,
    Tool,
    ToolCall,
    by_name,
    run_call,
    tool,
)
from gspo_cli.tasks.tools.line_form import LONGEST_CALL, example_line, line_guide, write_line
from gspo_cli.tasks.tools.reading import LONGEST_SPEECH, Speech, read_calls, read_turn

__all__ = [
    "LONGEST_CALL",
    "LONGEST_SPEECH",
    "BadCall",
    "Example",
    "FunctionTool",
    "Kind",
    "Observation",
    "OneOf",
    "Parameter",
    "RefusedError",
    "Speech",
    "Tool",
    "ToolCall",
    "by_name",
    "example_line",
    "line_guide",
    "read_calls",
    "read_turn",
    "run_call",
    "tool",
    "write_line",
]
