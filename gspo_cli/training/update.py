"""Updating: the samples of one rollout become a few optimizer steps.

Shapes: B sequences of a micro-batch, T tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gspo_cli.algorithm.calibration import calibrated, candidates
from gspo_cli.algorithm.correction import engine_weights, off_policy_kept, weighted
from gspo_cli.algorithm.counterfactual import (
    CounterfactualStats,
    Objective,
    counterfactual_objectives,
    observe,
)
from gspo_cli.algorithm.entropy import EntropyBonus
from gspo_cli.algorithm.objective import answers, policy_loss, reward_kl, sequence_log_ratio
from gspo_cli.config.choices import OldLogprobs, Schedule
from gspo_cli.config.schema import RunConfig
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.routing import RouterPass, RoutingStats, require_routing
from gspo_cli.training.batch import MicroBatch, MiniBatch, Sample
from gspo_cli.training.collator import Collator
from gspo_cli.training.critic import Critic
from gspo_cli.training.memory_check import require_smaller
from gspo_cli.training.metrics import Clock, Sums, UpdateReport
from gspo_cli.training.pairs import weigh_pairs
from gspo_cli.training.selection import select_high_entropy
from gspo_cli.training.sharing import ALONE, Sharing
from gspo_cli.training.strategy import OneProcess, Scores, Strategy


class Updater:
    """Turns samples into optimizer steps of a strategy. `steps` counts them since the start of the run,
    `rate_factor` is what rollbacks left of the learning rate, `algorithm` the configured one with the clip
    band in force, `bonus` that for entropy."""

    def __init__(
        self,
        policy: Policy,
        config: RunConfig,
        strategy: Strategy | None = None,
        sharing: Sharing = ALONE,
    ) -> None:
        require_routing(policy.routing, config)
        self.policy, self.config, self.algorithm = policy, config, config.algorithm
        self.strategy = strategy or OneProcess(policy, config)
        self.collator = Collator(
            config,
            policy.chat.pad_id,
            policy.device,
            self.strategy.ranks,
            self.strategy.collective,
            config.hardware.tokens_per_microbatch,
            sharing,
        )
        self.critic = Critic(policy, config, self.strategy.ranks) if config.algorithm.has_critic else None
        self.bonus = EntropyBonus.of(config.algorithm)
        self.steps, self.rate_factor, self._oom_events = 0, 1.0, 0
        self.total_steps = config.training.num_outer_iterations * config.training.updates_per_iteration
        self.counterfactuals = counterfactual_objectives(config.algorithm, config.model.presets)

    def run(self, samples: Sequence[Sample], order: np.random.Generator, clock: Clock) -> UpdateReport:
        """Split `samples` (the same on every rank) into `updates_per_rollout` minibatches and take one
        optimizer step on each, in each of the passes, or as many as `target_kl` allows. The report covers
        all ranks."""
        report = UpdateReport(
            Sums(counterfactuals={name: CounterfactualStats() for name in self.counterfactuals}),
            clip_range=self.algorithm.clip_range,
            entropy_coefficient=self.bonus.in_force(self.algorithm) if self.algorithm.pays_entropy else None,
            with_kl=self.config.algorithm.kl_in_loss,
            with_off_policy_mask=self.config.algorithm.off_policy_mask is not None,
            in_pairs=self.config.algorithm.in_pairs,
            passes=self.config.training.passes,
        )
        minibatches = self.collator.minibatches(samples, order)
        with clock.timing("score"):
            report.sums += self._fitting(lambda: self._score(minibatches), minibatches)
        with clock.timing("update"):
            begun, passes = self.steps, self.config.training.passes
            for number, index in product(range(passes), range(len(minibatches))):
                rest = minibatches if number + 1 < passes else minibatches[index:]
                found = self._step(minibatches[index], rest, report, first=number == index == 0)
                report.count(minibatches[index])
                if self._far(found):
                    break
            self.steps = begun + passes * len(minibatches)  # the schedule counts steps that were left out
            report.sums = sum(self.strategy.ranks.gather([report.sums]), start=Sums())
        report.tokens_per_microbatch = self.collator.budget
        report.oom_events, self._oom_events = self._oom_events, 0
        self.bonus.adapt(self.algorithm, report.sums.entropy)
        if self.algorithm.is_calibrated:
            target = self.algorithm.clip_fraction, self.algorithm.clip_range, self.algorithm.widest_left
            self.set_clip_range(calibrated(report.sums.candidates, report.tokens, *target))
        return report

    def set_clip_range(self, widths: tuple[float | None, float | None]) -> None:
        """The band from now on, as (left, right)."""
        left, right = widths
        self.algorithm = replace(self.algorithm, clip_range_left=left, clip_range_right=right)

    @torch.no_grad()
    def reward_kl(self, samples: Sequence[Sample]) -> list[float]:
        """k1 of each sample against the reference, to be subtracted from its reward before advantages; of an
        answer of several sequences the mean."""
        pieces = [(place, piece) for place, sample in enumerate(samples) for piece in sample.sequences]
        pieces = [(place, piece) for place, piece in pieces if piece.num_actions]

        def of(micro: MicroBatch) -> Tensor:
            return reward_kl(self._logprobs(micro), self._reference(micro), micro.action_mask)

        found = [0.0] * len(samples)
        values = self._of_each([piece for _, piece in pieces], of)
        for (place, piece), value in zip(pieces, values, strict=True):
            found[place] += piece.weight * value
        return found

    @torch.no_grad()
    def values(self, samples: Sequence[Sample]) -> list[list[float]]:
        """The critic's value of each token of each sample, 0 where it is not trained."""
        trained = [sample for sample in samples if sample.num_actions]
        rows = iter(self._of_each(trained, self._values))
        return [(next(rows) if s.num_actions else [0.0] * s.length)[: s.length] for s in samples]

    def _of_each(self, sequences: Sequence[Sample], compute: Callable[[MicroBatch], Tensor]) -> list[Any]:
        """The row of each sequence in what `compute` gives for its micro-batch, on every rank."""
        places = {id(sequence): place for place, sequence in enumerate(sequences)}
        mine: list[tuple[int, Any]] | None = None
        while mine is None:
            micro_batches = self.collator.micro_batches(sequences)
            try:
                mine = [
                    (places[id(sequence)], row)
                    for micro in micro_batches
                    for sequence, row in zip(micro.samples, compute(micro).tolist(), strict=False)
                ]
            except RuntimeError as error:
                self._require_smaller(error, micro_batches, "score")
            if mine is None:
                self._shrink(micro_batches)
        found = dict(self.strategy.ranks.gather(mine))
        return [found[place] for place in range(len(sequences))]

    def loss(
        self, micro: MicroBatch, minibatch: MiniBatch, first: bool = False
    ) -> tuple[Tensor, Sums, Tensor]:
        """A micro-batch's share of its minibatch's loss, what it adds to the report, and its
        log-probabilities (B, T). `first`: the minibatch is the first one of an iteration."""
        algorithm, denominator = self.algorithm, minibatch.denominator
        paid = self.bonus.in_force(algorithm)
        logprobs, entropy, *values = self._scored(micro, first or paid > 0, values=True)
        # before the first step the old policy is this one: the ratio is exactly 1
        old = logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs
        weights, counted = engine_weights(old, micro.sampling_logprobs, micro.action_mask, algorithm)
        advantages = weighted(micro.advantages, weights, micro.action_mask, algorithm.ratio_level)
        masked = 0.0
        if algorithm.off_policy_mask is not None:
            limit = algorithm.off_policy_mask
            kept = off_policy_kept(logprobs, old, advantages, micro.action_mask, limit)
            masked = answers((~kept & micro.action_mask).any(dim=1), micro.weights).item()
            advantages = advantages * kept
        if micro.selected is not None:
            advantages = advantages * micro.selected
        scored = (logprobs, old, advantages, micro.action_mask)
        loss, stats = policy_loss(*scored, algorithm, denominator, micro.ref_logprobs, micro.weights)
        own, others = Objective.of(algorithm), self.counterfactuals
        seen = observe(*scored, own, others, minibatch.median, not first, micro.weights)
        sums = Sums(stats, engine=counted, counterfactuals=seen.counterfactuals)
        sums.short, sums.long, sums.off_policy = seen.short, seen.long, masked
        if self.critic is not None:
            error, sums.value = self.critic.loss(values[0], micro, denominator)
            loss = loss + error
        if algorithm.is_calibrated:
            sums.candidates = (candidates(*scored, algorithm),)
        if paid > 0:
            loss = loss - paid * entropy[micro.action_mask].sum() / max(1, minibatch.tokens)
        if first:
            sums.entropy_sum = entropy[micro.action_mask].sum().item()
            sums.entropy_tokens = int(micro.action_mask.sum())
        return loss, sums, logprobs.detach()

    @torch.no_grad()
    def _score(self, minibatches: list[MiniBatch]) -> Sums:
        """Old log-probabilities of all minibatches but the first, whose own are used, and reference ones.

        The engine's need no pass, and are the first minibatch's too: its ratio then differs from 1 by the
        difference between engine and trainer, which the probe shows."""
        sums, in_pairs = Sums(), self.config.algorithm.in_pairs
        from_engine = self.config.rollout.old_logprobs is OldLogprobs.engine and not in_pairs
        for index, minibatch in enumerate(minibatches):
            for micro in minibatch.micro_batches:
                if self.config.algorithm.kl_in_loss or in_pairs:
                    micro.ref_logprobs = self._reference(micro)
                if from_engine:
                    micro.old_logprobs = micro.sampling_logprobs
                    micro.probe = micro.sampling_logprobs if index == 0 else None
                elif index > 0 and not in_pairs:
                    with self.policy.routing.watched(rows=micro.rows) as routed:
                        micro.old_logprobs = self._logprobs(micro)
                    micro.experts = routed.experts(micro.token_ids.shape)
                    sums += _against_sampling(micro, micro.old_logprobs)
        for micro in [] if from_engine else minibatches[0].micro_batches[:1]:
            micro.probe = self._logprobs(micro)
        share = self.config.algorithm.high_entropy_tokens
        for minibatch in minibatches if share < 1 else []:
            select_high_entropy(minibatch, self._entropy, self.strategy.ranks, share)
        return sums

    def _far(self, found: Sums) -> bool:
        """Whether the minibatch that `found` is of, on all ranks, was beyond `target_kl`."""
        limit = self.config.training.target_kl
        if limit is None:
            return False
        parts = self.strategy.ranks.gather([(found.stats.moved_sum, found.stats.tokens)])
        return sum(moved for moved, _ in parts) > limit * sum(tokens for _, tokens in parts)

    def _step(self, minibatch: MiniBatch, rest: list[MiniBatch], report: UpdateReport, first: bool) -> Sums:
        """One optimizer step. `rest` are the minibatches that are still to come, this one included."""
        found = self._fitting(lambda: self._gradient(minibatch, first), rest)
        report.sums += found
        report.sums.last_routing = found.routing
        report.sums.last_moved, report.sums.last_tokens = found.stats.moved_sum, found.stats.tokens
        scheduled = learning_rate(self.config, self.steps, self.total_steps)
        report.learning_rate = scheduled * self.rate_factor
        norm, of_head = self.strategy.step(report.learning_rate), 0.0
        if self.critic is not None:
            relative = report.learning_rate / self.config.algorithm.learning_rate
            report.value_rate = relative * self.config.algorithm.value.learning_rate
            of_head = self.critic.step(report.value_rate)
        if math.isfinite(norm):
            report.grad_norms.append(norm)
        report.skipped += not (math.isfinite(norm) and math.isfinite(of_head))
        self.steps += 1
        report.updates += 1
        return found

    def _gradient(self, minibatch: MiniBatch, first: bool) -> Sums:
        """Add up the gradient of a minibatch. In the `first` of an iteration the experts are those of the old
        policy anyway; what it computes is kept for later passes."""
        found, scored, algorithm = Sums(), [], self.config.algorithm
        if algorithm.in_pairs:
            found.preference = weigh_pairs(minibatch, self._logprobs, self.strategy.ranks, algorithm)
        replay, balance = algorithm.routing_replay, self.config.model.router_aux_loss > 0
        with self.policy.updating():
            for micro in minibatch.micro_batches:
                forced = micro.experts if replay else None
                with self.policy.routing.watched(forced, balance, micro.rows) as routed:
                    loss, sums, logprobs = self.loss(micro, minibatch, first)
                    if balance and micro.action_mask[:, 1:].any():
                        loss = loss + self._balance_loss(routed, micro, minibatch.computed, sums)
                    self.strategy.backward(loss)
                if first:
                    scored.append((logprobs, routed.experts(micro.token_ids.shape)))
                elif micro.experts is not None:
                    sums.routing += routed.changes(micro.experts, micro.action_mask)
                if first and algorithm.pairs is None:
                    sums += _against_sampling(micro, logprobs)
                if first and micro.probe is not None and micro.action_mask.any():
                    mask = micro.action_mask
                    difference = torch.where(mask, logprobs - micro.probe, 0)
                    error = torch.expm1(sequence_log_ratio(difference, mask))
                    sums.first_step_abs_err = error.abs().max().item()
                found += sums
        for micro, (logprobs, experts) in zip(minibatch.micro_batches, scored, strict=False):
            if micro.old_logprobs is None and not algorithm.in_pairs:  # else the engine's
                micro.old_logprobs, micro.experts = logprobs, experts
        return found

    def _fitting(self, attempt: Callable[[], Sums], minibatches: list[MiniBatch]) -> Sums:
        """What `attempt` returns; when memory runs out, it is repeated with micro-batches half as large.

        Raises UserError if they cannot be halved. With several ranks, no rank can leave a collective
        operation, so the run ends."""
        while True:
            try:
                return attempt()
            except RuntimeError as error:
                micro_batches = [micro for minibatch in minibatches for micro in minibatch.micro_batches]
                self._require_smaller(error, micro_batches, "update")
            # after the handler, because the error keeps the tensors of the failed attempt alive
            self.strategy.drop_gradient()
            if self.critic is not None:
                self.critic.drop_gradient()
            self._halve(minibatches, micro_batches)

    def _require_smaller(self, error: RuntimeError, micro_batches: Sequence[MicroBatch], stage: str) -> None:
        """Raise `error` unless memory ran out, and UserError where micro-batches cannot be halved."""
        halves = not self.strategy.collective and any(len(micro.samples) > 1 for micro in micro_batches)
        require_smaller(error, halves, self.collator.budget, stage)

    def _shrink(self, micro_batches: Sequence[MicroBatch]) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        largest = max(micro.computed for micro in micro_batches)
        self.collator.budget = max(1, min(self.collator.budget, largest) // 2)
        self._oom_events += 1

    def _halve(self, minibatches: list[MiniBatch], micro_batches: Sequence[MicroBatch]) -> None:
        self._shrink(micro_batches)
        for minibatch in minibatches:
            minibatch.micro_batches = [
                part for micro in minibatch.micro_batches for part in self.collator.halved(micro)
            ]

    def _balance_loss(self, routed: RouterPass, micro: MicroBatch, computed: int, sums: Sums) -> Tensor:
        """A micro-batch's share of the auxiliary loss: balance is computed within each micro-batch, and a
        step takes the mean over its sequences that need compute, on all ranks."""
        value = routed.balance_loss(micro.action_mask)
        sequences = answers(micro.action_mask.any(dim=1), micro.weights).item()
        sums.routing += RoutingStats(
            balance_loss_sum=value.item() * sequences, balance_loss_sequences=sequences
        )
        return self.config.model.router_aux_loss * sequences / computed * value

    def _logprobs(self, micro: MicroBatch) -> Tensor:
        return self._scored(micro)[0]

    def _scored(self, micro: MicroBatch, with_entropy: bool = False, values: bool = False) -> Scores:
        temperature = self.config.rollout.temperature
        scored = (micro.token_ids, micro.action_mask, temperature)
        head = self.critic.head if values and self.critic is not None else None
        return self.strategy.forward(*scored, with_entropy=with_entropy, rows=micro.rows, value_head=head)

    def _values(self, micro: MicroBatch) -> Tensor:
        assert self.critic is not None
        options = {"rows": micro.rows, "value_head": self.critic.head, "values_only": True}
        return self.strategy.forward(micro.token_ids, micro.action_mask, 1.0, **options)[0]

    def _entropy(self, micro: MicroBatch) -> Tensor:
        return self._scored(micro, with_entropy=True)[1]

    def _reference(self, micro: MicroBatch) -> Tensor:
        temperature = self.config.rollout.temperature
        scored = (micro.token_ids, micro.action_mask, temperature)
        return self.strategy.forward(*scored, reference=True, rows=micro.rows)[0]


def _against_sampling(micro: MicroBatch, old_logprobs: Tensor) -> Sums:
    """The difference between the trainer's log-probabilities and those that tokens were sampled with."""
    difference = (old_logprobs - micro.sampling_logprobs)[micro.action_mask].abs()
    if difference.numel() == 0:
        return Sums()
    return Sums(
        logp_difference_sum=difference.sum().item(),
        logp_difference_max=difference.max().item(),
        logp_difference_tokens=difference.numel(),
    )


def learning_rate(config: RunConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule. Never 0 on the first
    step."""
    warmup = config.training.warmup_iterations * config.training.updates_per_iteration
    peak = config.algorithm.learning_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    match config.training.schedule:
        case Schedule.constant:
            return peak
        case Schedule.linear:
            return peak * (1 - progress)
        case Schedule.cosine:
            return peak * (1 + math.cos(math.pi * progress)) / 2
