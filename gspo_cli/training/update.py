"""One rollout batch into a few optimizer steps.

Shapes: B sequences of a micro-batch, T tokens. The micro-batches are laid out once and serve every pass:
numerical noise between two layouts is as large as GSPO's clip band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gspo_cli.algorithm.objective import (
    LossStats,
    loss_denominator,
    policy_loss,
    reward_kl,
    sequence_log_ratio,
)
from gspo_cli.config.schema import RunConfig
from gspo_cli.policy.policy import Policy
from gspo_cli.training.batch import Batch, Sample, collate, split_by_tokens
from gspo_cli.training.clock import Clock
from gspo_cli.training.schedule import learning_rate


@dataclass
class MicroBatch:
    """A batch with the log-probabilities that were scored for it (None: not needed)."""

    batch: Batch
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None


@dataclass
class MiniBatch:
    """What one optimizer step learns from. `denominator`, `tokens` and `sequences` count its trained
    answers, also those that need no compute because their advantage is 0."""

    micro_batches: list[MicroBatch]
    denominator: float
    tokens: int
    sequences: int


@dataclass
class UpdateReport:
    """What happened in the updates of one iteration, summed over micro-batches."""

    stats: LossStats = field(default_factory=LossStats)
    tokens: int = 0
    sequences: int = 0
    entropy_sum: float = 0.0
    entropy_tokens: int = 0
    logp_difference_sum: float = 0.0
    logp_difference_max: float = 0.0
    logp_difference_tokens: int = 0
    first_step_abs_err: float | None = None
    grad_norms: list[float] = field(default_factory=list)
    updates: int = 0
    skipped: int = 0
    learning_rate: float = 0.0
    with_kl: bool = False


class Updater:
    """Owns the optimizer. `steps` counts optimizer steps since the start of the run."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        training = config.training
        self.policy, self.config = policy, config
        self.steps = 0
        self.total_steps = training.num_outer_iterations * training.updates_per_rollout
        self.optimizer = torch.optim.AdamW(
            policy.trainable(),
            lr=config.algorithm.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            weight_decay=training.weight_decay,
        )

    def run(self, samples: Sequence[Sample], order: np.random.Generator, clock: Clock) -> UpdateReport:
        """Split `samples` into `updates_per_rollout` minibatches and take one optimizer step on each."""
        report = UpdateReport()
        minibatches = self.minibatches(samples, order)
        with clock.timing("score"):
            self._score(minibatches, report)
            noise_probe = self._probe(minibatches[0])
        with clock.timing("update"):
            for index, minibatch in enumerate(minibatches):
                self._step(minibatch, report, first=index == 0, noise_probe=noise_probe)
        return report

    def minibatches(self, samples: Sequence[Sample], order: np.random.Generator) -> list[MiniBatch]:
        """Shuffled, equal parts, each cut into micro-batches. A group may be split: advantages are ready by
        now."""
        shuffled = [samples[i] for i in order.permutation(len(samples))]
        parts = np.array_split(np.arange(len(shuffled)), self.config.training.updates_per_rollout)
        return [self.minibatch([shuffled[i] for i in part]) for part in parts]

    def minibatch(self, samples: Sequence[Sample]) -> MiniBatch:
        """Count the denominator before anything is left out, then lay out what needs compute."""
        algorithm = self.config.algorithm
        counts = [sample.trajectory.num_actions for sample in samples]
        denominator = loss_denominator(
            counts, algorithm.aggregation, self.config.rollout.max_completion_length
        )
        everything = algorithm.kl_in_loss
        needed = [
            s for s, n in zip(samples, counts, strict=True) if n > 0 and (everything or any(s.advantages))
        ]
        batches = split_by_tokens(needed, self.config.hardware.tokens_per_microbatch)
        micro = [MicroBatch(collate(b, self.policy.chat.pad_id, self.policy.device)) for b in batches]
        return MiniBatch(micro, denominator, sum(counts), sum(n > 0 for n in counts))

    @torch.no_grad()
    def reward_kl(self, samples: Sequence[Sample]) -> list[float]:
        """k1 of each sample against the reference, to be taken off its reward before advantages."""
        values: dict[int, float] = {id(sample): 0.0 for sample in samples}
        spoken = [sample for sample in samples if sample.trajectory.num_actions]
        for part in split_by_tokens(spoken, self.config.hardware.tokens_per_microbatch):
            batch = collate(part, self.policy.chat.pad_id, self.policy.device)
            logprobs, reference = self._logprobs(batch)[0], self._reference(batch)
            kl = reward_kl(logprobs, reference, batch.action_mask).tolist()
            values |= {id(sample): value for sample, value in zip(part, kl, strict=True)}
        return [values[id(sample)] for sample in samples]

    def loss(
        self, micro: MicroBatch, denominator: float, with_entropy: bool = False
    ) -> tuple[Tensor, LossStats, Tensor, Tensor]:
        """A micro-batch's share of the step's loss, its statistics, its log-probabilities and entropies (B,
        T)."""
        batch = micro.batch
        logprobs, entropy = self._logprobs(batch, with_entropy)
        # before the first step the old policy is this one: the ratio is exactly 1
        old = logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs
        loss, stats = policy_loss(
            logprobs,
            old,
            batch.advantages,
            batch.action_mask,
            self.config.algorithm,
            denominator,
            ref_logprobs=micro.ref_logprobs,
        )
        return loss, stats, logprobs.detach(), entropy

    @torch.no_grad()
    def _score(self, minibatches: list[MiniBatch], report: UpdateReport) -> None:
        """Old log-probabilities of all minibatches but the first, whose own are used, and reference ones."""
        report.with_kl = self.config.algorithm.kl_in_loss
        for index, minibatch in enumerate(minibatches):
            for micro in minibatch.micro_batches:
                if report.with_kl:
                    micro.ref_logprobs = self._reference(micro.batch)
                if index > 0:
                    micro.old_logprobs = self._logprobs(micro.batch)[0]
                    self._compare_with_sampling(micro.batch, micro.old_logprobs, report)

    def _step(
        self, minibatch: MiniBatch, report: UpdateReport, first: bool, noise_probe: Tensor | None
    ) -> None:
        with self.policy.updating():
            for index, micro in enumerate(minibatch.micro_batches):
                loss, stats, logprobs, entropy = self.loss(micro, minibatch.denominator, with_entropy=first)
                loss.backward()
                report.stats += stats
                if first:
                    report.entropy_sum += entropy[micro.batch.action_mask].sum().item()
                    report.entropy_tokens += int(micro.batch.action_mask.sum())
                    self._compare_with_sampling(micro.batch, logprobs, report)
                if first and index == 0:
                    difference = torch.where(micro.batch.action_mask, logprobs - noise_probe, 0)
                    error = torch.expm1(sequence_log_ratio(difference, micro.batch.action_mask))
                    report.first_step_abs_err = error.abs().max().item()
        report.tokens += minibatch.tokens
        report.sequences += minibatch.sequences
        self._apply(report)

    @torch.no_grad()
    def _probe(self, minibatch: MiniBatch) -> Tensor | None:
        """Scores of the first micro-batch without gradient: what they differ by from the update's is pure
        noise."""
        return self._logprobs(minibatch.micro_batches[0].batch)[0] if minibatch.micro_batches else None

    def _apply(self, report: UpdateReport) -> None:
        """Clip the gradient and step. A gradient that is not finite is dropped, counted, and never reaches a
        weight."""
        parameters = self.policy.trainable()
        for parameter in parameters:
            if parameter.grad is None:  # nothing needed compute: the step is the one of a zero gradient
                parameter.grad = torch.zeros_like(parameter)
        rate = learning_rate(self.config, self.steps, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.training.max_grad_norm).item()
        if math.isfinite(norm):
            self.optimizer.step()
            report.grad_norms.append(norm)
        else:
            report.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        report.updates += 1
        report.learning_rate = rate

    def _logprobs(self, batch: Batch, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        return self.policy(batch.token_ids, batch.action_mask, self.config.rollout.temperature, with_entropy)

    def _reference(self, batch: Batch) -> Tensor:
        return self.policy.reference_logprobs(
            batch.token_ids, batch.action_mask, self.config.rollout.temperature
        )

    def _compare_with_sampling(self, batch: Batch, old_logprobs: Tensor, report: UpdateReport) -> None:
        difference = (old_logprobs - batch.sampling_logprobs)[batch.action_mask].abs()
        if difference.numel():
            report.logp_difference_sum += difference.sum().item()
            report.logp_difference_max = max(report.logp_difference_max, difference.max().item())
            report.logp_difference_tokens += difference.numel()
