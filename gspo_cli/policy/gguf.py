"""Models in GGUF files (the format of llama.cpp and Ollama) as plain transformers models."""

from __future__ import annotations

import importlib.util
import io
import struct
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gspo_cli.errors import UserError

MAGIC = b"GGUF"


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The dequantized model of a GGUF file, in `dtype`, and its tokenizer.

    The library marks the model that it returns as quantized, and then refuses to save it. This one is built
    anew from the same configuration and tensors. Raises UserError if the file cannot be read or its
    architecture is not supported."""
    _require_readable(path)
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        with redirect_stderr(io.StringIO()):  # of a progress bar that has no switch
            read = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, struct.error) as error:
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
    return causal, tokenizer


def _require_readable(path: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"model.name={path}: reading GGUF needs the package gguf; run pip install -e '.[gguf]' in the "
            "checkout, or pip install gguf"
        )
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise UserError(
            f"model.name={path}: cannot be read ({error.strerror}); give an existing GGUF file"
        ) from error
    if magic != MAGIC:
        raise UserError(f"model.name={path}: is not a GGUF file; give one, or a folder with config.json")
