"""Answers of several sequences: each has its own ratio, together they weigh as much as an answer of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gspo_cli.config.choices import Aggregation, RatioLevel
from gspo_cli.training.batch import Sample
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.sharing import Sharing
from gspo_cli.training.update import Updater
from gspo_cli.types import FinishReason, Problem, Trajectory

TREE, ALONE = Sharing(True, attention_share=1e-4), Sharing(False)


def segmented(vocabulary, lengths=((7,), (5, 9), (4, 6, 8), (6,)), seed=0):
    """An answer for each tuple of segment lengths; segments begin alike, and the last of three has no trained
    token."""
    random = np.random.default_rng(seed)
    found = []
    for place, parts in enumerate(lengths):
        prompt = random.integers(vocabulary, size=2).tolist()
        ids, mask, turns, starts = [], [], [], []
        for turn, length in enumerate(parts):
            starts.append(len(ids))
            ids += prompt + random.integers(vocabulary, size=length - 2).tolist()
            mask += [False] * 2 + [turn < 2] * (length - 2)
            turns += [-1] * 2 + [turn if turn < 2 else -1] * (length - 2)
        logprobs = random.normal(-3, 0.3, size=len(ids)).tolist()
        trajectory = Trajectory(
            Problem(f"p{place}", ()), ids, mask, logprobs, turns, [], FinishReason.stop,
            segments=starts if len(parts) > 1 else [],
        )  # fmt: skip
        found.append(Sample.of(trajectory, [float(random.normal())]))
    return found


def naive(policy, samples, algorithm, length, old_shift):
    """The step's loss, sequence by sequence, in plain words."""
    total, tokens = torch.tensor(0.0, dtype=torch.float64), 0
    for sample in samples:
        trajectory = sample.trajectory
        starts = trajectory.segments or [0]
        sums = []
        for start, end in zip(starts, [*starts[1:], len(sample.token_ids)], strict=True):
            mask = torch.tensor([sample.action_mask[start:end]])
            if not mask.any():
                continue
            logprobs = policy(torch.tensor([sample.token_ids[start:end]]), mask, 1.0)[0][mask].double()
            log_ratio = logprobs - (logprobs.detach() - old_shift)
            own = (logprobs - logprobs.detach()).exp()
            s = log_ratio.mean().exp()
            ratio = {
                RatioLevel.token: log_ratio.exp(),
                RatioLevel.sequence: s.expand(len(logprobs)),
                RatioLevel.sequence_token: s.detach() * own,
            }[algorithm.ratio_level]
            low, high = algorithm.band
            a = sample.advantages[0]
            if algorithm.clip_mode.value == "stop_gradient":
                term = ratio.detach().clamp(low, high) * a * logprobs
            else:
                term = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
            sums.append((term.sum(), len(logprobs)))
        tokens += sum(n for _, n in sums)
        if algorithm.aggregation is Aggregation.sequence_mean:
            total = total - sum(value / n for value, n in sums) / len(sums)
        else:
            total = total - sum(value for value, _ in sums)
    match algorithm.aggregation:
        case Aggregation.token_mean:
            return total / tokens
        case Aggregation.constant:
            return total / (len(samples) * length)
    return total / len(samples)


@pytest.mark.parametrize(
    "name", ["gspo", "gspo_token", "grpo", "dr_grpo", "dapo", "cispo", "rloo_token", "luspo"]
)
@pytest.mark.parametrize("sharing", [TREE, ALONE], ids=["packed", "plain"])
def test_the_loss_is_the_mean_over_answers_of_the_mean_over_their_segments(load, configure, name, sharing):
    config, _ = configure(f"algorithm={name}")
    policy = load("qwen3")
    samples = segmented(policy.causal_model.config.vocab_size)
    updater = Updater(policy, config, sharing=sharing)
    minibatch = updater.collator.minibatch(samples)
    assert (minibatch.sequences, minibatch.tokens) == (4, sum(sample.num_actions for sample in samples))
    loss, shift = 0.0, 1e-4
    for micro in minibatch.micro_batches:
        assert sharing is TREE or len(micro.samples) == len(micro.token_ids)
        micro.old_logprobs = updater._logprobs(micro).detach() - shift
        part, _, _ = updater.loss(micro, minibatch)
        part.backward()
        loss += part.item()
    found = torch.cat([p.grad.flatten() for p in policy.trainable()])
    policy.model.zero_grad()
    expected = naive(policy, samples, updater.algorithm, config.rollout.max_completion_length, shift)
    expected.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.trainable()])
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    assert (found - gradient).norm() < 2e-4 * gradient.norm()


