"""Sequences that begin alike are computed once, and every number stays that of the plain sequences."""

from __future__ import annotations

from functools import partial

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

from gspo_cli.config.choices import Attention, Precision
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.prefix_tree import cut, plant, unique_tokens
from gspo_cli.training.collator import deal
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.sharing import Sharing, _kernel_noise, obstacle, sharing
from gspo_cli.training.strategy import OneProcess
from gspo_cli.training.update import Updater
from tests.support.batches import Small, conversations, weights

TREE = Sharing(True, attention_share=1e-4)
OBJECTIVES = (
    "gspo", "gspo_token", "grpo", "dr_grpo", "dapo", "cispo", "rloo", "rloo_token", "sapo", "gmpo", "luspo",
)  # fmt: skip


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
                now, entropy = updater._scored(micro, with_entropy=True)
                micro.ref_logprobs = now - 0.1
            micro.old_logprobs = now + shift * (micro.token_ids % 3 - 1)
            loss, _, _ = updater.loss(micro, minibatch)
            loss.backward()
            total += loss.item()
            for sample, values, entropies in zip(micro.samples, now, entropy, strict=True):
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
    assert [path.tolist() for path in tree.paths] == [
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [0, 6],
    ]
    assert unique_tokens(sequences) == 7


def test_a_cut_is_the_cheapest():
    random = np.random.default_rng(0)
    for trial in range(60):
        rows = [random.integers(2, size=random.integers(1, 9)) for _ in range(7)]
        sequences = sorted(rows, key=list)
        budget = int(random.integers(6, 30))

        def cost(nodes, alone):
            return nodes + 0.02 * nodes**2 * (0.5 if alone else 1)

        def price(part, budget=budget):
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


def whole_run(policy, config, samples, share, rollouts=3):
    """Metrics of a few rollouts of updates on the same samples, and the weights after them."""
    updater = Updater(policy, config, sharing=share)
    found = [update_metrics(updater.run(samples, np.random.default_rng(i), Clock())) for i in range(rollouts)]
    return found, weights(policy)


def same(one, other, tolerance):
    """Whether two metrics lines are equal, except the micro-batches' own."""
    assert one.keys() == other.keys()
    for name in one.keys() - {"ratio/first_step_abs_err", "tokens_per_microbatch"}:
        assert (one[name] is None) == (other[name] is None), name
        if one[name] is not None:
            assert other[name] == pytest.approx(one[name], abs=tolerance, rel=tolerance), name


@pytest.mark.parametrize("by", ["group", "answer"])
def test_twenty_steps_end_at_the_same_weights(load, configure, by):
    config, _ = configure(
        "algorithm=gspo", "algorithm.learning_rate=0.003", f"training.minibatch_by={by}",
        "training.updates_per_rollout=4", "hardware.tokens_per_microbatch=50",
    )  # fmt: skip
    samples = conversations()
    plain, expected = whole_run(in_double("qwen3", load), config, samples, Sharing(False), rollouts=5)
    packed, found = whole_run(in_double("qwen3", load), config, samples, TREE, rollouts=5)
    for one, other in zip(plain, packed, strict=True):
        same(one, other, 1e-8)
    assert plain[0]["clip_ratio/sequence"] > 0
    assert (found - expected).abs().max() < 1e-8
    assert (expected - weights(in_double("qwen3", load))).abs().max() > 1e-3


@pytest.mark.parametrize(
    "settings", [{}, {"use_lora": True}, {"use_lora": True, "gradient_checkpointing": True}]
)
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt2"])
def test_in_fp32_packed_and_plain_differ_by_rounding(load, configure, name, settings):
    config, _ = configure("algorithm=gspo", "algorithm.beta=0.1")
    policy = load(name, **settings)
    samples = conversations(vocabulary=policy.causal_model.config.vocab_size)
    plain, _, gradient = step(policy, config, samples, Sharing(False))
    packed, _, other = step(policy, config, samples, TREE)
    assert max((plain[key] - packed[key]).abs().max() for key in plain) < 5e-5
    assert (other - gradient).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("kind", list(Attention)[:3])
