"""Models that need no download: a small Qwen3 or Qwen3-MoE, and a tokenizer trained on the task's text.

Both are written as an ordinary model folder, which is then loaded like any other model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from gspo_cli.config.model_schema import Shape

PAD, END = "<|pad|>", "<|end|>"
ROLES = [f"<|{role}|>" for role in ("system", "user", "assistant", "tool")]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits and a chat template with one token per role; encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=ROLES,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def build_model(shape: Shape, vocabulary: int, seed: int) -> PreTrainedModel:
    """A newly initialized model of `shape` with tied embeddings; the same seed gives the same weights."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if shape.experts == 0:
            return Qwen3ForCausalLM(Qwen3Config(**common))
        return Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **common,
                num_experts=shape.experts,
                num_experts_per_tok=shape.experts_per_token,
                moe_intermediate_size=shape.intermediate_size,
                norm_topk_prob=True,
            )
        )


def write_embedded(folder: Path, shape: Shape, seed: int, texts: Iterable[str]) -> None:
    """Build tokenizer and model and save them to `folder`."""
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    model = build_model(shape, len(tokenizer), seed)
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    model.config.update(ids)
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
