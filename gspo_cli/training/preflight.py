"""Before training: the difference between log-probabilities of the same tokens that should be equal.

Shapes: B sequences, T tokens. GSPO's clip band is a few 1e-4 wide, and rounding in bf16 is of that size: a
ratio that noise moves over a third of the band is clipped at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gspo_cli.algorithm.objective import sequence_log_ratio
from gspo_cli.config.choices import OldLogprobs
from gspo_cli.config.old_logprobs import narrowest_width
from gspo_cli.config.schema import RunConfig
from gspo_cli.diagnosis.rules import RANDOM_SHARE
from gspo_cli.policy.policy import Policy
from gspo_cli.randomness import generator
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.training.batch import MicroBatch, Sample, collate
from gspo_cli.training.collator import Collator
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.training.sharing import ALONE, Sharing
from gspo_cli.training.strategy import Strategy
from gspo_cli.types import FinishReason, Problem, Trajectory

ROWS, TOKENS = 8, 32  # prompts, and random tokens after each, which stand for an answer
PADDING = 8  # columns added to a sequence that is alone in its micro-batch


@dataclass(frozen=True)
class NoiseFloor:
    """Largest |s - 1| of unchanged weights: `same` between scoring and the update pass on the same
    micro-batch, `layouts` between a sequence there and the sequence alone, `packed` between rows with shared
    beginnings and plain ones, None where nothing is shared."""

    same: float
    layouts: float
    packed: float | None = None


def noise_floor(
    config: RunConfig,
    policy: Policy,
    strategy: Strategy,
    problems: Sequence[Problem],
    prompts: Prompts,
    sharing: Sharing = ALONE,
) -> NoiseFloor:
    """Measure on prompts of `problems`, with random tokens as answers, in the layout of training. No weight
    or gradient changes.

    Every rank makes the same calls on the same tokens."""
    budget, pad_id = config.hardware.tokens_per_microbatch, policy.chat.pad_id
    collator = Collator(config, pad_id, policy.device, ProcessGroup(), False, budget, sharing)
    answers = 2 if sharing.on else 1
    made = collator.micro_batches(_samples(config, policy, problems, prompts, answers))
    micro = max(made, key=lambda micro: len(micro.token_ids))
    plain = replace(micro, rows=None)
    mask = micro.action_mask

    def score(micro: MicroBatch) -> Tensor:
        scored = (micro.token_ids, micro.action_mask, config.rollout.temperature)
        return strategy.forward(*scored, rows=micro.rows)[0].detach()

    with torch.no_grad():
        old = score(micro)
        alone = torch.zeros_like(old)
        for place, sample in enumerate(micro.samples):
            width = sample.length + (PADDING if len(micro.samples) == 1 else 0)
            single = collate([sample], pad_id, policy.device, width)
            alone[place, : sample.length] = score(single)[0, : sample.length]
        packed = None if micro.rows is None else _deviation(score(plain) - old, mask)
    with policy.updating():
        new = score(micro)
    return NoiseFloor(_deviation(new - old, mask), _deviation(alone - old, mask), packed)


def noise_limit(config: RunConfig) -> float:
    """The noise limit: a third of the band's narrower side; infinite without a band."""
    return RANDOM_SHARE * narrowest_width(config)


def noise_text(floor: NoiseFloor, limit: float) -> str:
    """The card's line."""
    band = f"band {limit / RANDOM_SHARE:.2g} (limit {limit:.1g})" if math.isfinite(limit) else "no clip band"
    packed = "" if floor.packed is None else f", packed against rows {floor.packed:.1g}"
    return f"same layout {floor.same:.1g}, other layouts {floor.layouts:.1g}{packed}; {band}"


def noise_warnings(config: RunConfig, floor: NoiseFloor) -> list[str]:
    """A message with the fix if noise is over the limit.

    Noise between layouts only affects the ratio if old log-probabilities come from the engine, which uses a
    different layout."""
    limit, found = noise_limit(config), []
    if not floor.same <= limit:
        found.append(
            f"numerical noise of the ratio is {floor.same:.1e} before training, over a third of the clip "
            f"width {limit / RANDOM_SHARE:.1e}: answers will be clipped at random; use "
            "hardware.precision=fp32 or a wider algorithm.clip_range"
        )
    if not floor.layouts <= limit and config.rollout.old_logprobs is OldLogprobs.engine:
        found.append(
            f"rollout.old_logprobs=engine: log-probabilities of two batch layouts give ratios "
            f"{floor.layouts:.1e} apart, over a third of the clip width {limit / RANDOM_SHARE:.1e}; use "
            "rollout.old_logprobs=recompute, hardware.precision=fp32 or a wider algorithm.clip_range"
        )
    return found


def _samples(
    config: RunConfig, policy: Policy, problems: Sequence[Problem], prompts: Prompts, answers: int
) -> list[Sample]:
    """Shortest prompts first, each with `answers` of random tokens, as many as fit into a micro-batch."""
    draw = generator(config.seed, "preflight")
    count = min(TOKENS, config.rollout.max_completion_length)
    vocabulary = policy.causal_model.config.get_text_config().vocab_size
    samples = []
    for problem in problems[:ROWS]:
        prompt = [*prompts.ids(problem.messages)][: config.rollout.max_prompt_length]
        for _ in range(answers):
            samples.append(answered(problem, prompt, draw.integers(vocabulary, size=count).tolist()))
    samples.sort(key=lambda sample: sample.length)
    budget = config.hardware.tokens_per_microbatch
    return [s for place, s in enumerate(samples, start=1) if place * s.length <= budget] or samples[:1]


def answered(problem: Problem, prompt: list[int], answer: list[int], advantage: float = 0.0) -> Sample:
    """The sample of one answer to a prompt, whose tokens alone are trained."""
    ids, turns = prompt + answer, [-1] * len(prompt) + [0] * len(answer)
    trained = [turn >= 0 for turn in turns]
    trajectory = Trajectory(problem, ids, trained, [0.0] * len(ids), turns, [], FinishReason.length)
    return Sample.of(trajectory, (advantage,))


def _deviation(log_ratio: Tensor, mask: Tensor) -> float:
    """Largest |s - 1| of a batch. Two (B, T)"""
    return torch.expm1(sequence_log_ratio(log_ratio, mask)).abs().max().item()