def test_each_kind_of_attention_reads_the_mask(load, configure, kind):
    config, _ = configure("algorithm=gspo", "algorithm.beta=0.1")
    policy = load("qwen3", attention=kind)
    assert sharing(config, policy, OneProcess(policy, config)).on
    _, loss, gradient = step(policy, config, conversations(), Sharing(False))
    _, packed, other = step(policy, config, conversations(), TREE)
    assert packed == pytest.approx(loss, abs=1e-6)
    assert (other - gradient).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("settings", [[], ["algorithm.routing_replay=true"], ["model.router_aux_loss=0.2"]])
def test_experts_count_once_for_each_answer(load, configure, settings, monkeypatch):
    # the auxiliary loss is that of a micro-batch: both layouts have one
    monkeypatch.setattr("gspo_cli.training.batch.SIMILAR", 0)
    config, _ = configure(
        "model=tiny_moe", "algorithm=grpo", "algorithm.learning_rate=0.003", "training.updates_per_rollout=2",
        "training.minibatch_by=group", "hardware.tokens_per_microbatch=4000", *settings,
    )  # fmt: skip
    samples = conversations()
    (plain, expected), (packed, found) = (
        whole_run(load("qwen3_moe", freeze_router=False), config, samples, share, rollouts=1)
        for share in (Sharing(False), TREE)
    )
    same(plain[0], packed[0], 1e-3)
    assert packed[0]["moe/expert_change"] == plain[0]["moe/expert_change"] > 0
    assert (expected - found).abs().max() < 1e-4


def test_memory_that_runs_out_cuts_the_tree_and_changes_no_number(load, configure):
    config, _ = configure(
        "algorithm=gspo", "algorithm.learning_rate=0.01", "hardware.tokens_per_microbatch=200"
    )
    samples = conversations()
    wide, narrow = in_double("qwen3", load), in_double("qwen3", load)
    small = Small(narrow, tokens=45)
    expected = Updater(wide, config, sharing=TREE).run(samples, np.random.default_rng(0), Clock())
    updater = Updater(narrow, config, sharing=TREE)
    report = updater.run(samples, np.random.default_rng(0), Clock())
    assert small.refused == report.oom_events >= 1
    assert report.tokens_per_microbatch == updater.collator.budget < 100
    same(update_metrics(expected) | {"oom_events": 0}, update_metrics(report) | {"oom_events": 0}, 1e-8)
    assert (weights(narrow) - weights(wide)).abs().max() < 1e-8


def test_the_ratio_of_the_first_minibatch_is_exactly_one_in_a_tree(load, configure):
    config, _ = configure("algorithm=gspo", "training.updates_per_rollout=1")
    for name in ("qwen3", "gpt2"):
        policy = load(name)
        samples = conversations(vocabulary=policy.causal_model.config.vocab_size)
        report = Updater(policy, config, sharing=TREE).run(samples, np.random.default_rng(0), Clock())
        assert (report.sums.stats.deviation_min, report.sums.stats.deviation_max) == (0.0, 0.0)
        assert report.sums.first_step_abs_err == 0.0


def test_shared_tokens_are_computed_once(load, configure):
    config, _ = configure("algorithm=gspo", "hardware.tokens_per_microbatch=4000")
    policy = load("qwen3")
    samples = [s for s in conversations() if s.num_actions]
    samples = [*samples[::3], *samples[1::3], *samples[2::3]]  # in any order
    micros = Updater(policy, config, sharing=TREE).collator.micro_batches(samples)
    assert sum(micro.computed for micro in micros) == unique_tokens(
        sorted((s.ids for s in samples), key=list)
    )
    assert sum(s.length for s in samples) > 1.5 * sum(micro.computed for micro in micros)