def test_an_answer_counts_once_in_clip_shares_and_lengths(load, configure):
    """The same tokens as one segment, or as two equal ones."""
    found = []
    for times in (1, 2):
        config, _ = configure(
            "algorithm=gspo", "training.updates_per_rollout=2", "rollout.old_logprobs=engine"
        )
        policy = load("qwen3")
        random, samples = np.random.default_rng(1), []
        for place in range(8):
            ids = random.integers(policy.causal_model.config.vocab_size, size=9).tolist()
            mask = torch.tensor([[False] * 3 + [True] * 6])
            with torch.no_grad():
                logprobs = policy(torch.tensor([ids]), mask, 1.0)[0][0].tolist()
            logprobs = [value - 0.001 * (place % 2) for value in logprobs]
            trajectory = Trajectory(
                Problem(f"p{place}", ()), ids * times, mask[0].tolist() * times, logprobs * times,
                ([-1] * 3 + [0] * 6) * times, [], FinishReason.stop, segments=[0, 9] if times == 2 else [],
            )  # fmt: skip
            samples.append(Sample.of(trajectory, [1.0 - 2 * (place % 3 == 0)]))
        report = Updater(policy, config).run(samples, np.random.default_rng(0), Clock())
        metrics = update_metrics(report)
        assert report.sequences == 8
        found.append((metrics, torch.cat([p.detach().flatten() for p in policy.trainable()])))
    (one, weights), (two, others) = found
    for name in ("loss", "clip_ratio/sequence", "clip_ratio/token", "grad_norm"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert one["clip_ratio/sequence"] > 0.2
    assert (weights - others).abs().max() < 1e-5


def test_the_kl_that_is_taken_off_a_reward_is_the_mean_over_segments(load, configure):
    config, _ = configure("algorithm=gspo", "algorithm.beta=0.5", "algorithm.kl_estimator=k1")
    policy = load("qwen3")
    policy.keep_reference(load("qwen3").causal_model)
    samples = segmented(policy.causal_model.config.vocab_size)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.02)
    expected = []
    for sample in samples:
        starts, means = sample.trajectory.segments or [0], []
        for start, end in zip(starts, [*starts[1:], len(sample.token_ids)], strict=True):
            ids, mask = (
                torch.tensor([sample.token_ids[start:end]]),
                torch.tensor([sample.action_mask[start:end]]),
            )
            if mask.any():
                difference = policy(ids, mask, 1.0)[0] - policy(ids, mask, 1.0, reference=True)[0]
                means.append(difference[mask].mean().item())
        expected.append(sum(means) / len(means))
    assert Updater(policy, config).reward_kl(samples) == pytest.approx(expected, abs=1e-5)


def test_minibatches_hold_whole_answers(load, configure):
    config, _ = configure("algorithm=gspo", "training.updates_per_rollout=4", "training.minibatch_by=answer")
    policy = load("qwen3")
    samples = segmented(policy.causal_model.config.vocab_size, lengths=((5, 6),) * 8)
    for minibatch in Updater(policy, config).collator.minibatches(samples, np.random.default_rng(0)):
        pieces = [piece for micro in minibatch.micro_batches for piece in micro.samples]
        assert len(pieces) == 4
        assert len({id(piece.trajectory) for piece in pieces}) == minibatch.sequences == 2


def test_a_segment_without_a_trained_token_has_no_weight(load):
    [_, _, three, _] = segmented(200)
    three.advantages = [float(place) for place in range(three.length)]
    assert [piece.advantages for piece in three.sequences] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    assert [(piece.length, piece.weight) for piece in three.sequences] == [(4, 0.5), (6, 0.5)]
    [part, _] = three.sequences
    assert part.sequences == [part]
    assert list(part.sampling_logprobs) == three.trajectory.sampling_logprobs[:4]
    assert part.prompt == tuple(three.token_ids[:2])


def test_the_kl_of_an_answer_is_the_mean_over_its_segments(load, configure):
    config, _ = configure("algorithm=gspo", "algorithm.beta=0.1")
    policy = load("qwen3", use_lora=True)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.normal_(std=0.2)
    samples = segmented(policy.causal_model.config.vocab_size)
    updater = Updater(policy, config)
    alone = [updater.reward_kl(sample.sequences) for sample in samples]
    assert all(abs(value) > 1e-3 for values in alone for value in values)
    pieces = [[value / piece.weight for value, piece in zip(values, sample.sequences, strict=True)]
              for values, sample in zip(alone, samples, strict=True)]  # fmt: skip
    assert updater.reward_kl(samples) == pytest.approx([sum(each) / len(each) for each in pieces], rel=1e-4)
