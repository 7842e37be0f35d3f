"""Which log-probabilities are the old policy's under `rollout.old_logprobs=auto`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gspo_cli.config.choices import OldLogprobs
from gspo_cli.config.old_logprobs import ENGINE_SHARE, narrowest_width, needs_recompute
from gspo_cli.config.schema import RunConfig
from gspo_cli.policy.policy import Policy
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.engine import Request, RolloutEngine, Sampling, generate
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.training.preflight import NoiseFloor
from gspo_cli.types import Problem

PROBED, TOKENS = 4, 16  # prompts, and tokens sampled after each


def choose(
    config: RunConfig,
    policy: Policy,
    engine: RolloutEngine,
    floor: NoiseFloor,
    problems: Sequence[Problem],
    prompts: Prompts,
) -> tuple[OldLogprobs, str]:
    """What `auto` comes to, and why."""
    reason = needs_recompute(config)
    if reason is None and policy.routing.layers:
        reason = "the model's routers"
    if reason is not None:
        return OldLogprobs.recompute, f"because of {reason}"
    width = config.rollout.old_logprobs_band or narrowest_width(config)
    between = max(floor.same, floor.layouts, floor.packed or 0.0)
    noise = max(between, engine_noise(config, policy, engine, problems, prompts))
    share = f"the engine's noise {noise:.1g} is {{}} {ENGINE_SHARE:.0%} of the clip width {width:.2g}"
    if math.isinf(width):
        return OldLogprobs.engine, f"no clip band, and the engine's noise is {noise:.1g}"
    if noise < ENGINE_SHARE * width:
        return OldLogprobs.engine, share.format("below")
    return OldLogprobs.recompute, share.format("over")


@torch.no_grad()
def engine_noise(
    config: RunConfig, policy: Policy, engine: RolloutEngine, problems: Sequence[Problem], prompts: Prompts
) -> float:
    """Largest |s - 1| between a few sampled answers as the engine and as the policy score them."""
    rollout = config.rollout
    tokens = min(TOKENS, rollout.max_completion_length)
    longest = rollout.max_prompt_length  # of an agent's problems it is not known what is read
    asked = sorted((list(prompts.ids(p.messages))[:longest] for p in problems[:PROBED]), key=len)
    requests = [Request(ids, derived_seed(config.seed, "engine noise", i), i) for i, ids in enumerate(asked)]
    sampling = Sampling(rollout.temperature, 1.0, 0, tokens, prompts.chat.stop_ids)
    found = 0.0
    for ids, answer in zip(asked, generate(engine, requests, sampling), strict=True):
        whole = torch.tensor([ids + answer.token_ids], device=policy.device)
        trained = torch.arange(whole.shape[1], device=policy.device)[None] >= len(ids)
        scored = policy(whole, trained, rollout.temperature)[0][trained]
        ratio = scored.mean().item() - sum(answer.logprobs) / len(answer.logprobs)
        found = max(found, abs(math.expm1(ratio)))
    return found