def test_a_sequence_too_long_for_a_tree_is_not_put_beside_one(load, configure, monkeypatch):
    config, _ = configure("algorithm=gspo", "hardware.tokens_per_microbatch=4000")
    samples = [s for s in conversations() if s.num_actions]
    longest = max(s.length for s in samples)
    monkeypatch.setattr("gspo_cli.training.collator.LONGEST_ROW", longest - 1)
    micros = Updater(load("qwen3"), config, sharing=TREE).collator.micro_batches(samples)
    assert any(micro.rows is not None for micro in micros)
    for micro in micros:
        assert micro.rows is None or micro.rows.token_ids.shape[1] < longest
    assert sorted(s.length for micro in micros for s in micro.samples) == sorted(s.length for s in samples)


def test_ranks_get_whole_groups_of_about_equal_work():
    samples = [s for s in conversations(groups=9) if s.num_actions]
    dealt = deal(samples, 3)
    assert sorted(map(id, samples)) == sorted(id(s) for part in dealt for s in part)
    prompts = [{s.prompt for s in part} for part in dealt]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    work = [unique_tokens(sorted((s.ids for s in part), key=list)) for part in dealt]
    assert max(work) < 1.4 * min(work)
    # fewer groups than ranks: a group is split
    few = deal(samples[:4], 3)
    assert [len(part) > 0 for part in few] == [True] * 3
    assert sorted(map(id, samples[:4])) == sorted(id(s) for part in few for s in part)


def decided(policy, configure, *overrides):
    config, _ = configure(*overrides)
    return sharing(config, policy, OneProcess(policy, config))


def test_models_that_see_all_tokens_share(exact, configure):
    assert decided(exact, configure).on
    found = decided(exact, configure, "training.share_prefixes=off")
    assert (found.on, found.reason) == (False, "training.share_prefixes=off")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (
            lambda: model(MistralConfig, sliding_window=16),
            "its attention is limited to 16 tokens, and conversations may have",
        ),
        (
            lambda: model(
                GptOssConfig, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
                layer_types=["sliding_attention", "full_attention"],
            ).float(),
            "its attention is limited to 16 tokens, and conversations may have",
        ),
    ],
    ids=["mistral", "gpt-oss"],
)  # fmt: skip
def test_models_with_windows_compute_each_answer_by_itself(load, configure, made, reason):
    policy = Policy(made(), load("qwen3").tokenizer)
    found = decided(policy, configure)
    assert not found.on
    assert found.reason.startswith(reason)


def test_a_window_that_holds_every_conversation_is_none(load):
    policy = Policy(model(MistralConfig, sliding_window=64), load("qwen3").tokenizer)
    assert obstacle(policy, 64) is None
    assert obstacle(policy, 65) is not None


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_a_model_that_computes_something_else_in_a_tree_is_found_by_trying(
    load, configure, monkeypatch, name, precision
):
    policy = load(name, HardwareConfig(precision=precision))
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.mul_(3 if parameter.ndim > 1 else 1)  # so that tokens depend on each other
    assert decided(policy, configure).on
    for layer in policy.causal_model.base_model.layers:
        plain = layer.self_attn.forward
        unmasked = partial(lambda plain, *args, **kw: plain(*args, **kw | {"attention_mask": None}), plain)
        monkeypatch.setattr(layer.self_attn, "forward", unmasked)
    found = decided(policy, configure)
    assert not found.on
    assert found.reason.startswith("its log-probabilities differ by ")


@pytest.mark.parametrize("precision", list(Precision))
def test_in_bf16_kernels_that_round_otherwise_are_noise(load, precision):
    """On a GPU plain rows of all layouts are equal to the bit there, and rows with a mask are not."""
    policy = load("qwen3", HardwareConfig(precision=precision))
    noise = _kernel_noise(np.arange(40), policy, lambda *row: policy(*row, 1.0)[0])
    assert (1e-4 < noise < 0.05) if precision is Precision.bf16 else (noise < 1e-5)
