"""Before training: how far one update moves the ratios of answers that it was not computed from, and what
the clip band makes of it.

A rule of thumb: Adam's first step has the size of the learning rate in every weight, and the steps of an
iteration add up like those of a random walk. Shapes: B sequences, T tokens, N ratios."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gspo_cli.algorithm.objective import level_log_ratio, trained_mean
from gspo_cli.config.choices import ClipMode
from gspo_cli.config.old_logprobs import narrowest_width
from gspo_cli.config.schema import RunConfig
from gspo_cli.console.words import number
from gspo_cli.errors import UserError
from gspo_cli.policy.policy import Policy
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.engine import Request, RolloutEngine, Sampling, generate
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.batch import MicroBatch, Sample
from gspo_cli.training.collator import Collator
from gspo_cli.training.preflight import answered
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.training.sharing import ALONE, Sharing
from gspo_cli.training.strategy import Strategy
from gspo_cli.types import Problem

PROMPTS, TOKENS = 8, 32  # prompts, two answers to each, and most tokens of an answer
SIGNS = (1.0, -1.0)  # advantages of the two answers


@dataclass(frozen=True)
class Rehearsal:
    """`spread`: standard deviation of the log ratios after one update at the full learning rate. `clipped`:
    the share of ratios with an advantage that the band will then clip, mean over the updates of an iteration;
    None where the band is calibrated. `of_tokens`: of tokens, else of answers. `length`: mean tokens of the
    answers that were measured."""

    spread: float
    clipped: float | None
    of_tokens: bool
    length: float


FIELDS = {field.name for field in fields(Rehearsal)}


def rehearse(
    config: RunConfig,
    policy: Policy,
    strategy: Strategy,
    engine: RolloutEngine,
    problems: Sequence[Problem],
    prompts: Prompts,
    sharing: Sharing = ALONE,
) -> Rehearsal | None:
    """Sample answers, take one step on half of them with advantages of both signs, and measure the other
    half. Weights are restored to the bit. None where no ratio leaves 1, nothing has a band, weights are
    sharded, or an agent of somebody else asks."""
    training, task = config.training, config.task
    if (
        not math.isfinite(narrowest_width(config))
        or config.algorithm.in_pairs
        or training.updates_per_iteration == 1
        or config.hardware.zero_stage > 0
        or task.runs_agent
        or len(problems) < 2
    ):
        return None
    asked = problems[:PROMPTS]
    with strategy.generating():
        samples = _sampled(config, engine, asked, prompts)
    half = len(samples) // 4 * 2
    budget = config.hardware.tokens_per_microbatch
    collator = Collator(config, policy.chat.pad_id, policy.device, ProcessGroup(), False, budget, sharing)
    taught, measured = map(collator.micro_batches, (samples[:half], samples[half:]))

    def score(micro: MicroBatch) -> Tensor:
        scored = (micro.token_ids, micro.action_mask, config.rollout.temperature)
        return strategy.forward(*scored, rows=micro.rows)[0]

    with torch.no_grad():
        old = [score(micro) for micro in measured]
    with policy.updating():
        for micro in taught:
            signs = torch.tensor([sample.advantages[0] for sample in micro.samples], device=policy.device)
            strategy.backward(-(trained_mean(score(micro), micro.action_mask)[:, 0] * signs).sum() / half)
    with torch.no_grad(), _stepped(policy, config.algorithm.learning_rate):
        moved = [score(micro) - before for micro, before in zip(measured, old, strict=True)]
    ratios = torch.cat([_ratios(config, log, micro) for log, micro in zip(moved, measured, strict=True)])
    clipped = clipped_share(ratios, *_band(config), training.updates_per_iteration)
    if config.algorithm.clip_mode is ClipMode.stop_gradient:  # clips both sides whatever the advantage
        clipped *= 2
    lengths = [sample.num_actions for sample in samples[half:]]
    return Rehearsal(
        ratios.std().item(),
        None if config.algorithm.is_calibrated else clipped,
        config.algorithm.clips_tokens,
        sum(lengths) / len(lengths),
    )


def stored_rehearsal(folder: RunFolder) -> Rehearsal | None:
    """What the run's card.json has; None where it has none, or is damaged: nothing but the card needs it."""
    card: Any = None
    with suppress(UserError):
        card = folder.read_card()
    found = card.get("rehearsal") if isinstance(card, dict) else None
    if not isinstance(found, dict) or found.keys() != FIELDS:
        return None
    plain = all(isinstance(each, int | float | None) for each in found.values())
    return Rehearsal(**found) if plain else None


