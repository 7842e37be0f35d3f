"""A Hugging Face reward model: a sequence classifier with one output, read over the whole conversation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_cli.adapters import CONFIG as ADAPTER_CONFIG
from gspo_cli.config.checks import require
from gspo_cli.errors import FOREIGN, UserError, as_exception, is_out_of_memory
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.tasks.tools.written import without_reasoning
from gspo_cli.types import Message, RewardResult, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Squash(Enum):
    """How the model's output becomes a reward."""

    none = "none"
    sigmoid = "sigmoid"


class HuggingFaceReward(RewardFunction):
    """`squash(scale * output)` of the model `name_or_folder`, a hub id or a local folder; the output itself
    is logged as `logit`.

    Conversations are rendered with the model's chat template, or as `role: text` lines where it has none, and
    truncated at the beginning where they are too long for it. `device` is by default the GPU, where there is
    one. Raises UserError if the model cannot be loaded or does not have exactly one trained output."""

    def __init__(
        self,
        name_or_folder: str,
        batch_size: int = 8,
        device: str | None = None,
        squash: str = "none",
        scale: float = 1.0,
    ) -> None:
        choices = [choice.value for choice in Squash]
        require(squash in choices, f"squash={squash}: choose one of {', '.join(choices)}")
        require(batch_size > 0, f"batch_size={batch_size}: must be above 0")
        self.squash, self.scale, self.batch_size = Squash(squash), scale, batch_size
        self.tokenizer, self.model = load(name_or_folder, device)
        positions = self.model.config.get_text_config().max_position_embeddings
        self.longest = min(self.tokenizer.model_max_length, positions)

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """The reward of one conversation."""
        [result] = self.compute_rewards([trajectory])
        return result

    def compute_rewards(self, trajectories: Sequence[Trajectory]) -> list[RewardResult]:
        """The rewards of all conversations, `batch_size` at a time, sorted by length to save padding."""
        texts = [conversation_text(self.tokenizer, trajectory.messages) for trajectory in trajectories]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        logits = [0.0] * len(texts)
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            for place, logit in zip(places, self._logits([texts[p] for p in places]), strict=True):
                logits[place] = logit
        return [RewardResult(self._reward(logit), {"logit": logit}) for logit in logits]

    def _logits(self, texts: list[str]) -> list[float]:
        import torch

        batch = self.tokenizer(
            texts,
            add_special_tokens=self.tokenizer.chat_template is None,  # a template writes its own
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = self.model(
                input_ids=batch["input_ids"].to(self.model.device),
                attention_mask=batch["attention_mask"].to(self.model.device),
            )
        return output.logits[:, 0].float().tolist()

    def _reward(self, logit: float) -> float:
        value = self.scale * logit
        return 0.5 + 0.5 * math.tanh(value / 2) if self.squash is Squash.sigmoid else value


def load(name_or_folder: str, device: str | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model in eval mode. Raises UserError if they cannot be used as a reward model."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    require(
        not (Path(name_or_folder) / ADAPTER_CONFIG).is_file(),
        f"name_or_folder={name_or_folder}: is an adapter, which the library would load over any base that it "
        "names; merge it with peft (merge_and_unload) and give the merged folder",
    )
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = torch.float32 if place == "cpu" else "auto"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_folder, truncation_side="left", padding_side="right"
        )
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name_or_folder, dtype=precision, output_loading_info=True
        )
    except FOREIGN as error:  # the files of a model may hold anything
        found = as_exception(error)
        if is_out_of_memory(found):
            raise
        reason = " ".join(str(found).split())[:300]
        raise UserError(f"name_or_folder={name_or_folder}: cannot be loaded ({reason})") from error
    outputs = model.config.num_labels
    require(
        outputs == 1,
        f"name_or_folder={name_or_folder}: has {outputs} outputs; a reward model has exactly one",
    )
    for missing in sorted(report["missing_keys"]):
        raise UserError(
            f"name_or_folder={name_or_folder}: is not a reward model ({missing} is not in its files)"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model.to(place).eval()


def conversation_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The conversation as the model reads it. Control tokens spelled out in a message are broken up, so that
    no message can end early or pretend to be another's."""
    said = [(m.role, without_reasoning(m.content) if m.role == "assistant" else m.content) for m in messages]
    plain = [{"role": role, "content": _disarmed(tokenizer, text)} for role, text in said]
    if tokenizer.chat_template is None:
        lines = [f"{message['role']}: {message['content']}" for message in plain]
        return "\n".join(line.replace("\n", "\n  ") for line in lines)  # only a message starts a line
    return str(tokenizer.apply_chat_template(plain, tokenize=False))


def _disarmed(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for token in sorted(control, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
