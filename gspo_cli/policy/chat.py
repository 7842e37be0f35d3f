"""Conversations as token ids, with the model's own chat template or a plain documented one.

Token-in, token-out: what the policy sampled is never decoded and encoded again. Only the first prompt and
the messages between two agent turns are encoded here; the latter as the template's suffix after an assistant
turn."""

from __future__ import annotations

from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gspo_cli.errors import UserError
from gspo_cli.types import Message

# for tokenizers without a template, e.g. gpt2's: a line with the speaker, then what is said
# ("User:\nHi\nAssistant:\nHello<eos>\n"); the agent's words start a line, so that word boundaries do not move
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize + ':\n' + message.content }}"
    "{{ eos_token if message.role == 'assistant' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
PLACEHOLDER = "PLACEHOLDER"


class ChatFormat:
    """Encodes messages for one tokenizer. `stop_ids` end an answer; `end_id` is the one that demonstrations
    use.

    Raises UserError where the tokenizer has no end token, or its template refuses or drops messages."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generation_stop_ids: list[int]) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_TEMPLATE
        stop_ids = {*generation_stop_ids, tokenizer.eos_token_id} - {None}
        after = self._encode(self._after_assistant([], generate=False))
        # what the template writes after an answer ends it, also where a base model names another end token
        ends = after and (after[0] in stop_ids or after[0] in tokenizer.added_tokens_decoder)
        if not stop_ids and not ends:
            raise UserError("model.name: the tokenizer has no end token; set eos_token in its folder")
        self.end_id: int = after[0] if ends else (tokenizer.eos_token_id or min(stop_ids))
        self.stop_ids = frozenset(stop_ids | {self.end_id})
        self._prompts: dict[tuple[Message, ...], list[int]] = {}

    def prompt_ids(self, messages: tuple[Message, ...]) -> list[int]:
        """Ids of a conversation's opening, up to where the agent speaks."""
        if messages not in self._prompts:  # a group asks once per answer
            self._prompts[messages] = self._encode(self._render(list(messages), generate=True))
        return list(self._prompts[messages])

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an agent turn written by somebody else, end token included."""
        return [*self._encode(text), self.end_id]

    def suffix_ids(self, messages: tuple[Message, ...], last_id: int) -> list[int]:
        """Ids of what follows an agent turn that ended with `last_id`, up to where the agent speaks again."""
        ids = self._encode(self._after_assistant(list(messages), generate=True))
        # the end token that the policy sampled is its own; a cut answer is closed by the template's,
        # untrained
        return ids[1:] if ids[:1] == [self.end_id] and last_id in self.stop_ids else ids

    def text(self, ids: list[int]) -> str:
        """What an agent turn says: without its end token and other special tokens."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).strip()

    @cached_property
    def pad_id(self) -> int:
        """Filler for batches; always masked."""
        pad = self.tokenizer.pad_token_id
        return self.end_id if pad is None else pad

    def _after_assistant(self, messages: list[Message], generate: bool) -> str:
        """What the template writes after an agent turn: some rewrite what stands before, and that is never
        used."""
        opening = [Message("user", "Hi"), Message("assistant", PLACEHOLDER)]
        _, found, tail = self._render(opening + messages, generate=generate).partition(PLACEHOLDER)
        if not found:
            raise UserError("model.name: its chat template drops earlier agent turns; choose another model")
        return tail

    def _render(self, messages: list[Message], generate: bool) -> str:
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        template = self.tokenizer.apply_chat_template
        try:
            return template(conversation, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            roles = ", ".join(dict.fromkeys(m.role for m in messages))
            raise UserError(
                f"model.name: its chat template refuses a conversation of {roles} ({error}); leave out "
                "task.system_prompt or choose another model"
            ) from error

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)
