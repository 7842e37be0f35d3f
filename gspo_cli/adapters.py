"""adapter_config.json of a LoRA adapter: what it adapts, over which base, and whether that can be trained on
exactly. Free of torch and peft."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gspo_cli.errors import UserError
from gspo_cli.plain_files import require_plain

CONFIG = "adapter_config.json"
LONGEST_PATH = 4096
FILES = ("adapter_model.safetensors", "adapter_model.bin")
# fields of peft's LoraConfig that scoring, merging and export reproduce exactly
EXACT = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
    "layers_to_transform",
    "layers_pattern",
)
# fields that change nothing once the adapter has its weights; dropout is always off
WITHOUT_EFFECT = {
    "base_model_name_or_path",
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "inference_mode",
    "lora_dropout",
    "init_lora_weights",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
}
# initializations that leave the base as it is; the others (pissa, olora, ...) subtract the adapter from it
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterSettings:
    """`lora` holds the arguments of peft's LoraConfig. `base` is what the adapter was trained over, as it is
    written there, None where it is not."""

    lora: Mapping[str, Any]
    base: str | None

    @property
    def adapts_experts(self) -> bool:
        """Whether fused weights of experts are adapted."""
        return bool(self.lora.get("target_parameters"))


def read_adapter(folder: Path) -> AdapterSettings:
    """The settings of the adapter in `folder`. Raises UserError if they cannot be read, or are not those of a
    plain LoRA adapter of a causal language model."""
    path = folder / CONFIG
    require_plain(path, links=True)  # a cache of the hub consists of links
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); restore the file") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a JSON object; restore the file")
    _check_kind(path, values)
    if not any((folder / name).is_file() for name in FILES):
        raise UserError(f"model.name={folder}: has no weights ({FILES[0]}); give a complete adapter folder")
    base, targets = values.get("base_model_name_or_path"), values.get("target_modules")
    if base is not None and not (isinstance(base, str) and len(base) < LONGEST_PATH):
        raise UserError(f"{path}: base_model_name_or_path is not the name of a model; restore the file")
    each = targets if isinstance(targets, list) else [targets]
    if targets is not None and not all(isinstance(target, str) for target in each):
        raise UserError(f"{path}: target_modules={targets} are not names of modules; restore the file")
    lora = {name: values[name] for name in EXACT if values.get(name) is not None}
    return AdapterSettings({"r": 8, "lora_alpha": 8, "target_modules": None} | lora, base or None)


def _check_kind(path: Path, values: Mapping[str, Any]) -> None:
    kind, task, start = (values.get(key) for key in ("peft_type", "task_type", "init_lora_weights"))
    folder = path.parent
    if kind != "LORA":
        raise UserError(f"model.name={folder}: is an adapter of type {kind}; only LoRA adapters can be used")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(
            f"model.name={folder}: is an adapter for {task}, not for a causal language model; give one "
            "with task_type CAUSAL_LM"
        )
    if start is not None and start not in PLAIN_STARTS:
        raise UserError(
            f"model.name={folder}: init_lora_weights={start} changed the base that it belongs to; convert "
            "it with peft (save_pretrained with path_initial_model_for_weight_conversion), or merge it there"
        )
    fix = "merge it with peft (merge_and_unload) and give the merged folder"
    for name in ("r", "lora_alpha"):
        value = values.get(name, 1)
        if type(value) is not int or value < 1:
            raise UserError(f"{path}: {name}={value} must be a whole number above 0; restore the file")
    for name, value in values.items():
        # fields of other LoRA variants have an effect where they are set
        if name not in EXACT and name not in WITHOUT_EFFECT and value and value != "none":
            raise UserError(f"model.name={folder}: {name}={value} in {CONFIG}: is not supported; {fix}")
