"""Small chat templates of model families, written for tests after what each family publishes: how a turn is
marked, how tools are announced, how calls and their results are written."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gspo_cli.policy.chat import ChatFormat

# the tokens that end a turn, and the form that is expected
FAMILIES = {
    "qwen3": (["<|im_end|>"], "Hermes JSON"),
    "thinks-at-once": (["<|im_end|>"], "Hermes JSON"),
    "qwen3-coder": (["<|im_end|>"], "Qwen XML"),
    "glm-4.5": (["<|im_end|>"], "GLM XML"),
    "llama-3.1": (["<|eot_id|>"], "Llama JSON"),
    "llama-4": (["<|eot_id|>"], "Llama Python"),
    "mistral-v3": (["</s>"], "Mistral JSON"),
    "mistral-v11": (["</s>"], "Mistral arguments"),
    "deepseek-v3": (["<｜end▁of▁sentence｜>"], "DeepSeek blocks"),
    "deepseek-v3.1": (["<｜end▁of▁sentence｜>"], "DeepSeek JSON"),
    "gpt-oss": (["<|end|>", "<|return|>", "<|call|>"], "gpt-oss channels"),
    "functiongemma": (["<end_of_turn>"], "Gemma calls"),
    "olmo-3": (["<|im_end|>"], "OLMo Python"),
    "phi-4-mini": (["<|end|>"], "Phi JSON"),
    "granite-3": (["<|end_of_text|>"], "Granite JSON"),
    "command-a": (["<|END_OF_TURN_TOKEN|>"], "Command actions"),
    "kimi-k2": (["<|im_end|>"], "Kimi sections"),
}


def template(name: str) -> str:
    """The template of a family."""
    path = Path(__file__).parent / "tool_templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8").removesuffix("\n")


def family_chat(tokenizer: PreTrainedTokenizerBase, name: str) -> ChatFormat:
    """The chat format of `tokenizer` with the template and the end tokens of a family."""
    ends, _ = FAMILIES[name]
    tokenizer.add_special_tokens({"additional_special_tokens": [*ends, "<tool_call>", "</tool_call>"]})
    tokenizer.eos_token, tokenizer.chat_template = ends[0], template(name)
    return ChatFormat(tokenizer, [tokenizer.convert_tokens_to_ids(end) for end in ends])
