"""One run from configuration to summary: the command and the API both come through here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gspo_cli.agents.task import check_agent, host_of
from gspo_cli.config.checks import require
from gspo_cli.config.choices import Engine, OldLogprobs, Precision
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import trust_base
from gspo_cli.console.reporting import Reporter, ShownSample
from gspo_cli.errors import UserError, is_out_of_memory
from gspo_cli.policy.dimensions import dimensions
from gspo_cli.policy.loading import empty_model, load_policy, torch_device
from gspo_cli.policy.policy import Policy
from gspo_cli.rewards.base import RewardFunction, build
from gspo_cli.rewards.isolated import IsolatedReward
from gspo_cli.rollout.engine import RolloutEngine
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import FULL, TransformersEngine
from gspo_cli.rollout.vllm_engine import VLLMEngine, require_vllm
from gspo_cli.run.data_stamp import check_data, write_data_stamp
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.summary import RunStatus
from gspo_cli.signals import Stopped, signals_handled_by
from gspo_cli.sources import ModelSource
from gspo_cli.tasks.base import Task
from gspo_cli.tasks.levels import levels_of
from gspo_cli.training.card import Card, card_text, objective_card
from gspo_cli.training.checkpoint import Checkpoints
from gspo_cli.training.cold_start import prepare_model
from gspo_cli.training.collecting import ConversationRunner, Progress
from gspo_cli.training.evaluation import Evaluator
from gspo_cli.training.free_memory import default_cache_gb, free_bytes
from gspo_cli.training.lengths import change_settings, considered, fit_lengths, fitting, make_room_for_tools
from gspo_cli.training.memory_check import fitting_tokens, naming_what_saves_memory
from gspo_cli.training.memory_text import size_text
from gspo_cli.training.old_logprobs import choose
from gspo_cli.training.preflight import noise_floor, noise_warnings
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.training.rehearsal import Rehearsal, rehearse, stored_rehearsal
from gspo_cli.training.run_summary import summarize
from gspo_cli.training.sharing import sharing
from gspo_cli.training.stored_pairs import read_pairs, usable_pairs
from gspo_cli.training.strategy import OneProcess, Strategy
from gspo_cli.training.trainer import Parts, Trainer
from gspo_cli.training.watch import StopRequest
from gspo_cli.training.zero import ZeroStrategy, sharded_loading
from gspo_cli.types import Problem

ASKED = 256  # problems of each split whose prompts are measured for the card


def run_training(
    config: RunConfig,
    folder: RunFolder,
    reporter: Reporter,
    track: Callable[[dict[str, Any], int], None] = lambda values, step: None,
    reward: RewardFunction | None = None,
    ranks: ProcessGroup | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Train `config` in `folder`, where its config.yaml is; resumes from the last checkpoint there.

    `reward` None takes the one that `config` names; `ranks` None is this process alone; `stop` may end the
    run after an iteration. Returns the summary, which is also written. A failure is recorded in it and
    raised. Raises UserError if another process trains in the folder."""
    if ranks is None and config.hardware.zero_stage > 0:
        raise UserError(
            "hardware.zero_stage: the processes of ZeRO are started by the gspo-train command; use "
            "that command, or hardware.zero_stage=0"
        )
    with folder.locked():
        return _run_in(config, folder, reporter, track, reward, ranks, stop)


def _run_in(
    config: RunConfig,
    folder: RunFolder,
    reporter: Reporter,
    track: Callable[[dict[str, Any], int], None],
    reward: RewardFunction | None,
    ranks: ProcessGroup | None,
    stop: StopRequest | None,
) -> dict[str, Any]:
    """`run_training` in a folder that no other process trains in."""
    check_data(folder, config)  # before anything is written
    trainer: Trainer | None = None
    status, threads = RunStatus.failed, torch.get_num_threads()
    try:
        parts = build_parts(config, folder, reporter, reward, ranks)
        trainer = Trainer(config, parts, folder, reporter, track, stop)
        trainer.resume()
        with naming_what_saves_memory(config, folder.path):
            card = measured_card(config, parts, folder, reporter, trainer.state.iteration == 0)
            text = card_text(card)
            folder.write_card(text, asdict(card))
            done = trainer.state.iteration
            reporter.begin(card.title, text, config.training.num_outer_iterations, done)
            with stop_on_signal(trainer, reporter):
                status = trainer.train()
    except KeyboardInterrupt:
        status = RunStatus.interrupted
        raise
    finally:
        if trainer is not None:
            trainer.parts.close()
        torch.set_num_threads(threads)  # the next run in this process starts from the same state
        summary = summarize(config, folder, trainer, status, reward_object=reward is not None)
        folder.write_summary(summary)
        if trainer is not None:
            reporter.end(summary)
    return summary


