"""Models in GGUF files (the format of llama.cpp and Ollama) as plain transformers models."""

from __future__ import annotations

import importlib.util
import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from gspo_cli.config.extras import install
from gspo_cli.errors import FOREIGN, UserError, as_exception, is_out_of_memory

MAGIC = b"GGUF"


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The dequantized model of a GGUF file, in `dtype`, and its tokenizer.

    The library marks the model that it returns as quantized, and then refuses to save it. This one is built
    anew from the same configuration and tensors. Raises UserError if the file cannot be read or its
    architecture is not supported."""
    _require_readable(path)
    try:
        # in a folder of its own, because the library also reads other files beside it, adapters included;
        # stderr is that of a progress bar that has no switch
        with TemporaryDirectory() as alone, redirect_stderr(io.StringIO()):
            (Path(alone) / "model.gguf").symlink_to(path.absolute())
            where = {"pretrained_model_name_or_path": alone, "gguf_file": "model.gguf"}
            read = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except FOREIGN as error:  # the library's reader trusts what a file says
        if is_out_of_memory(as_exception(error)):
            raise
        raise UserError(
            f"model.name={path}: cannot be dequantized ({' '.join(str(error).split())[:300]}); use a "
            "GGUF file of an architecture that transformers supports, or the model's own Hugging Face folder"
        ) from error
    config = read.config
    del config.quantization_config
    causal = AutoModelForCausalLM.from_config(config, dtype=dtype)
    causal.load_state_dict(read.state_dict())
    causal.tie_weights()
    causal.generation_config = read.generation_config
    return causal, _within(tokenizer, causal.get_input_embeddings().weight.shape[0])


def _within(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """The tokenizer without tokens that the model has no embedding for: the library adds an end token of its
    own to the file's vocabulary."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in described["added_tokens"] if token["id"] < rows]
    if len(kept) == len(described["added_tokens"]):
        return tokenizer
    dropped = {token["content"] for token in described["added_tokens"] if token["id"] >= rows}
    named = {role: text for role, text in tokenizer.special_tokens_map.items() if text not in dropped}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described | {"added_tokens": kept})),
        clean_up_tokenization_spaces=False,
        **named,
    )
    fast.chat_template = tokenizer.chat_template
    return fast


def _require_readable(path: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.name={path}: reading GGUF needs the package gguf; {install('gguf')}")
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise UserError(
            f"model.name={path}: cannot be read ({error.strerror}); give an existing GGUF file"
        ) from error
    if magic != MAGIC:
        raise UserError(f"model.name={path}: is not a GGUF file; give one, or a folder with config.json")
