"""Random batches, and models that are looked at or limited."""

from __future__ import annotations

import numpy as np
import torch

from gspo_cli.training.batch import Sample
from gspo_cli.types import FinishReason, Problem, Trajectory


def samples_of(policy, count=16, seed=0, advantages=None):
    """Random conversations of 6 to 20 tokens, with old log-probabilities near the policy's own."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        prompt, length = int(random.integers(2, 8)), int(random.integers(4, 13))
        ids = random.integers(policy.causal_model.config.vocab_size, size=prompt + length).tolist()
        mask = [False] * prompt + [True] * length
        trajectory = Trajectory(
            Problem(f"p{index}", ()), ids, mask, [0.0] * len(ids), [-1] * prompt + [0] * length, [],
            FinishReason.stop, turn_rewards=[0.0], reward=0.0,
        )  # fmt: skip
        value = float(random.normal()) if advantages is None else advantages[index]
        found.append(Sample.of(trajectory, [value]))
    return found


def conversations(vocabulary=200, groups=4, answers=4, seed=0, per_token=False):
    """Groups under one system prompt: answers of uneven length and turns; among them equal ones, one without
    a trained token, one of a single token, and one that is the beginning of another."""
    random = np.random.default_rng(seed)

    def tokens(count):
        return random.integers(vocabulary, size=count).tolist()

    system = tokens(6)
    found = []
    for group in range(groups):
        question = system + tokens(int(random.integers(1, 6)))
        for answer in range(answers):
            ids, mask, turns = list(question), [False] * len(question), [-1] * len(question)
            for turn in range(1 + answer % 3):
                said, read = int(random.integers(1, 7)), int(random.integers(1, 4)) * (turn < answer % 3)
                ids += tokens(said) + tokens(read)
                mask += [True] * said + [False] * read
                turns += [turn] * said + [-1] * read
            found.append((group, ids, mask, turns))
    found[1] = found[0]
    found[5] = (1, found[4][1] + [3, 4], found[4][2] + [True, True], found[4][3] + [0, 0])
    found[6] = (1, found[6][1], [False] * len(found[6][1]), [-1] * len(found[6][1]))
    cut_short = found[9][2].index(True) + 1
    found[9] = (2, *(part[:cut_short] for part in found[9][1:]))
    samples = []
    for group, ids, mask, turns in found:
        logprobs = random.normal(-3, 0.3, size=len(ids)).tolist()
        trajectory = Trajectory(Problem(f"p{group}", ()), ids, mask, logprobs, turns, [], FinishReason.stop)
        values = random.normal(size=max(turns) + 2) if per_token else random.normal(size=1)
        samples.append(Sample.of(trajectory, [values[turn] for turn in turns] if per_token else [values[0]]))
    return samples


def random_batch(rows=24, length=9, spread=0.2, seed=0):
    """logprobs, old, advantages (a third of them 0), mask; in fp32 as in a run."""
    random = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, length, generator=random)
    logprobs = old + spread * torch.randn(rows, length, generator=random)
    advantages = torch.randn(rows, 1, generator=random) * (torch.arange(rows) % 3 > 0)[:, None]
    mask = torch.arange(length)[None] < torch.randint(1, length + 1, (rows, 1), generator=random)
    return logprobs, old, advantages, mask


def ragged(policy, lengths=(5, 9, 3), seed=0):
    """Random sequences, right-padded, all but the first two tokens trained. -> token_ids, action_mask (B,
    T)"""
    random = torch.Generator().manual_seed(seed)
    vocabulary = policy.causal_model.config.vocab_size
    ids = torch.full((len(lengths), max(lengths)), policy.chat.pad_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(vocabulary, (length,), generator=random)
        mask[row, 2:length] = True
    return ids, mask


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.trainable()])


def adamw(start, grads, rates, training, weight_decay):
    """`start` (N,) after AdamW's steps (arXiv 1711.05101, Algorithm 2) on gradients whose norm is clipped, in
    double."""
    weight, (beta1, beta2) = start.double(), (training.adam_beta1, training.adam_beta2)
    first = second = torch.zeros_like(weight)
    for step, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        grad = grad.double() * min(1.0, training.max_grad_norm / (grad.norm().item() + 1e-6))
        first = beta1 * first + (1 - beta1) * grad
        second = beta2 * second + (1 - beta2) * grad.square()
        moved = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + 1e-8)
        weight = weight - rate * weight_decay * weight - rate * moved
    return weight.float()


def gradients_of(owner, parameters):
    """What `owner.step` finds as the gradient of `parameters`, flat, for each of its calls; 0 where there is
    none."""
    found, own = [], owner.step

    def step(*rate):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        found.append(torch.cat([grad.flatten() for grad in grads]).clone())
        return own(*rate)

    owner.step = step
    return found


class Small(torch.nn.Module):
    """A model in whose memory only so many tokens fit at once while it is trained, or (`scoring`) while it
    is not."""

    def __init__(self, policy, tokens, scoring=False):
        super().__init__()
        self.handle = policy.causal_model.base_model.register_forward_pre_hook(self.fill, with_kwargs=True)
        self.tokens, self.refused, self.trained = tokens, 0, not scoring

    def fill(self, module, arguments, named):
        if named["input_ids"].numel() > self.tokens and torch.is_grad_enabled() is self.trained:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
