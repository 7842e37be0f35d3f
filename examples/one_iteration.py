"""One iteration of GSPO (arXiv 2507.18071) in one file: rollout, reward, advantages, loss, optimizer steps.

    python examples/one_iteration.py

It calls the same functions as `gspo-train`, in the same order, on one-digit sums with the embedded model, and
takes under a minute on a CPU. Left out of it: evaluation, checkpoints, logging, LoRA, several processes,
and answers of several turns. `gspo_cli/training/trainer.py` has all of them.

Shapes: P prompts, G answers per prompt, B = P * G sequences, T tokens of the longest of them."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from gspo_cli.algorithm.advantages import group_advantages
from gspo_cli.algorithm.objective import loss_denominator, policy_loss
from gspo_cli.config.choices import RewardErrors
from gspo_cli.config.compose import build_config, composed
from gspo_cli.policy.loading import load_policy
from gspo_cli.randomness import derived_seed, generator
from gspo_cli.rewards.scoring import score_all
from gspo_cli.rollout.conversations import Limits, Start, roll_out
from gspo_cli.rollout.engine import Sampling
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.tasks.levels import levels_of
from gspo_cli.training.batch import Sample, collate
from gspo_cli.training.cold_start import prepare_model

PROMPTS, ANSWERS, UPDATES = 16, 8, 4


def main() -> dict[str, float]:
    """Run one iteration and print what each stage did. Returns the printed numbers."""
    torch.set_num_threads(1)
    cold_start = ["model.cold_start.steps=60", "model.cold_start.stop_score=null"]
    small = ["hardware=cpu", "task=arithmetic", "task.digits=1", "task.heldout=20"]
    config = build_config(composed([*small, *cold_start]))
    task, algorithm = config.task, config.algorithm

    # The policy: the embedded model after a cold start on demonstrations, as in the paper.
    with tempfile.TemporaryDirectory() as folder:
        model = prepare_model(config, levels_of(task), Path(folder) / "model", progress=lambda *_: None)
        policy = load_policy(model.base, config.model, config.hardware)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=algorithm.learning_rate)

    # 1. Rollout: G answers to each of P prompts, sampled by the current policy.
    engine = TransformersEngine(policy, batch_size=PROMPTS * ANSWERS)
    sampling = Sampling(
        temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=task.answer_length, stop_ids=policy.chat.stop_ids
    )
    starts = [
        Start(problem, where=(0, p, g), environment_seed=derived_seed(config.seed, "environment", 0, p))
        for p, problem in enumerate(task.train_problems()[:PROMPTS])
        for g in range(ANSWERS)
    ]
    limits = Limits(max_turns=1, max_prompt_length=256, max_positions=policy.max_positions)
    prompts = Prompts(policy.chat, task.system_prompt_and_tools())
    trajectories, _ = roll_out(engine, prompts, task.environment, starts, sampling, limits, seed=config.seed)

    # 2. Reward: the task's own, one number for each answer.
    score_all(task.reward(), trajectories, RewardErrors.stop)
    rewards = torch.tensor([t.reward or 0.0 for t in trajectories], dtype=torch.float64)
    print(f"rollout   {len(trajectories)} answers, mean reward {rewards.mean():.3f}")

    # 3. Advantages: each reward relative to the other answers to its prompt (paper, Eq. 6).
    advantages = group_advantages(
        rewards.reshape(PROMPTS, ANSWERS), torch.ones(PROMPTS, ANSWERS, dtype=torch.bool)
    )  # (P, G)
    samples = [
        Sample.of(trajectory, [advantage])
        for trajectory, advantage in zip(trajectories, advantages.flatten().tolist(), strict=True)
    ]
    informative = int((advantages.abs().sum(dim=1) > 0).sum())
    print(f"advantage {informative} of {PROMPTS} groups have answers of different reward")

    # 4. Old log-probabilities: scored before the first update, on the batches that the updates use.
    order = generator(config.seed, "minibatches", 0).permutation(len(samples))
    batches = [
        collate([samples[i] for i in part], policy.chat.pad_id, policy.device)
        for part in np.array_split(order, UPDATES)
    ]
    with torch.no_grad():
        old = [policy(b.token_ids, b.action_mask, sampling.temperature)[0] for b in batches]  # (B, T)

    # 5. Updates: one optimizer step on each minibatch, by the sequence ratio (Eq. 5 and 7).
    clipped, norms = 0.0, []
    for batch, old_logprobs in zip(batches, old, strict=True):
        denominator = loss_denominator(
            batch.action_mask.sum(dim=1).tolist(), algorithm.aggregation, task.answer_length
        )
        with policy.updating():
            logprobs, _ = policy(batch.token_ids, batch.action_mask, sampling.temperature)
            loss, stats = policy_loss(
                logprobs, old_logprobs, batch.advantages, batch.action_mask, algorithm, denominator
            )
            loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        clipped += stats.clipped_sequences
        print(
            f"update    loss {loss.item():+.2e}  ratio {1 + stats.deviation_min:.5f} to "
            f"{1 + stats.deviation_max:.5f}  clipped {stats.clipped_sequences:.0f} of {stats.sequences:.0f} "
            f"answers  gradient norm {norms[-1]:.3f}"
        )
    assert all(map(math.isfinite, norms))
    return {"reward": rewards.mean().item(), "informative": informative, "clipped": clipped, "norm": norms[0]}


if __name__ == "__main__":
    main()
