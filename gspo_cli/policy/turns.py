"""An agent's turns and what follows them, in the format of tool calls that is in force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gspo_cli.config.choices import ToolForm
from gspo_cli.errors import UserError
from gspo_cli.policy.chat import PLACEHOLDER, ChatFormat
from gspo_cli.policy.tool_formats import ToolFormat, closing_of, read, turn_text, without_end
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.tasks.tools import Tool, ToolCall, line_guide, read_turn, write_line
from gspo_cli.types import AgentTurn, Message, RequestedCall


class TurnFormat:
    """How agents' turns are read, written and answered by one tokenizer, for a task's tools.

    Raises UserError where the task asks for the template's format, and there is none that can be read."""

    def __init__(self, chat: ChatFormat, system: SystemPrompt) -> None:
        self.chat, self.tools = chat, system.tools
        self.schemas = [tool.schema() for tool in system.tools]
        self.format = _in_force(chat, system)
        self._by_name = {tool.name: tool for tool in system.tools}

    @property
    def written_by(self) -> str:
        """How calls are written and why, in words."""
        kind = "lines" if self.format.form is None else "the model's own format"
        return f"{kind} ({self.format.why})"

    def prompt_ids(self, messages: tuple[Message, ...], announced: bool) -> list[int]:
        """Ids of a conversation's first messages, up to the agent's turn. Tools that are `announced` stand
        where the template puts them, or in the system message."""
        if not announced or not self.tools:
            return self.chat.prompt_ids(messages, form=self.format)
        if self.format.form is None:
            return self.chat.prompt_ids(_with_guide(messages, self.tools))
        return self.chat.prompt_ids(messages, self.tools, self.format)

    def read(self, ids: list[int]) -> str:
        """The turn that was sampled as `ids`; an AgentTurn where the format is the template's, otherwise its
        text with the marks of its reasoning."""
        form = self.format.form
        if form is None:
            return self.chat.opened + self.chat.text(ids)
        turn = read(form, self.chat.text(ids, special=True), self.schemas, self.format.opened)
        written, words, reasoning = map(self.chat.without_special, (turn, turn.words, turn.reasoning))
        return AgentTurn(written, words, reasoning, turn.calls, turn.error)

    def ids(self, content: str) -> list[int]:
        """Ids of a turn that is demonstrated, with its end token.

        Raises UserError if it has several calls and the format allows one."""
        if self.format.form is None:
            return self.chat.answer_ids(_as_line(content) if isinstance(content, AgentTurn) else content)
        turn = self._structured(content)
        turn = turn if isinstance(turn, AgentTurn) else AgentTurn("", turn, "", ())
        written = self._written(turn) or self._written(AgentTurn("", "", turn.reasoning, turn.calls))
        if written is None:
            raise UserError(
                f"task.tool_format: the chat template cannot write a turn of {len(turn.calls)} tool calls; "
                "give one call in each turn, or use task.tool_format=line"
            )
        text = without_end(written, self.chat.ends)
        end = next(end for end in self.chat.ends if written[len(text) :].lstrip().startswith(end))
        opened = self.format.opened
        begun = text.removeprefix(opened).lstrip("\n") if opened and text.startswith(opened) else None
        text = closing_of(opened) + text if begun is None else begun
        [end_id] = (token for token in self.chat.stop_ids if self.chat.token(token) == end)
        return self.chat.turn_ids(text, end_id)

    def _written(self, turn: AgentTurn) -> str | None:
        """A turn as the template writes it, its end included; None if it rejects it or drops its calls."""
        assert self.format.form is not None
        written = turn_text(self.chat.rendered, self.format, turn, self.schemas)
        text = without_end(written or "", self.chat.ends)
        found = read(self.format.form, text, self.schemas)
        return written if (found.words, found.calls) == (turn.words, turn.calls) else None

    def after(self, content: str, messages: tuple[Message, ...], last_id: int) -> list[int]:
        """Ids of what follows the turn `content` that ended with `last_id`, up to where the next one begins.
        Results of tools stand as the template writes the results of those calls."""
        results = 0
        while results < len(messages) and messages[results].role == "tool":
            results += 1
        turn = content if self.format.form is None else self._structured(content)
        calls = turn.calls[:results] if isinstance(turn, AgentTurn) else ()
        tail = self._after_calls(calls, messages) if calls else None
        if tail is None:
            return self.chat.suffix_ids(messages, last_id)
        return self.chat.after_turn(tail, last_id, tuple(self.chat.ends))

    def _after_calls(self, calls: Sequence[RequestedCall], messages: Sequence[Message]) -> str | None:
        """What the template writes after a turn of these calls; None if it rejects it."""
        written, mark = "".join(message.content for message in messages), PLACEHOLDER
        while mark in written:  # results may quote it
            mark += "X"
        marked = tuple(replace(call, arguments={"text": mark}) for call in calls)
        turn = AgentTurn("", "", "", marked)
        said = [Message("user", "Hi"), Message("assistant", turn), *messages]
        whole = self.chat.rendered(self.chat.as_data(said, self.format), True, [])
        _, found, tail = (whole or "").rpartition(mark)
        places = [at for at in map(tail.find, self.chat.ends) if at >= 0]
        return tail[min(places) :] if found and places else None

    def _structured(self, content: str) -> str:
        """A turn with its calls; those of a turn in words are read as lines."""
        if isinstance(content, AgentTurn):
            return content
        call = read_turn(content, self._by_name)
        if isinstance(call, ToolCall):
            return AgentTurn(content, "", "", (RequestedCall(call.name, call.arguments),))
        return content


def _in_force(chat: ChatFormat, system: SystemPrompt) -> ToolFormat:
    asked = system.tool_format
    if asked is ToolForm.line:
        return ToolFormat("task.tool_format=line")
    if not system.tools:
        return ToolFormat("the task has no tools")
    if asked is ToolForm.template and chat.model_format.form is None:
        raise UserError(
            f"task.tool_format=template: the model writes calls in no format that can be read "
            f"({chat.model_format.why}); use task.tool_format=line"
        )
    return chat.model_format


def _as_line(turn: AgentTurn) -> str:
    """A turn in the line form: its words, or its call.

    Raises UserError where it has several."""
    if len(turn.calls) > 1:
        raise UserError(
            f"model.cold_start.demonstrations: a turn has {len(turn.calls)} tool calls, and the line form "
            "has one to a turn; give one call in each turn"
        )
    return write_line(turn.calls[0].name, **turn.calls[0].arguments) if turn.calls else turn.words


def _with_guide(messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> tuple[Message, ...]:
    """The messages, with a guide to calling the tools at the end of the system message, and calls that were
    made before as the guide says."""
    system, rest = (messages[0].content, messages[1:]) if messages[0].role == "system" else ("", messages)
    return (
        Message("system", f"{system}\n\n{line_guide(tools)}".strip()),
        *map(_in_lines, rest),
    )


def _in_lines(message: Message) -> Message:
    """A message whose calls stand as lines, as in demonstrations."""
    turn = message.content
    if not isinstance(turn, AgentTurn) or not turn.calls:
        return message
    lines = [write_line(call.name, **call.arguments) for call in turn.calls]
    return Message(message.role, "\n".join([turn.words, *lines] if turn.words else lines))