def measured_card(
    config: RunConfig, parts: Parts, folder: RunFolder, reporter: Reporter, fresh: bool
) -> Card:
    """The objective card with the noise floor, of which it warns, and on which it depends where old
    log-probabilities come from. Where the run is `fresh`, one update is rehearsed."""
    policy, strategy, problems = parts.policy, parts.strategy, parts.train_problems
    prompts, heldout = parts.prompts, parts.heldout_problems
    with naming_what_saves_memory(config, folder.path, measuring=True):
        floor = noise_floor(config, policy, strategy, problems, prompts, parts.sharing)
    if config.rollout.old_logprobs is OldLogprobs.auto:
        taken, why = choose(config, policy, parts.engine, floor, problems, prompts)
        chosen = {"old_logprobs": taken, "old_logprobs_chosen": why}
        change_settings(config, folder, chosen, (), reporter.warn)
    asked = (*problems[:ASKED], *heldout[:ASKED])
    longest = max(len(prompts.ids(problem.messages)) for problem in asked)
    for warning in noise_warnings(config, floor):
        reporter.warn(warning)
    rehearsal = _rehearsal(config, parts, reporter) if fresh else stored_rehearsal(folder)
    sizes = (parts.drawn, len(heldout), longest)
    return objective_card(config, policy, *sizes, floor, parts.sharing, strategy.ranks.size, rehearsal)


def _rehearsal(config: RunConfig, parts: Parts, reporter: Reporter) -> Rehearsal | None:
    """One update tried; None, with a warning, where there is no memory for it."""
    tried = (config, parts.policy, parts.strategy, parts.engine, parts.train_problems, parts.prompts)
    try:
        return rehearse(*tried, parts.sharing)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        parts.strategy.drop_gradient()
        reporter.warn("memory ran out while one update was tried, so the card does not say how ratios spread")
        return None


def build_parts(
    config: RunConfig,
    folder: RunFolder,
    reporter: Reporter,
    reward: RewardFunction | None = None,
    ranks: ProcessGroup | None = None,
) -> Parts:
    """Task, reward, policy (of the last checkpoint where there is one), engine, and the problems that fit."""
    set_threads(config)
    task: Task = config.task
    if config.rollout.engine is Engine.vllm:
        require_vllm()  # checked before a cold start, which takes minutes
    reward = run_reward(config) if reward is None else task.scored_by(reward)
    check_agent(task)
    levels = levels_of(task, config.training.difficulty_curriculum_start)
    held, file = levels[-1].heldout, read_pairs(config)
    write_data_stamp(folder, config)
    for note in task.notes():
        reporter.warn(note)
    ranks = ranks or ProcessGroup()
    source = ranks.first_then_all(lambda: prepare_model(config, levels, folder.initial_model, reporter.stage))
    check_source(config, source)
    fit_memory(config, source, folder, ranks, reporter.warn)
    policy, strategy = load_for_training(config, source, folder, ranks, reporter.warn)
    fit_lengths(config, policy.max_positions, folder, reporter.warn)
    if config.rollout.cache_gb is None and config.rollout.engine is Engine.transformers:
        room = ranks.agreed(default_cache_gb(policy.device, ranks.size))
        change_settings(config, folder, {"cache_gb": room}, (), reporter.warn)
    engine = build_engine(config, policy, source.base)
    fit_lengths(config, engine.max_positions, folder, reporter.warn)
    prompts = Prompts(policy.chat, task.system_prompt_and_tools())
    count = config.evaluation.problems
    levels = [replace(level, heldout=considered(level.heldout, count)) for level in levels]
    problems = [problem for level in levels for problem in (*considered(level.train), *level.heldout)]
    make_room_for_tools(config, prompts, problems, engine.max_positions, folder, reporter.warn)
    pairs = None
    if file is not None:
        said = partial(reporter.stage, "pairs")
        pairs = usable_pairs(config, file, prompts, held, reporter.warn, said)

    def fit(problems: Sequence[Problem], split: str) -> Sequence[Problem]:
        return fitting(problems, prompts, config, engine.max_positions, split, reporter.warn)

    levels = [
        replace(level, train=fit(level.train, "training"), heldout=fit(level.heldout, "held-out")[:count])
        for level in levels
    ]
    shared, agents = sharing(config, policy, strategy), host_of(task, engine, policy.chat, reporter.warn)
    return Parts(policy, strategy, reward, engine, prompts, levels, shared, agents, pairs)


