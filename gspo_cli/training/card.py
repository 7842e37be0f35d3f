"""The objective card: what will be optimized and with which resources.

It is built as data before training starts, saved as card.json, and rendered from that as card.txt and for the
terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from gspo_cli.config.algorithm_schema import AlgorithmConfig
from gspo_cli.config.cautions import cautions
from gspo_cli.config.choices import AdvantageBaseline, Schedule
from gspo_cli.config.compose import load_saved
from gspo_cli.config.formulas import advantage_formula, formula, mean_formula, ratio_formula, value_formula
from gspo_cli.config.schema import RunConfig
from gspo_cli.console.words import number
from gspo_cli.policy.dimensions import dimensions
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.policy.weights import full_shape
from gspo_cli.sources import run_of
from gspo_cli.training.memory_plan import MemoryPlan, memory_plan
from gspo_cli.training.memory_text import memory_text
from gspo_cli.training.preflight import NoiseFloor, noise_limit, noise_text
from gspo_cli.training.rehearsal import Rehearsal, rehearsal_text
from gspo_cli.training.sharing import ALONE, Sharing


@dataclass(frozen=True)
class CardObjective:
    """What is maximized; `value` is the loss of the value head. `ratio` and `value` are empty where there
    is none. `clip_range` has the widths of the clip band below and above 1, None on an unbounded side;
    `clip_fraction` is the share of tokens that a calibrated band clips, None if it is fixed."""

    term: str
    mean: str
    ratio: str
    advantage: str
    value: str
    reference: str
    clip_range: tuple[float | None, float | None]
    clip_fraction: float | None


@dataclass(frozen=True)
class Sizes:
    """Counts. An iteration samples `prompts` x `answers_per_prompt` answers and splits them into `updates`,
    which end early at `target_kl`. `max_turns` is None for single-turn tasks, `lora_rank` where all weights
    are trained."""

    iterations: int
    prompts: int
    answers_per_prompt: int
    answers: int
    updates: int
    passes: int
    target_kl: float | None
    answers_per_update: int
    epochs: float
    train_problems: int
    heldout_problems: int
    heldout_samples: int
    microbatch_tokens: int
    max_prompt_length: int
    max_completion_length: int
    max_turns: int | None
    parameters: int
    trained_parameters: int
    lora_rank: int | None


@dataclass(frozen=True)
class CardSampling:
    """How tokens are drawn; `top_k` 0 keeps all."""

    temperature: float
    top_p: float
    top_k: int


@dataclass(frozen=True)
class Learning:
    """Settings of the optimizer."""

    rate: float
    schedule: Schedule
    warmup_iterations: int
    max_grad_norm: float


@dataclass(frozen=True)
class Card:
    """The card as data. `pairs` is the file whose pairs take the place of problems and sampled answers, empty
    where there is none. `noise` was measured before training, `noise_limit` is what the clip band tolerates,
    infinite without a band; `rehearsal` is one update tried before training, None where there is nothing to
    learn from it. Memory is in bytes by phase and part. `notes` are cautions about settings."""

    title: str
    objective: CardObjective
    sizes: Sizes
    sampling: CardSampling
    learning: Learning
    memory: MemoryPlan
    noise: NoiseFloor
    noise_limit: float
    sharing: Sharing
    source: str
    license: str
    notes: list[str]
    pairs: str = ""
    rehearsal: Rehearsal | None = None


def objective_card(
    config: RunConfig,
    policy: Policy,
    train_problems: int,
    heldout_problems: int,
    longest_prompt: int,
    noise: NoiseFloor,
    sharing: Sharing = ALONE,
    ranks: int = 1,
    rehearsal: Rehearsal | None = None,
) -> Card:
    """The card of a run on `ranks` processes; `longest_prompt` in tokens."""
    algorithm, training = config.algorithm, config.training
    with_longest = replace(config, rollout=replace(config.rollout, max_prompt_length=longest_prompt))
    return Card(
        title=f"{algorithm.name} on {config.task.name} with {config.model.label}, seed {config.seed}",
        objective=CardObjective(
            term=formula(algorithm),
            mean=mean_formula(algorithm),
            ratio=ratio_formula(algorithm),
            advantage=advantage_formula(algorithm),
            value=value_formula(algorithm),
            reference=_reference(algorithm, policy),
            clip_range=algorithm.clip_range,
            clip_fraction=algorithm.clip_fraction if algorithm.is_calibrated else None,
        ),
        sizes=_sizes(config, policy, train_problems, heldout_problems),
        sampling=CardSampling(config.rollout.temperature, config.rollout.top_p, config.rollout.top_k),
        learning=Learning(
            algorithm.learning_rate,
            training.schedule,
            training.warmup_iterations,
            training.max_grad_norm,
        ),
        memory=memory_plan(with_longest, dimensions(policy.model, policy.autocast is not None), ranks),
        noise=noise,
        noise_limit=noise_limit(config),
        sharing=sharing,
        source=config.task.source,
        license=config.task.license,
        notes=[*_chosen(config, policy), *config.notes, *cautions(config)],
        pairs=algorithm.pairs or "",
        rehearsal=rehearsal,
    )


def _chosen(config: RunConfig, policy: Policy) -> list[str]:
    """What `auto` came to, and why."""
    hardware, rollout = config.hardware, config.rollout
    found = [f"hardware: {hardware.chosen}"] if hardware.chosen else []
    if hardware.resized:
        found.append(f"hardware.tokens_per_microbatch={hardware.tokens_per_microbatch}: {hardware.resized}")
    if rollout.old_logprobs_chosen and not config.algorithm.in_pairs:  # which have no old policy
        found.append(f"rollout.old_logprobs={rollout.old_logprobs.value}: {rollout.old_logprobs_chosen}")
    if config.algorithm.has_critic and _had_critic(config.model.name):
        found.append("algorithm.value: the value head starts anew; that of model.name is not loaded")
    system = config.task.system_prompt_and_tools()
    if system.tools:
        found.append(f"tool calls: {TurnFormat(policy.chat, system).written_by}")
    return found


def _had_critic(name: str) -> bool:
    """Whether a model is of a run with a value head."""
    run = run_of(Path(name))
    if run is None:
        return False
    baseline = OmegaConf.select(load_saved(run / "config.yaml"), "algorithm.advantage_baseline")
    return bool(baseline == AdvantageBaseline.value.value)


def _sizes(config: RunConfig, policy: Policy, train_problems: int, heldout_problems: int) -> Sizes:
    training, rollout = config.training, config.rollout
    return Sizes(
        iterations=training.num_outer_iterations,
        prompts=training.prompts_per_iteration,
        answers_per_prompt=training.num_generations,
        answers=training.generations_per_iteration,
        updates=training.updates_per_iteration,
        passes=training.passes,
        target_kl=training.target_kl,
        answers_per_update=training.answers_per_update,
        epochs=training.num_outer_iterations * training.prompts_per_iteration / train_problems,
        train_problems=train_problems,
        heldout_problems=heldout_problems,
        heldout_samples=config.evaluation.samples,
        microbatch_tokens=config.hardware.tokens_per_microbatch,
        max_prompt_length=rollout.max_prompt_length,
        max_completion_length=rollout.max_completion_length,
        max_turns=None if config.task.single_turn else rollout.max_turns,
        parameters=policy.num_parameters,
        trained_parameters=sum(math.prod(full_shape(p)) for p in policy.trainable()),
        lora_rank=config.model.lora_r if policy.has_adapter else None,
    )


def _passes_text(sizes: Sizes) -> str:
    passes = "" if sizes.passes == 1 else f", in {sizes.passes} passes"
    return passes + (f", ended early at a KL of {sizes.target_kl:g}" if sizes.target_kl else "")


def card_text(card: Card) -> str:
    """The card as text: its title, then one fact per line."""
    objective, sizes, sampling = card.objective, card.sizes, card.sampling
    answers, updates = sizes.iterations * sizes.answers, sizes.iterations * sizes.updates
    each, asked = ("pairs", "pairs") if card.pairs else ("problems", "prompts")
    facts = {
        "objective": f"{objective.term}   ({objective.mean})",
        "ratio": objective.ratio,
        "band": _band_text(objective),
        "advantage": objective.advantage,
        "value": objective.value,
        "reference": objective.reference,
        "iteration": f"{sizes.prompts} {asked} x {sizes.answers_per_prompt} answers = {sizes.answers} answers"
        f" -> {sizes.updates} updates of {sizes.answers_per_update} answers{_passes_text(sizes)}",
        "run": f"{sizes.iterations} iterations = {answers:,} answers, {updates:,} updates;"
        f" about {sizes.epochs:.2g} epochs of {sizes.train_problems:,} {each}",
        "micro-batch": f"up to {sizes.microbatch_tokens:,} tokens, padding included; {_sharing_text(card)}",
        "sampling": f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g},"
        f" top_k {sampling.top_k or 'off'}; prompts to {sizes.max_prompt_length}, {_longest_answer(sizes)}",
        "learning": _learning_text(card.learning),
        "parameters": f"{sizes.trained_parameters:,} trained of {sizes.parameters:,}"
        + (f" (LoRA r={sizes.lora_rank})" if sizes.lora_rank is not None else ""),
        "memory": memory_text(card.memory),
        "noise": noise_text(card.noise, card.noise_limit),
        "spread": rehearsal_text(card.rehearsal),
        "data": f"{card.source} (license: {card.license})",
        "pairs": f"{sizes.train_problems:,} of {card.pairs}, in place of sampled answers" * bool(card.pairs),
        "held-out": f"{sizes.heldout_problems} problems, greedy and {sizes.heldout_samples} samples each",
    }
    lines = [card.title, *(f"  {name:<12}{text}" for name, text in facts.items() if text)]
    return "\n".join([*lines, *(f"  note        {text}" for text in card.notes)])


def _sharing_text(card: Card) -> str:
    """Whether common beginnings are computed once."""
    if card.sharing.on:
        return "common beginnings computed once"
    return f"each answer by itself ({card.sharing.reason})"


def _band_text(objective: CardObjective) -> str:
    """How the band moves; empty if it is fixed."""
    if objective.clip_fraction is None:
        return ""
    left, right = map(number, objective.clip_range)
    return f"calibrated to clip {objective.clip_fraction * 100:.3g}% of tokens, from {left} / {right}"


def _longest_answer(sizes: Sizes) -> str:
    if sizes.max_turns is None:
        return f"answers to {sizes.max_completion_length} tokens"
    return f"up to {sizes.max_turns} turns of {sizes.max_completion_length} tokens"


def _learning_text(learning: Learning) -> str:
    rate = f"{learning.rate:g}"
    if learning.schedule is not Schedule.constant or learning.warmup_iterations:
        rate += f", {learning.schedule.value} after {learning.warmup_iterations} warm-up iterations"
    return f"AdamW, rate {rate}; gradient norm to {learning.max_grad_norm:g}"


def _reference(algorithm: AlgorithmConfig, policy: Policy) -> str:
    if algorithm.beta == 0:
        return "not in the loss (beta = 0)"
    every = algorithm.reference_refresh
    return policy.reference_kind + ("" if every is None else f", every {every} iterations the present policy")
