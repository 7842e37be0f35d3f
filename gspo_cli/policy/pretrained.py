"""Plain pretrained models and their tokenizers, from a folder, a GGUF file or the hub."""

from __future__ import annotations

import logging
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gspo_cli.errors import FOREIGN, UserError, as_exception, is_out_of_memory
from gspo_cli.hub import ask_hub
from gspo_cli.policy.gguf import load_gguf
from gspo_cli.policy.soundness import require_complete
from gspo_cli.user_cache import fetched_model

# what it prints about weights is what require_complete reads
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: "LOAD REPORT" not in record.getMessage()
)

REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
SCRIPTED = {"HuggingFaceTB/SmolLM2-135M-Instruct": "make smollm2"}  # by hub id, what fetches a copy


def load_pretrained(
    base: str, dtype: torch.dtype, trust_remote_code: bool, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model at `base` in `dtype` and its tokenizer; `options` are for `from_pretrained`. The model
    remembers `base` as its name, which adapters write down. Raises UserError if it cannot be loaded."""
    if Path(base).is_file():
        if options:
            raise UserError(
                f"model.name={base}: weights of a GGUF file cannot be quantized again; set "
                "model.use_4bit=false and model.use_8bit=false"
            )
        causal, tokenizer = load_gguf(Path(base), dtype)
    else:
        hub = {} if Path(base).is_dir() else _hub_options(base)
        common = {"trust_remote_code": trust_remote_code, **hub}
        try:
            with warnings.catch_warnings():
                # weights stored quantized are loaded as they are, which require_as_configured checks
                warnings.filterwarnings("ignore", message="You passed `quantization_config`")
                # what is missing, or of another size, is reported, and refused below
                causal, report = cast(
                    "tuple[PreTrainedModel, dict[str, Any]]",
                    AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **REPORTED, **common, **options),
                )
            tokenizer = AutoTokenizer.from_pretrained(base, **common)
        except FOREIGN as error:  # the files of a model may hold anything
            raise _unreadable(base, error) from error
        require_complete(base, report)
    if getattr(causal, "_hf_peft_config_loaded", False):
        raise UserError(
            f"model.name={base}: is a LoRA adapter on the hub; download it (hf download {base} --local-dir "
            "<folder>) and give the folder"
        )
    causal.name_or_path = base
    return causal, tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in an adapter's folder; None if it has none. Its own code is never run."""
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except FOREIGN as error:
        reason = " ".join(str(as_exception(error)).split())[:200]
        raise UserError(
            f"model.name={folder}: its tokenizer cannot be loaded ({reason}); "
            "restore its files, or remove them to use the base's"
        ) from error


def load_config(base: str, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of the model at `base`, a hub id or a model folder. Raises UserError if it is not
    there."""
    hub = {} if Path(base).is_dir() else _hub_options(base)
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code, **hub)
    except FOREIGN as error:
        raise _unreadable(base, error) from error


def stored_dtype(base: str, trust_remote_code: bool) -> torch.dtype:
    """The precision that the weights at `base` are stored in; bf16 for GGUF files, whose weights were rounded
    to fewer bits. Raises UserError if the model is not there."""
    if Path(base).is_file():
        return torch.bfloat16
    config = load_config(base, trust_remote_code)
    found = config.get_text_config().dtype or config.dtype
    known = (torch.float32, torch.bfloat16, torch.float16)
    return found if found in known else torch.float32


@lru_cache
def _hub_options(name: str) -> dict[str, bool]:
    """Options of `from_pretrained` for a hub id. Without the hub only cached files are used, at once: the
    library itself would ask again for most of a minute. Raises UserError if there is no such model."""
    cached = False
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        ask_hub(name, "model")
    except Exception as error:  # the client's own errors, and those of two HTTP libraries
        if cached:
            return {"local_files_only": True}
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise unusable(name, f"no such folder is here, and the hub does not serve it: {reason}") from error
    return {}


def _unreadable(base: str, error: BaseException) -> Exception:
    """What to raise where a library could not load the model at `base`."""
    found = as_exception(error)
    reason = " ".join(str(found).split())[:300] or type(found).__name__
    return found if is_out_of_memory(found) else unusable(base, reason)


def unusable(base: str, reason: str) -> UserError:
    """The error for a model that cannot be loaded, with what to type instead."""
    fix = (
        "give a hub id or a folder with config.json, weights and tokenizer, or model=tiny, which needs no "
        "download"
    )
    if base in SCRIPTED:
        folder = fetched_model(base)
        if (folder / "config.json").is_file():
            fix = f"{SCRIPTED[base]} has put a copy in {folder}: give that folder, or model=smollm2"
        else:
            fix = f"run {SCRIPTED[base]} in the checkout, which brings a copy for model=smollm2"
    return UserError(f"model.name={base}: cannot be loaded ({reason}); {fix}")
