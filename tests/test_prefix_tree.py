"""Sequences that begin alike are computed once, and every number stays that of the plain sequences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from gspo_cli.policy.prefix_tree import cut, plant, unique_tokens
from gspo_cli.policy.policy import Policy
from gspo_cli.training.batch import Sample, collate
from gspo_cli.training.collator import deal
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.sharing import Sharing, obstacle, sharing
from gspo_cli.training.strategy import OneProcess
from gspo_cli.training.update import Updater
from gspo_cli.types import FinishReason, Problem, Trajectory
from tests.support.batches import weights

TREE = Sharing(True, attention_share=1e-4)
OBJECTIVES = ("gspo", "gspo_token", "grpo", "dr_grpo", "dapo", "cispo", "rloo")


def conversations(vocabulary=200, groups=4, answers=4, seed=0, per_token=False):
    """Groups under one system prompt: answers of uneven length and turns; among them equal ones, one without a
    trained token, one of a single token, and one that is the beginning of another."""
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


def model(cls, **settings):
    """A random model in float64."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    }  # fmt: skip
    made = AutoModelForCausalLM.from_config(cls(**(shape | settings)), dtype=torch.float64).eval()
    for module in list(made.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):  # which computes in fp32
                norm = torch.nn.RMSNorm(child.weight.shape, child.variance_epsilon, dtype=torch.float64)
                setattr(module, name, norm)
    if hasattr(made, "set_experts_implementation") and hasattr(made.config, "num_experts_per_tok"):
        made.set_experts_implementation("eager")
    return made


MODELS = {
    "llama": lambda: model(LlamaConfig),
    "qwen3": lambda: model(Qwen3Config),
    "qwen3_moe": lambda: model(
        Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "mixtral": lambda: model(MixtralConfig, num_local_experts=4, sliding_window=None),
}


@pytest.fixture(params=["llama", "qwen3", "qwen3_moe", "mixtral", "gpt2"])
def exact(request, load):
    """Policies in float64."""
    return in_double(request.param, load)


def in_double(name, load):
    if name == "gpt2":
        policy = load("gpt2")
        policy.model.double()
        return policy
    return Policy(MODELS[name](), load("qwen3").tokenizer)


def step(policy, config, samples, share, shift=0.02):
    """Log-probabilities and entropy of each sample, loss and gradient of a step over `samples`, whose old
    log-probabilities are the policy's, shifted by token."""
    updater = Updater(policy, config, sharing=share)
    minibatch = updater.collator.minibatch(samples)
    scored, total = {}, 0.0
    with policy.updating():
        for micro in minibatch.micro_batches:
            with torch.no_grad():
                now, entropy = updater._logprobs(micro, True)
                micro.ref_logprobs = now - 0.1
            micro.old_logprobs = now + shift * (micro.token_ids % 3 - 1)
            loss, _, _ = updater.loss(micro, minibatch.denominator)
            loss.backward()
            total += loss.item()
            laid_out = [sample for row in micro.layout for sample in row]
            for sample, values, entropies in zip(laid_out, now, entropy, strict=True):
                scored[id(sample)] = torch.stack([values, entropies])[:, : sample.length]
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in policy.trainable()]
    flat = torch.cat([g.flatten() for g in grads]).clone()
    policy.zero_grad(set_to_none=True)
    return scored, total, flat


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_packed_equals_plain(exact, configure, objective):
    credit = ["algorithm.credit=turn"] if objective == "gspo_token" else []
    config, _ = configure(f"algorithm={objective}", "algorithm.beta=0.1", *credit)
    samples = conversations(per_token=bool(credit))
    plain, loss, gradient = step(exact, config, samples, Sharing(False))
    packed, other_loss, other = step(exact, config, samples, TREE)
    assert plain.keys() == packed.keys()
    assert max((plain[key] - packed[key]).abs().max() for key in plain) < 1e-9
    assert other_loss == pytest.approx(loss, abs=1e-9)
    assert gradient.norm() > 1e-3
    assert (other - gradient).abs().max() < 1e-9


def test_the_tree_of_sequences():
    sequences = [np.array(ids) for ids in ([1, 2, 3], [1, 2, 3], [1, 2, 3, 4], [1, 2, 5, 6], [1, 7])]
    tree = plant(sequences)
    assert tree.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert tree.depths.tolist() == [0, 1, 2, 3, 2, 3, 1]
    assert tree.ends.tolist() == [7, 6, 4, 4, 6, 6, 7]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4, 5], [0, 6]]
    assert unique_tokens(sequences) == 7


def test_a_cut_is_the_cheapest():
    random = np.random.default_rng(0)
    for trial in range(60):
        rows = [random.integers(2, size=random.integers(1, 9)) for _ in range(7)]
        sequences = sorted(rows, key=list)
        budget = int(random.integers(6, 30))

        def cost(nodes, alone):
            return nodes + 0.02 * nodes**2 * (0.5 if alone else 1)

        def price(part):
            nodes = unique_tokens(part)
            return cost(nodes, len(part) == 1) if nodes <= budget or len(part) == 1 else np.inf

        best = np.inf
        for places in range(2**6):
            ends = [i + 1 for i in range(6) if places >> i & 1] + [7]
            parts = [sequences[a:b] for a, b in zip([0, *ends], ends, strict=False)]
            best = min(best, sum(map(price, parts)))
        found = [sequences[part] for part in cut(sequences, budget, cost)]
        assert [len(ids) for part in found for ids in part] == [len(ids) for ids in sequences]
        assert sum(map(price, found)) == pytest.approx(best), trial
