"""Conversations as token ids, with the model's own chat template or a plain one.

Token-in, token-out: what the policy sampled is never decoded and encoded again. Only the first prompt and
the messages between two agent turns are encoded here; the latter as the template's suffix after an assistant
turn.

Messages of users and tools are data: control tokens spelled out in them are broken up, so that no text can
end its message and pretend to be another speaker."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from gspo_cli.errors import UserError
from gspo_cli.policy.tool_formats import LINES, ToolFormat, call_id, choose, closing_of, opened
from gspo_cli.tasks.tools import Tool
from gspo_cli.tasks.tools.written import REASONING
from gspo_cli.types import AgentTurn, Message, RequestedCall

# for tokenizers without a template, e.g. gpt2's: a line with the speaker, then the text
# ("User:\nHi\nAssistant:\nHello<eos>\n"); the agent's text starts a line, so that word boundaries do not move
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize + ':\n' + message.content }}"
    "{{ eos_token if message.role == 'assistant' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
PLAIN_SPEAKER = re.compile(r"^(?=(?:System|User|Assistant|Tool):[ \t\r]*$)", re.MULTILINE)
# <|user|>, [/INST], <<SYS>>, </s>: how templates mark speakers where these marks are not tokens
MARKS = re.compile(r"<\|[^|<>\s]+\|>|\[/?[A-Z_]{3,}\]|<</?[A-Z]+>>|</?[a-z_]{2,}>")
PLACEHOLDER = "PLACEHOLDER"
PROBE = Tool("tool_probe", "Whether a template announces tools and passes on what they say.")
# starts a tool's message where the template has no tool role: it is sent as the user's
TOOL_SAYS = "Tool result:\n"


class Rejected(Exception):
    """A chat template could not render a conversation."""


class ChatFormat:
    """Encodes messages for one tokenizer. `stop_ids` end an answer; `end_id` is the one used in
    demonstrations. `rows` is the number of tokens that the model has embeddings for.

    Raises UserError if the tokenizer has no end token or tokens that the model does not have, or its template
    rejects or drops messages."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, generation_stop_ids: list[int], rows: int = sys.maxsize
    ) -> None:
        self.tokenizer, self.rows = tokenizer, rows
        if not tokenizer.chat_template:
            tokenizer.chat_template = _plain_template(tokenizer)
        self._controls = re.compile(r"(?!)")  # of none: what is rendered here is ours
        spoken = [Message("user", "Hi"), Message("assistant", "Hello")]
        self._controls = _control_tokens(tokenizer, self._render(self.as_data(spoken), False))
        stop_ids = {*generation_stop_ids, tokenizer.eos_token_id} - {None}
        if PROBE.name not in self._after_assistant([Message("user", PROBE.name)], True):
            raise UserError("model.name: its chat template drops later user turns; choose another model")
        after = self._encode(self._after_assistant([], False))
        # the template's token after an answer ends it, also where a base model declares another end token
        ends = after and (after[0] in stop_ids or after[0] in tokenizer.added_tokens_decoder)
        if not stop_ids and not ends:
            raise UserError("model.name: the tokenizer has no end token; set eos_token in its folder")
        self.end_id: int = after[0] if ends else (tokenizer.eos_token_id or min(stop_ids))
        self.stop_ids = frozenset(stop_ids | {self.end_id})

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), form: ToolFormat = LINES
    ) -> list[int]:
        """Ids of a conversation's first messages, up to where the agent's turn begins. The template announces
        the tools, and calls are written as `form` says."""
        schemas = [tool.schema() for tool in tools]
        return self._encode(self._render(self.as_data(messages, form), True, schemas))

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an agent turn given as text, with the end token."""
        begun = closing_of(self.opened)
        return self.turn_ids(begun + text, self.end_id)

    def turn_ids(self, text: str, end_id: int) -> list[int]:
        """Ids of an agent turn as the template writes it, with the end token `end_id`."""
        self._require_embeddings([end_id])
        return [*self._encode(text), end_id]

    def suffix_ids(self, messages: Sequence[Message], last_id: int) -> list[int]:
        """Ids of what follows an agent turn that ended with `last_id`, up to where its next turn begins."""
        return self.after_turn(self._after_assistant(messages, True), last_id, self._closings)

    def after_turn(self, tail: str, last_id: int, closings: tuple[str, ...]) -> list[int]:
        """Ids of `tail`, which the template writes behind an agent turn that ended with `last_id`; it may
        begin with one of `closings`, which end a turn."""
        ids = self._encode(tail)
        # an end token that the policy sampled is not repeated; a truncated answer is closed by the
        # template's end token, which is not trained
        between = self._between
        if between and last_id in self.stop_ids and ids[:1] == between:
            return ids[1:]
        if last_id not in self.stop_ids or not tail.startswith(closings):
            return ids
        place = next((at for at, token in enumerate(ids) if token in self.stop_ids), -1)
        return ids[place + 1 :]

    @cached_property
    def _between(self) -> list[int]:
        """The token that ends all messages but the last, where the template ends the last with another one;
        empty where there is none."""
        tail = self._after_assistant([Message("user", PROBE.name)], False)
        ends = [self._encode(text)[:1] for text in (tail, tail.partition(PROBE.name)[2])]
        own = ends[0] == ends[1] and {*ends[0]} <= {*self.tokenizer.added_tokens_decoder} - self.stop_ids
        return ends[0] if own else []

    @cached_property
    def _closings(self) -> tuple[str, ...]:
        """What the template may close a turn with, up to an end token; nothing where it writes none."""
        after = self._after_assistant([], generate=False)
        places = [at for at in map(after.find, self.ends) if at >= 0]
        return tuple(after[: min(places)] + end for end in self.ends) if places else ()

    def text(self, ids: list[int], special: bool = False) -> str:
        """The text of an agent turn, without its end token and other special tokens but for the marks of
        reasoning; with all where `special`."""
        ids = ids[: len(ids) - (ids[-1:] != [] and ids[-1] in self.stop_ids)]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return text.strip() if special else self._unspoken.sub("", text).strip()

    def without_special(self, text: str) -> str:
        """A text without the special tokens that are spelled out in it."""
        return self._special.sub("", text).strip()

    @cached_property
    def opened(self) -> str:
        """The mark of reasoning that the template begins each turn with; "" where it begins none."""
        return opened(self.rendered)

    @cached_property
    def model_format(self) -> ToolFormat:
        """How the model's template writes tool calls."""
        if not self.announces_tools:
            return ToolFormat("its chat template announces no tools")
        own = getattr(self.tokenizer, "response_template", None)
        return choose(self.rendered, self.ends, own if isinstance(own, Mapping) else None)

    @cached_property
    def ends(self) -> list[str]:
        """The tokens that end a turn, as text."""
        return [self.token(token) for token in sorted(self.stop_ids)]

    def token(self, number: int) -> str:
        """A token as text."""
        return str(self.tokenizer.convert_ids_to_tokens(number))

    def rendered(
        self, messages: list[dict[str, Any]], generate: bool, tools: list[dict[str, Any]]
    ) -> str | None:
        """A conversation as the template writes it; None if the template rejects it."""
        try:
            return self._template(messages, generate, tools)
        except Rejected:
            return None

    @cached_property
    def pad_id(self) -> int:
        """Id that pads batches; always masked."""
        pad = self.tokenizer.pad_token_id
        return self.end_id if pad is None or pad >= self.rows else pad

    @cached_property
    def announces_tools(self) -> bool:
        """Whether the template lists the tools."""
        opening = self.as_data([Message("user", "Hi")])
        return PROBE.name in (self.rendered(opening, True, [PROBE.schema()]) or "")

    @cached_property
    def has_tool_role(self) -> bool:
        """Whether the template renders messages of the role `tool` after an answer without calls."""
        said = [Message("user", "Hi"), Message("assistant", "Hello"), Message("tool", PROBE.name)]
        return PROBE.name in (self.rendered([self._safe(m) for m in said], True, []) or "")

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return _any_of(map(str, self.tokenizer.all_special_tokens))

    @cached_property
    def _unspoken(self) -> re.Pattern[str]:
        marks = {mark for pair in REASONING for mark in pair}
        return _any_of(token for token in map(str, self.tokenizer.all_special_tokens) if token not in marks)

    def _after_assistant(self, messages: Sequence[Message], generate: bool) -> str:
        """What the template writes after an agent turn. What it writes before is not used: some templates
        rewrite it."""
        said = [Message("user", "Hi"), Message("assistant", PLACEHOLDER), *messages]
        _, found, tail = self._render(self.as_data(said), generate).partition(PLACEHOLDER)
        if not found:
            raise UserError("model.name: its chat template drops earlier agent turns; choose another model")
        return tail

    def _render(
        self, messages: list[dict[str, Any]], generate: bool, tools: Sequence[dict[str, Any]] = ()
    ) -> str:
        try:
            return self._template(messages, generate, tools)
        except Rejected as error:
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            raise UserError(
                f"model.name: its chat template rejects a conversation of {roles} ({error}); leave out "
                "task.system_prompt or choose another model"
            ) from error

    def _template(
        self, messages: list[dict[str, Any]], generate: bool, tools: Sequence[dict[str, Any]]
    ) -> str:
        tokenizer, schemas = self.tokenizer, list[Any](tools) or None
        render: Any = tokenizer.apply_chat_template
        arguments: dict[str, Any] = {"tools": schemas, "add_generation_prompt": generate}
        try:
            if any(message["content"] is None for message in messages):  # which that method drops
                arguments |= tokenizer.special_tokens_map
                arguments["chat_template"] = tokenizer.get_chat_template(tools=schemas)
                return str(render_jinja_template([messages], **arguments)[0][0])
            return str(render(messages, tokenize=False, **arguments))
        except Exception as error:  # a template is a program: it may divide by zero
            raise Rejected(" ".join(str(error).split())[:200] or type(error).__name__) from error

    def as_data(self, messages: Sequence[Message], form: ToolFormat = LINES) -> list[dict[str, Any]]:
        """Messages as the template takes them: control tokens of users and tools are broken up, and where
        calls are written by the template, each result names its call."""
        found: list[dict[str, Any]] = []
        waiting: list[tuple[int, RequestedCall]] = []  # calls without a result
        for message in messages:
            data, said = self._safe(message), message.content
            if message.role != "tool":
                waiting = []
            elif waiting:
                place, call = waiting.pop(0)
                data |= {"name": call.name, "tool_call_id": call_id(place)}
            elif not self.has_tool_role:
                data = {"role": "user", "content": TOOL_SAYS + data["content"]}
            if form.form is not None and isinstance(said, AgentTurn) and said.calls:
                data, waiting = form.rendered(said), [*enumerate(said.calls)]
            found.append(data)
        return found

    def _safe(self, message: Message) -> dict[str, Any]:
        if message.role not in ("user", "tool"):
            return {"role": message.role, "content": str(message.content)}
        content = self._controls.sub(lambda found: f"{found[0][0]} {found[0][1:]}", message.content)
        if str(self.tokenizer.chat_template).endswith(PLAIN_TEMPLATE):
            content = PLAIN_SPEAKER.sub(" ", content)
        return {"role": message.role, "content": content}

    def _encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        self._require_embeddings(ids)
        return ids

    def _require_embeddings(self, ids: list[int]) -> None:
        largest = max(ids, default=0)
        if largest >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"model.name: its tokenizer gives {token!r} the id {largest}, but the model has embeddings "
                f"for {self.rows} tokens only; put the tokenizer that belongs to it into its folder, or "
                "resize its embeddings"
            )


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, longest first."""
    longest_first = sorted(filter(str.strip, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """PLAIN_TEMPLATE, after what the tokenizer itself puts before a text (a beginning token)."""
    plain = tokenizer.encode("Hi", add_special_tokens=False)
    whole = tokenizer.encode("Hi", add_special_tokens=True)
    places = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    before = "".join(tokenizer.convert_ids_to_tokens(whole[: next(places, 0)]))
    return f"{{{{ {json.dumps(before)} }}}}{PLAIN_TEMPLATE}" if before else PLAIN_TEMPLATE


def _control_tokens(tokenizer: PreTrainedTokenizerBase, rendered: str) -> re.Pattern[str]:
    """Matches what controls a conversation: the tokenizer's control tokens, and marks that its
    template writes as plain text, in itself or in `rendered`. White-space tokens are harmless."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    tokens |= set(MARKS.findall(rendered)) | set(MARKS.findall(str(tokenizer.chat_template)))
    return _any_of(tokens)
