"""Whether a run fits the memory that its device has free, before weights are loaded; and what to type where
it runs out after all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gspo_cli.config.choices import Device, Engine
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.typed import override
from gspo_cli.errors import UserError, is_out_of_memory
from gspo_cli.policy.dimensions import Dimensions
from gspo_cli.training.memory_plan import longest_conversation, memory_plan
from gspo_cli.training.memory_text import size_text

# how many times what autograd keeps a CPU's allocator takes: it leaves holes of freed parts between kept ones
HOLES = {Device.cpu: 2.0, Device.cuda: 1.0}
PASSING = ("activations", "logits", "working")  # parts that come and go in an update


def fitting_tokens(config: RunConfig, model: Dimensions, free: int, ranks: int = 1) -> int:
    """hardware.tokens_per_microbatch, or the largest half, quarter, ... of it with which an update fits into
    `free` bytes. Raises UserError with the settings that help if not even a single conversation does."""
    longest, tokens = longest_conversation(config, model.positions), config.hardware.tokens_per_microbatch
    while needed(config, model, tokens, ranks, HOLES[config.hardware.device]) > free and tokens > longest:
        tokens //= 2
    tokens = max(tokens, min(longest, config.hardware.tokens_per_microbatch))
    least = needed(config, model, tokens, ranks)
    if least > free:
        where = "GPU" if config.hardware.device is Device.cuda else "machine"
        raise UserError(
            f"model.name={config.model.name}: an update on one conversation of {longest:,} tokens takes "
            f"{size_text(least)}, and {size_text(free)} of the {where}'s memory is free; "
            f"{_help(config, model, free, ranks)}"
        )
    return tokens


def needed(config: RunConfig, model: Dimensions, tokens: int, ranks: int, holes: float = 1.0) -> int:
    """Bytes of an update, or of its optimizer step, with micro-batches of `tokens`."""
    hardware = replace(config.hardware, tokens_per_microbatch=tokens)
    plan = memory_plan(replace(config, hardware=hardware), model, ranks)
    update = sum(size * (holes if part in PASSING else 1) for part, size in plan.phases["update"].items())
    return int(max(update, plan.total("step")))


def require_smaller(error: RuntimeError, halves: bool, budget: int, stage: str) -> None:
    """Raise `error`, which ended `update` or `score`, unless memory ran out and micro-batches of `budget`
    tokens have halves: then UserError with what helps."""
    if not is_out_of_memory(error):
        raise error
    if not halves:
        when, instead = {
            "update": ("in an update", "use model.gradient_checkpointing"),
            "score": ("while answers were scored", "start anew with a lower rollout.max_completion_length"),
        }[stage]
        raise UserError(
            f"hardware.tokens_per_microbatch={budget}: memory ran out {when}; lower it and resume from the "
            f"last checkpoint, or {instead}"
        ) from error


@contextmanager
def naming_what_saves_memory(config: RunConfig, folder: Path, measuring: bool = False) -> Iterator[None]:
    """Raise UserError where memory runs out in a rollout or an evaluation, or, with `measuring`, in what a
    micro-batch takes before training. Where answers are scored or trained on, micro-batches are reduced
    first; see `require_smaller`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if measuring:
            key, value = "hardware.tokens_per_microbatch", config.hardware.tokens_per_microbatch
            when = "on a micro-batch before training"
        else:
            name = "vllm_memory" if config.rollout.engine is Engine.vllm else "cache_gb"
            key, value, when = f"rollout.{name}", getattr(config.rollout, name), "outside of an update"
        raise UserError(
            f"{key}={value}: memory ran out {when}; go on with {override('resume', folder)} {key}=<less>"
        ) from error


def _help(config: RunConfig, model: Dimensions, free: int, ranks: int) -> str:
    """The setting that makes a conversation fit, if there is one."""
    longest = longest_conversation(config, model.positions)
    if not config.model.gradient_checkpointing:
        again = replace(config, model=replace(config.model, gradient_checkpointing=True))
        if needed(again, model, longest, ranks) <= free:
            return "use model.gradient_checkpointing=true"
    if not config.model.use_lora:
        return "use model.use_lora=true, or a smaller model"
    if model.weights < free:
        return "lower rollout.max_prompt_length or rollout.max_completion_length, or use a smaller model"
    return "use model.use_4bit=true, or a smaller model"