def fit_memory(
    config: RunConfig,
    source: ModelSource,
    folder: RunFolder,
    ranks: ProcessGroup,
    warn: Callable[[str], None],
) -> None:
    """Lower hardware.tokens_per_microbatch to the memory that is free, and say so. Raises UserError if not
    even one conversation fits."""
    shapes = empty_model(source.base, config.model, config.hardware.precision)
    if shapes is None:
        return
    autocast = config.hardware.precision is Precision.bf16 and not config.model.use_lora
    device = torch_device(config.hardware)
    free = min(ranks.gather([free_bytes(device) // (ranks.size if device.type == "cpu" else 1)]))
    asked = config.hardware.tokens_per_microbatch
    tokens = fitting_tokens(config, dimensions(shapes, autocast), free, ranks.size)
    if tokens < asked:
        why = f"in place of {asked}, to fit the {size_text(free)} of memory that are free"
        changed = {"tokens_per_microbatch": tokens, "resized": why}
        warn(f"hardware.tokens_per_microbatch={tokens}: {why}")
        change_settings(config, folder, changed, (), warn, "hardware")


def check_source(config: RunConfig, source: ModelSource) -> None:
    """Raise UserError if a model cannot be loaded the way that a run needs it."""
    merges = source.adapter is not None and not config.model.use_lora
    what = "an adapter cannot be merged into" if merges else "a GGUF file cannot be read as"
    plain = f"write a plain folder first with gspo-export {source.place} <folder>"
    require(
        config.hardware.zero_stage < 3 or not (merges or source.is_gguf),
        f"model.name={source.place}: {what} weights that ZeRO-3 shards; {plain}, or use hardware=zero2",
    )
    require(
        config.rollout.engine is not Engine.vllm or not source.is_gguf,
        f"rollout.engine=vllm: weights cannot be pushed to a GGUF file; {plain}, or use rollout=transformers",
    )


def load_for_training(
    config: RunConfig,
    source: ModelSource,
    folder: RunFolder,
    ranks: ProcessGroup,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Policy, Strategy]:
    """The policy at `source`, or of the run's last checkpoint, with its reference; and what trains it.

    Where the source has an adapter, `note` gets a sentence that says what becomes of it."""
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoint)
    if folder.writes:
        for found in checkpoints.set_damaged_aside():
            note(found)
    ranks.wait()
    last = ranks.agreed(checkpoints.last)
    model, hardware = config.model, config.hardware
    start = source
    if last is not None:
        start = ModelSource(source.base, last) if model.use_lora else ModelSource(str(last))
    elif source.adapter is not None:
        what = f"rank {model.lora_r}, alpha {model.lora_alpha}" if model.use_lora else "merged"
        continued = "training continues the adapter" if model.use_lora else "all weights are trained, with"
        note(f"model.name: {continued} {source.adapter} ({what}) over {source.base}")
    if model.use_lora and folder.writes:
        trust_base(source.base)  # its adapters will name it
    with sharded_loading(config):
        policy = load_policy(start.base, model, hardware, start.adapter)
        if config.keeps_reference:
            policy.keep_reference(load_policy(source.base, model, hardware, source.adapter).causal_model)
        if model.use_lora and source.adapter is not None:
            policy.keep_reference_adapter(source.adapter)
        elif model.use_lora and config.algorithm.reference_refresh is not None:
            policy.refresh_reference()
    if hardware.zero_stage == 0:
        return policy, OneProcess(policy, config)
    return policy, ZeroStrategy(policy, config, ranks)


def build_engine(config: RunConfig, policy: Policy, source: str) -> RolloutEngine:
    """The rollout engine for the policy's weights; `source` is the model that the policy was loaded from."""
    if config.rollout.engine is Engine.vllm:
        return VLLMEngine(policy, source, config)
    return transformers_engine(config, policy, config.rollout.cache_gb)


def transformers_engine(
    config: RunConfig, policy: Policy, cache_gb: float | None, full: float = FULL
) -> TransformersEngine:
    """The engine whose caches take `cache_gb` GiB; half of it is for conversations that wait. `full` is as in
    `TransformersEngine`."""
    room = cache_gb or default_cache_gb(policy.device, processes=1)
    return TransformersEngine(policy, config.rollout.batch_size, int(room * 2**29), full)


def evaluate_only(
    config: RunConfig,
    source: str,
    adapter: Path | None,
    progress: Progress,
    warn: Callable[[str], None],
) -> tuple[dict[str, Any], list[ShownSample]]:
    """Held-out evaluation of the model at `source`, with its LoRA adapter. Returns the record and greedy
    answers."""
    task: Task = config.task
    set_threads(config)
    check_agent(task)
    reward, heldout = run_reward(config), task.heldout_problems()
    policy = load_trained(config, source, adapter)
    fit_lengths(config, policy.max_positions, None, warn)
    prompts = Prompts(policy.chat, task.system_prompt_and_tools())
    heldout = considered(heldout, config.evaluation.problems)
    make_room_for_tools(config, prompts, heldout, policy.max_positions, None, warn)
    heldout = fitting(heldout, prompts, config, policy.max_positions, "held-out", warn)
    engine = transformers_engine(config, policy, None)  # the run's room may be that of a larger machine
    problems = heldout[: config.evaluation.problems]
    with host_of(task, engine, policy.chat, warn) or nullcontext() as agents:
        runner = ConversationRunner(config, reward, engine, prompts, agents=agents)
        found = Evaluator(config, runner).evaluate(problems, progress)
    return found.record, [ShownSample.of(answer, 0) for answer in found.greedy]


def load_trained(config: RunConfig, source: str, adapter: Path | None) -> Policy:
    """The policy of a checkpoint (see `RunFolder.checkpoint_model`); one without an adapter gets none, or, if
    weights are quantized, a new one, which changes nothing. Where the run trains all weights, an adapter that
    it started from is merged."""
    keeps = adapter is not None or config.model.is_quantized
    model = config.model if keeps else config.model.whole()
    return load_policy(source, model, config.hardware, adapter)


def set_threads(config: RunConfig) -> None:
    """Give torch `hardware.threads` threads; null keeps torch's default."""
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)


def build_reward(config: RunConfig) -> RewardFunction:
    """The reward that `reward` names by dotted path, made with `reward_settings`, or the task's own."""
    return _reward(config.task, config.reward, config.reward_settings or {})


def _reward(task: Task, path: str | None, settings: Mapping[str, Any]) -> RewardFunction:
    return task.scored_by(None if path is None else build(path, settings))


def run_reward(config: RunConfig) -> RewardFunction:
    """`build_reward`, in a process of its own where training.isolate_reward says so."""
    training = config.training
    if not training.isolate_reward:
        return build_reward(config)
    make = partial(_reward, config.task, config.reward, config.reward_settings or {})
    return IsolatedReward(make, training.reward_concurrency, training.reward_timeout)


@contextmanager
def stop_on_signal(trainer: Trainer, reporter: Reporter) -> Iterator[None]:
    """The first Ctrl-C (SIGTERM, SIGHUP) ends the run after the current iteration, with a checkpoint; the
    second ends it at once."""

    def request(number: int) -> None:
        if trainer.stop_requested:
            raise Stopped
        trainer.stop_requested = True
        reporter.warn(
            "stopping after this iteration with a checkpoint; press Ctrl-C again to stop at once without one"
        )

    with signals_handled_by(request):
        yield
