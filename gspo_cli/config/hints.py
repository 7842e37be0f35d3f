"""What to type: the values that a setting takes, and the setting that an unknown name means."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from gspo_cli.config.missing import MISSING

# names of TRL, verl, ms-swift and the guide, and what sets the same here
ELSEWHERE = {
    "lr": "algorithm.learning_rate",
    "actor_learning_rate": "algorithm.learning_rate",
    "kl_coef": "algorithm.beta",
    "kl_loss_coef": "algorithm.beta",
    "kl_coefficient": "algorithm.beta",
    "group_size": "training.num_generations",
    "rollout_n": "training.num_generations",
    "n": "training.num_generations",
    "num_iterations": "training.passes",
    "ppo_epochs": "training.passes",
    "num_ppo_epochs": "training.passes",
    "mini_batches": "training.updates_per_rollout",
    "generation_batch_size": "training.generations_per_iteration",
    "train_batch_size": "training.generations_per_iteration",
    "batch_size": "training.generations_per_iteration",
    "per_device_train_batch_size": "hardware.tokens_per_microbatch",
    "gradient_accumulation_steps": "hardware.tokens_per_microbatch",
    "ppo_micro_batch_size_per_gpu": "hardware.tokens_per_microbatch",
    "ppo_max_token_len_per_gpu": "hardware.tokens_per_microbatch",
    "ppo_mini_batch_size": "training.updates_per_rollout",
    "epsilon": "algorithm.clip_range_left",
    "epsilon_low": "algorithm.clip_range_left",
    "clip_ratio_low": "algorithm.clip_range_left",
    "cliprange": "algorithm.clip_range_left",
    "clip_ratio": "algorithm.clip_range_left",
    "clip_range": "algorithm.clip_range_left",
    "epsilon_high": "algorithm.clip_range_right",
    "clip_ratio_high": "algorithm.clip_range_right",
    "entropy_coeff": "algorithm.entropy_coefficient",
    "entropy_coef": "algorithm.entropy_coefficient",
    "entropy_loss_coef": "algorithm.entropy_coefficient",
    "target_entropy": "algorithm.entropy_floor",
    "top_entropy_quantile": "algorithm.high_entropy_tokens",
    "delta": "algorithm.clip_ratio_dual",
    "clip_ratio_c": "algorithm.clip_ratio_dual",
    "sapo_temperature_pos": "algorithm.tau_pos",
    "sapo_temperature_neg": "algorithm.tau_neg",
    "use_bias_correction_kl": "algorithm.kl_bias_corrected",
    "off_policy_mask_threshold": "algorithm.off_policy_mask",
    "overlong_buffer_len": "algorithm.overlong_buffer",
    "soft_cache_length": "algorithm.overlong_buffer",
    "multi_objective_aggregation": "algorithm.advantage_parts",
    "lam": "algorithm.value.gae_lambda",
    "gae_lambda": "algorithm.value.gae_lambda",
    "cliprange_value": "algorithm.value.clip",
    "vf_coef": "algorithm.value.coefficient",
    "critic_lr": "algorithm.value.learning_rate",
    "ref_model_sync_steps": "algorithm.reference_refresh",
    "sync_ref_model": "algorithm.reference_refresh",
    "loss_type": "algorithm.aggregation",
    "loss_agg_mode": "algorithm.aggregation",
    "importance_sampling_level": "algorithm.ratio_level",
    "scale_rewards": "algorithm.advantage_scale",
    "adv_estimator": "algorithm.advantage_baseline",
    "mask_truncated_completions": "algorithm.truncated_completions",
    "vllm_importance_sampling_correction": "algorithm.engine_correction",
    "vllm_importance_sampling_cap": "algorithm.engine_correction_max",
    "router_aux_loss_coef": "model.router_aux_loss",
    "max_steps": "training.num_outer_iterations",
    "num_train_epochs": "training.num_outer_iterations",
    "total_epochs": "training.num_outer_iterations",
    "total_training_steps": "training.num_outer_iterations",
    "iterations": "training.num_outer_iterations",
    "epochs": "training.num_outer_iterations",
    "warmup_steps": "training.warmup_iterations",
    "lr_scheduler_type": "training.schedule",
    "optim": "training.optimizer",
    "grad_clip": "training.max_grad_norm",
    "reward_timeout_s": "training.reward_timeout",
    "max_response_length": "rollout.max_completion_length",
    "max_new_tokens": "rollout.max_completion_length",
    "max_tokens": "rollout.max_completion_length",
    "gpu_memory_utilization": "rollout.vllm_memory",
    "vllm_gpu_memory_utilization": "rollout.vllm_memory",
    "use_vllm": "rollout.engine",
    "model_name_or_path": "model.name",
    "model_path": "model.name",
    "lora_rank": "model.lora_r",
    "target_modules": "model.lora_target_modules",
    "load_in_4bit": "model.use_4bit",
    "load_in_8bit": "model.use_8bit",
    "attn_implementation": "model.attention",
    "enable_gradient_checkpointing": "model.gradient_checkpointing",
    "bf16": "hardware.precision",
    "dtype": "hardware.precision",
    "torch_dtype": "hardware.precision",
    "num_processes": "hardware.processes",
    "n_gpus_per_node": "hardware.processes",
    "nnodes": "hardware.nodes",
    "report_to": "logging.report_to",
    "logger": "logging.report_to",
    "project_name": "logging.wandb_project",
    "experiment_name": "logging.run_name",
    "output_dir": "hydra.run.dir",
    "default_local_dir": "hydra.run.dir",
    "save_steps": "checkpoint.every",
    "save_freq": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_steps": "evaluation.every",
    "test_freq": "evaluation.every",
    "resume_from_checkpoint": "resume",
    "reward_funcs": "reward",
    "reward_function": "reward",
    "dataset_name": "task.path",
    "train_files": "task.path",
}
MAPPING = "give {name: value}"
SIMPLE = {bool: "give true or false", int: "give a whole number", float: "give a number", str: "give text"}


def expected(cls: Any, name: str) -> str:
    """What to type for the field `name` of a dataclass, with its default as an example; empty if there is no
    such field."""
    field = next((each for each in fields(cls) if each.name == name), None) if is_dataclass(cls) else None
    if field is None:
        return ""
    kinds = [kind for kind in _alternatives(get_type_hints(cls)[name]) if kind is not type(None)]
    nullable = len(kinds) < len(_alternatives(get_type_hints(cls)[name]))
    said = _of_kind(kinds[0]) if kinds else "leave it out"
    default = field.default
    if isinstance(default, bool | Enum) or default in (NO_DEFAULT, MISSING, None, ""):
        example = ""
    else:
        example = f" such as {default}"
    return f"{said}{example}{', or null' if nullable else ''}"


def meant(key: str, root: Any) -> str:
    """What an unknown key probably means among the settings under the dataclass `root`: one of the same name
    in another group, one that is called otherwise elsewhere, one that is spelled alike. Empty if none is
    near."""
    name, known = key.rpartition(".")[2], list(leaves(root))
    same = [path for path in known if path.rpartition(".")[2] == name]
    if same:
        depth = min(path.count(".") for path in same)
        return f"did you mean {' or '.join(path for path in same if path.count('.') == depth)}?"
    if name in ELSEWHERE:
        return f"{ELSEWHERE[name]} sets that here"
    group = key.rpartition(".")[0]
    inside = [path for path in known if path.rpartition(".")[0] == group]
    groups = [field.name for field in fields(root)]
    for candidates in (inside, known, groups):
        names = {path.rpartition(".")[2]: path for path in candidates}
        close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.75)
        if close:
            return f"did you mean {names[close[0]]}?"
    return ""


def meant_of_task(key: str, cls: Any) -> str:
    """`meant` for an unknown key `task.<name>` or below among the settings of a task's dataclass: how it is
    added where the task has it, else one that is spelled alike. Empty if none is near."""
    _, name, *inner = key.split(".")
    names = [field.name for field in fields(cls)]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        return f"did you mean task.{close[0]}?" if close else ""
    if not inner:
        return f"type +{key}=... to add it"
    to_type = expected(cls, name)
    if to_type.startswith(MAPPING):
        return f"type +{key}=..., or task.{name}={{{'.'.join(inner)}: ...}}"
    return f"task.{name} has no parts: {to_type}"


def leaves(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the settings of a dataclass and of those inside it."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        kind = hints[field.name]
        if is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _alternatives(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def _of_kind(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"choose one of {', '.join(str(member.value) for member in kind)}"
    if get_origin(kind) is list:
        return "give a list, as in [a,b]"
    if kind is Any or get_origin(kind) is dict:
        return MAPPING
    if is_dataclass(kind):
        inner = next(iter(fields(kind))).name
        return f"is a section: give single settings, as in <section>.{inner}=..."
    return SIMPLE.get(kind, "give another value")