def clipped_share(log_ratios: Tensor, low: float, high: float, updates: int) -> float:
    """Share that a band from `low` to `high` (of log ratios) clips, mean over `updates` of an iteration.

    `log_ratios` (N,) are those after one update; after k they are sqrt(k) times as far from 0. The sign of an
    advantage decides which side is clipped and does not depend on where the ratio has moved, so half of
    those outside are clipped."""
    found = 0.0
    for before in range(1, updates):
        far = log_ratios * math.sqrt(before)
        found += ((far < low) | (far > high)).float().mean().item() / 2
    return found / updates


def rehearsal_text(rehearsal: Rehearsal | None) -> str:
    """The card's line; empty where nothing was measured."""
    if rehearsal is None:
        return ""
    what = "tokens" if rehearsal.of_tokens else "answers"
    text = (
        f"one update moves the ratios of other {what} by about {number(rehearsal.spread, 2)} "
        f"(measured on answers of {number(rehearsal.length, 2)} tokens)"
    )
    if rehearsal.clipped is None:
        return text
    if rehearsal.clipped == 0:
        return f"{text}; the band then clips almost none"
    percent = number(100 * rehearsal.clipped, 2)
    return f"{text}; the band then clips about {percent}% of those with an advantage"


def _sampled(
    config: RunConfig, engine: RolloutEngine, problems: Sequence[Problem], prompts: Prompts
) -> list[Sample]:
    """Two answers to each problem."""
    rollout = config.rollout
    tokens = min(TOKENS, rollout.max_completion_length)
    asked = [(problem, sign) for problem in problems for sign in SIGNS]
    ids = [list(prompts.ids(problem.messages))[: rollout.max_prompt_length] for problem, _ in asked]
    requests = [Request(own, derived_seed(config.seed, "rehearsal", i), i) for i, own in enumerate(ids)]
    sampling = Sampling(rollout.temperature, 1.0, 0, tokens, prompts.chat.stop_ids)
    answers = generate(engine, requests, sampling)
    return [
        answered(problem, prompt, answer.token_ids, sign)
        for (problem, sign), prompt, answer in zip(asked, ids, answers, strict=True)
    ]


@contextmanager
def _stepped(policy: Policy, rate: float) -> Iterator[None]:
    """A block in which the weights have taken Adam's first step: `rate` against the sign of the gradient,
    which is dropped weight by weight, so that both copies of the weights take no more than it did."""
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for parameter in policy.trainable():
            if parameter.grad is not None:
                kept.append((parameter, parameter.detach().clone()))
                parameter.sub_(parameter.grad.sign_(), alpha=rate)
                parameter.grad = None
        yield
    finally:
        for weight, before in kept:
            weight.copy_(before)


def _ratios(config: RunConfig, log_ratio: Tensor, micro: MicroBatch) -> Tensor:
    """Log ratios that the band is for, those of tokens or answers. (B, T) -> (N,)"""
    if config.algorithm.clips_tokens:
        return log_ratio[micro.action_mask]
    masked = torch.where(micro.action_mask, log_ratio, 0)
    return level_log_ratio(masked, micro.action_mask, config.algorithm.ratio_level)[:, 0]


def _band(config: RunConfig) -> tuple[float, float]:
    """The band's ends as log ratios, infinite where it is open."""
    if config.algorithm.clip_mode is ClipMode.token_log:
        return config.algorithm.log_band
    left, right = config.algorithm.clip_range
    low = -math.inf if left is None or left >= 1 else math.log1p(-left)
    return low, math.inf if right is None else math.log1p(right)
