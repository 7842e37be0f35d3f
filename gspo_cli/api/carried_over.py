"""Names of TRL and of the GSPO guide that a `GSPOConfig` takes beside its own, and why it refuses others."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig

from gspo_cli.config.checks import require
from gspo_cli.config.hints import ELSEWHERE, leaves
from gspo_cli.config.schema import RunConfig

# what each sets in the configuration
CARRIED = {
    "num_iterations": "training.passes",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_steps": "evaluation.every",
    "warmup_steps": "training.warmup_iterations",
    "lr_scheduler_type": "training.schedule",
    "max_grad_norm": "training.max_grad_norm",
    "weight_decay": "training.weight_decay",
    "top_k": "rollout.top_k",
    "bf16": "hardware.precision",
    "lora_target_modules": "model.lora_target_modules",
    "per_device_train_batch_size": "hardware.tokens_per_microbatch",
}
# the only value that each may have, and why
FIXED: dict[str, tuple[float, str]] = {
    "lora_dropout": (0, "dropout makes the ratio of an unchanged policy differ from 1"),
    "logging_steps": (1, "every iteration is logged"),
}
REFUSED = {
    "model_name": "the agent names its model, as in AgentConfig(model_name=...)",
    "fp16": "gradients in fp16 would need loss scaling, so use bf16=True",
    "use_cpu": 'the agent names its device, as in AgentConfig(device="cpu")',
    "mini_batch_size": "updates_per_rollout splits the answers of an iteration into updates",
    "num_episodes": "num_outer_iterations and generations_per_iteration decide how much is sampled",
    "num_epochs": "each iteration samples new answers; num_outer_iterations says how many there are",
    "num_train_epochs": "each iteration samples new answers; num_outer_iterations says how many there are",
    "warmup_ratio": "warmup_steps says for how many iterations the learning rate rises",
    "clip_ratio": "the two sides of the clip range differ; use clip_range_left and clip_range_right",
    "repetition_penalty": "the ratio is defined for the distribution that was sampled, which it would change",
    "use_reference_model": "beta above 0 keeps a reference, and beta=0 keeps none",
    "reward_clip": "the reward is trained on as it is; clip it in the reward function",
    "early_stopping": 'overrides=["evaluation.stop_at_score=0.9"] ends a run at a held-out score',
    "patience": "a callback may end a run: its on_evaluation returns False",
    "auto_adjust": "nothing is adjusted in silence; gspo-doctor says what to change",
    "wandb_entity": "wandb reads it from the variable WANDB_ENTITY",
    "wandb_notes": "wandb reads them from the variable WANDB_NOTES",
}
PRECISIONS = {True: "bf16", False: "fp32"}


def check_carried(values: Mapping[str, Any]) -> None:
    """Raise UserError on a value of a carried name that has no counterpart here."""
    for name, (only, why) in FIXED.items():
        given = values[name]
        require(
            given is None or given == only, f"GSPOConfig.{name}={given}: {why}; leave it out, or give {only}"
        )
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        given = values[name]
        whole = isinstance(given, int) and not isinstance(given, bool) and given > 0
        require(given is None or whole, f"GSPOConfig.{name}={given}: give a whole number above 0")
    for name in ("bf16", "use_gspo_token"):
        given = values[name]
        require(given is None or isinstance(given, bool), f"GSPOConfig.{name}={given}: give True or False")


def carried(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of carried names that were given, by their key; not those that depend on others."""
    found = {
        key: values[name]
        for name, key in CARRIED.items()
        if values[name] is not None and name != "per_device_train_batch_size"
    }
    if "hardware.precision" in found:
        found["hardware.precision"] = PRECISIONS[found["hardware.precision"]]
    layers = found.get("model.lora_target_modules")
    if layers is not None:
        found["model.lora_target_modules"] = [layers] if isinstance(layers, str) else list(layers)
    return found


def carried_sizes(node: DictConfig, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that follow the lengths of a composed configuration, by key; and what became of the sizes
    of a batch, in sentences."""
    answers, steps = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    found: dict[str, Any] = {}
    notes = []
    if answers is not None:
        tokens = answers * (node.rollout.max_prompt_length + node.rollout.max_completion_length)
        found["hardware.tokens_per_microbatch"] = tokens
        notes.append(
            f"hardware.tokens_per_microbatch={tokens}: per_device_train_batch_size={answers}, counted in the "
            "tokens of the longest prompts and answers"
        )
    if steps is not None:
        notes.append(
            f"gradient_accumulation_steps={steps}: changes nothing; all micro-batches of an update are "
            "accumulated, and updates_per_rollout says how many updates there are"
        )
    return found, notes


def not_a_setting(name: str, known: Collection[str], keys: Mapping[str, str]) -> str:
    """Why `name` is no setting of a GSPOConfig, and what sets the same, in one sentence; `keys` is where its
    settings go."""
    if name in REFUSED:
        return f"GSPOConfig.{name}: is not a setting; {REFUSED[name]}"
    return f"GSPOConfig.{name}: is not a setting; {_hint(name, known, keys)}"


def _hint(name: str, known: Collection[str], keys: Mapping[str, str]) -> str:
    same = [key for key in leaves(RunConfig) if key.rpartition(".")[2] == name]
    key = ELSEWHERE.get(name) or (min(same, key=lambda path: path.count(".")) if same else "")
    of_ours = next((own for own, place in keys.items() if place == key), None)
    if of_ours is not None:
        return f"{of_ours} sets that here"
    close = difflib.get_close_matches(name, known, n=1)
    if "." in key and not key.startswith(("hydra.", "task.")):
        return f'overrides=["{key}=..."] sets that here'
    return f"did you mean {close[0]}?" if close else f"available settings are {', '.join(known)}"
