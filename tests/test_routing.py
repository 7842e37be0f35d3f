"""Experts of a Mixture-of-Experts model: what is recorded, what is forced, and what a change is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import linear, silu
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    JambaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.jamba.modeling_jamba import JambaTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from gspo_cli.config.choices import Precision
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.routing import (
    RULES,
    RouterPass,
    Routing,
    RoutingStats,
    predicting,
    require_routing,
    shares_normalized,
    shares_of_all,
    shares_of_chosen,
)
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.strategy import OneProcess
from gspo_cli.training.update import Updater
from tests.support.batches import Small, ragged, samples_of, weights
from tests.support.whole_runs import EvenReward, dotted, run

LAYERS, EXPERTS, CHOSEN = 2, 4, 2  # of the folder qwen3_moe
FORMS = [
    pytest.param(
        {"use_lora": lora, "gradient_checkpointing": again, "freeze_router": lora}, id=f"{form} {how}"
    )
    for lora, form in ((True, "lora"), (False, "full"))
    for again, how in ((True, "checkpointed"), (False, "kept"))
]


def move(policy, size=0.5, seed=1):
    """Change routers, and with them the hidden states of later layers."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".gate." in name:
                parameter += size * torch.randn(parameter.shape, generator=random)


def replay(policy, ids, mask, forced):
    """Log-probabilities with `forced` experts (None: its own), gradient of their sum, the routers' pass."""
    with policy.updating(), policy.routing.watched(forced) as routed:
        logprobs, _ = policy(ids, mask, 1.0)
        logprobs.sum().backward()
    grads = torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None]).clone()
    policy.zero_grad(set_to_none=True)
    return logprobs.detach(), grads, routed


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("precision", list(Precision))
def test_with_unchanged_weights_replay_changes_no_bit(load, precision, settings):
    policy = load("qwen3_moe", HardwareConfig(precision=precision), **settings)
    ids, mask = ragged(policy)
    with torch.no_grad(), policy.routing.watched() as routed:
        scored, _ = policy(ids, mask, 1.0)
    experts = routed.experts(ids.shape)
    assert experts.shape == (*ids.shape, LAYERS, CHOSEN)
    assert experts.dtype == torch.uint8
    free, free_grads, _ = replay(policy, ids, mask, None)
    forced, forced_grads, again = replay(policy, ids, mask, experts)
    assert torch.equal(scored, free)
    assert torch.equal(free, forced)
    assert free_grads.abs().max() > 0
    assert torch.equal(free_grads, forced_grads)
    assert torch.equal(again.experts(ids.shape), experts)


def test_the_same_holds_for_logits_of_a_model_with_dense_layers_between():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, moe_intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=300, num_experts_per_tok=3,
        decoder_sparse_step=2, initializer_range=0.3,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).eval()
    routing = Routing(model)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        with routing.watched() as routed:
            free = model(ids).logits
        experts = routed.experts(ids.shape)
        with routing.watched(experts):
            forced = model(ids).logits
        with routing.watched((experts + 1) % 300):
            other = model(ids).logits
    assert experts.shape == (2, 10, 2, 3)  # routers in layers 1 and 3 of 4
    assert experts.dtype == torch.int16  # 300 experts do not fit a byte
    assert torch.equal(free, forced)
    assert (free - other).abs().max() > 0.1


def by_hand(block, hidden, ids):
    """Qwen3-MoE with chosen experts: all answer, the chosen ones weighed by their shares among them."""
    shares = linear(hidden, block.gate.weight).softmax(dim=-1).gather(dim=-1, index=ids)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    gate, up = torch.einsum("nd,efd->nef", hidden, block.experts.gate_up_proj).chunk(2, dim=-1)
    answers = torch.einsum("nef,edf->ned", silu(gate) * up, block.experts.down_proj)  # (N, E, D)
    return sum(shares[:, i, None] * answers[torch.arange(len(ids)), ids[:, i]] for i in range(ids.shape[1]))


def test_moved_routers_weigh_the_old_experts_and_learn_from_it(load):
    policy = load("qwen3_moe", freeze_router=False)
    block = policy.causal_model.base_model.layers[0].mlp
    hidden = torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(0))
    flat = hidden.view(60, 32)
    with torch.no_grad(), policy.routing.watched() as routed:
        block(hidden)
    before = routed.experts((2, 30))
    old = before.view(60, CHOSEN).long()
    move(policy)
    with policy.routing.watched(before) as routed:
        forced = block(hidden).view(60, 32)
    new = linear(flat, block.gate.weight).topk(CHOSEN, dim=-1).indices
    assert (old.sort(dim=-1).values != new.sort(dim=-1).values).any()
    assert torch.equal(routed.experts((2, 30)).view(60, CHOSEN).long(), new)  # what they would have chosen
    torch.testing.assert_close(forced, by_hand(block, flat, old), rtol=0, atol=1e-6)
    torch.testing.assert_close(block(hidden).view(60, 32), by_hand(block, flat, new), rtol=0, atol=1e-6)
    assert (by_hand(block, flat, old) - by_hand(block, flat, new)).abs().max() > 1e-5
    (grad,) = torch.autograd.grad((1e3 * forced**2).sum(), block.gate.weight)
    (expected,) = torch.autograd.grad((1e3 * by_hand(block, flat, old) ** 2).sum(), block.gate.weight)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [True, False])
def test_checkpointing_replays_in_backward_too(load, lora):
    found = []
    for again in (True, False):
        policy = load("qwen3_moe", use_lora=lora, freeze_router=lora, gradient_checkpointing=again)
        ids, mask = ragged(policy, lengths=(20, 30, 25))
        with torch.no_grad(), policy.routing.watched() as routed:
            policy(ids, mask, 1.0)
        before = routed.experts(ids.shape)
        move(policy)
        forced = replay(policy, ids, mask, before)
        assert forced[2].changes(before, mask).changed_pairs > 20
        assert (forced[1] - replay(policy, ids, mask, None)[1]).abs().max() > 1e-5
        found.append(forced)
    (one, one_grads, one_pass), (other, other_grads, other_pass) = found
    assert torch.equal(one, other)
    torch.testing.assert_close(one_grads, other_grads, rtol=0, atol=1e-6)
    assert torch.equal(one_pass.experts(ids.shape), other_pass.experts(ids.shape))


def test_a_change_is_counted_in_sets_where_a_trained_token_is_predicted():
    random = torch.Generator().manual_seed(0)
    before, now = (torch.rand(2, 7, 3, 8, generator=random).topk(4).indices for _ in range(2))
    now[0, :4] = before[0, :4].flip(dims=(-1,))  # the same sets in another order
    mask = torch.rand(2, 7, generator=random) < 0.6
    mask[0, 2] = True
    routed = RouterPass(None, False)
    for layer in range(3):
        for ids in (now, before):  # the second is what gradient checkpointing computes again
            routed.record(layer, torch.zeros(14, 8), ids[:, :, layer].reshape(14, 4))
    expected = RoutingStats()
    for row, token, layer in np.ndindex(2, 7, 3):
        if token + 1 < 7 and mask[row, token + 1]:
            was, new = (set(ids[row, token, layer].tolist()) for ids in (before, now))
            expected += RoutingStats(1, int(was != new), 4, len(new - was))
    assert 0 < expected.changed_pairs < expected.pairs
    assert expected.changed_pairs < expected.replaced_choices < expected.choices
    assert routed.changes(before.to(torch.uint8), mask) == expected


@pytest.mark.parametrize(
    ("router", "config", "rule"),
    [
        (Qwen3MoeTopKRouter, Qwen3MoeConfig(hidden_size=64, norm_topk_prob=True), shares_normalized),
        (Qwen3MoeTopKRouter, Qwen3MoeConfig(hidden_size=64, norm_topk_prob=False), shares_of_all),
        (MixtralTopKRouter, MixtralConfig(hidden_size=64), shares_normalized),
        (JambaTopKRouter, JambaConfig(hidden_size=64), shares_of_all),
        (GptOssTopKRouter, GptOssConfig(hidden_size=64), shares_of_chosen),
    ],
)
def test_routers_of_other_models_follow_one_of_the_rules(router, config, rule):
    torch.manual_seed(0)
    one = router(config)
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    logits, scores, chosen = one(torch.randn(50, 64))
    assert [r for r in RULES if torch.equal(r(logits, chosen), scores)] == [rule]


def updated(load, configure, *overrides, seed=0, **settings):
    """Metrics, report and weights after one iteration of the folder qwen3_moe."""
    config, _ = configure("model=tiny_moe", *overrides)
    policy = load("qwen3_moe", **({"freeze_router": False} | settings))
    report = Updater(policy, config).run(samples_of(policy, seed=seed), np.random.default_rng(0), Clock())
    return update_metrics(report), report, weights(policy)


def test_the_update_counts_changes_from_the_second_step_on(load, configure):
    metrics, report, _ = updated(load, configure, "algorithm.learning_rate=0.003")
    found = report.sums.routing
    policy = load("qwen3_moe")
    config, _ = configure("model=tiny_moe")
    minibatches = Updater(policy, config).collator.minibatches(samples_of(policy), np.random.default_rng(0))
    assert found.pairs == LAYERS * sum(minibatch.tokens for minibatch in minibatches[1:])
    assert found.choices == CHOSEN * found.pairs
    assert report.sums.last_routing.pairs == LAYERS * minibatches[-1].tokens
    assert metrics["moe/expert_change"] == found.changed_pairs / found.pairs
    assert 0 < metrics["moe/experts_replaced"] <= metrics["moe/expert_change"] <= 1
    assert metrics["moe/expert_change_last"] > metrics["moe/expert_change"]  # the furthest from the rollout
    assert "moe/aux_loss" not in metrics


def test_one_step_per_rollout_and_dense_models_have_no_change_to_report(load, configure):
    metrics, report, _ = updated(load, configure, "training.updates_per_rollout=1")
    assert report.sums.routing == RoutingStats()
    assert not [name for name in metrics if name.startswith("moe/")]
    config, _ = configure()
    policy = load("qwen3")
    report = Updater(policy, config).run(samples_of(policy), np.random.default_rng(0), Clock())
    assert not [name for name in update_metrics(report) if name.startswith("moe/")]


@pytest.mark.parametrize("algorithm", ["gspo", "gspo_token", "grpo", "cispo"])
def test_replayed_updates_with_steps_too_small_for_a_weight_have_ratio_one(load, configure, algorithm):
    overrides = [f"algorithm={algorithm}", "algorithm.routing_replay=true", "algorithm.learning_rate=1e-30"]
    metrics, report, _ = updated(load, configure, *overrides, gradient_checkpointing=True)
    assert report.sums.routing.pairs > 0
    assert metrics["moe/expert_change"] == 0
    assert (metrics["ratio/min"], metrics["ratio/max"]) == (1, 1)


def test_replay_trains_other_weights_and_still_reports_what_routers_wanted(load, configure):
    rate = "algorithm.learning_rate=0.03"
    free, _, moved = updated(load, configure, "algorithm=grpo", rate)
    replayed, _, held = updated(load, configure, "algorithm=grpo", rate, "algorithm.routing_replay=true")
    assert replayed["moe/expert_change"] > 0
    assert free["moe/expert_change"] > 0
    assert (moved - held).abs().max() > 1e-4


def test_halved_micro_batches_keep_their_experts(load, configure):
    settings = [
        "algorithm.routing_replay=true",
        "algorithm.learning_rate=0.01",
        "hardware.tokens_per_microbatch=80",
    ]
    config, _ = configure("model=tiny_moe", *settings)
    wide, narrow = (load("qwen3_moe", freeze_router=False) for _ in range(2))
    Small(narrow, tokens=45)
    reports = [
        Updater(policy, config).run(samples_of(policy), np.random.default_rng(0), Clock())
        for policy in (wide, narrow)
    ]
    assert [report.oom_events > 0 for report in reports] == [False, True]
    assert reports[0].sums.routing == reports[1].sums.routing
    assert reports[0].sums.routing.changed_pairs > 0
    torch.testing.assert_close(weights(narrow), weights(wide), rtol=0, atol=1e-6)


class Held(OneProcess):
    """Keeps the gradient of each step and takes none."""

    def __init__(self, policy, config):
        super().__init__(policy, config)
        self.gradients = []

    def step(self, rate):
        self.gradients.append({n: p.grad.clone() for n, p in self.policy.model.named_parameters()})
        self.drop_gradient()
        return 1.0


@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_the_auxiliary_loss_is_the_librarys_in_the_mean_over_sequences(load, configure, again):
    gradients, losses = {}, {}
    overrides = ["model=tiny_moe", "training.updates_per_rollout=1", "hardware.tokens_per_microbatch=70"]
    policy = load("qwen3_moe", freeze_router=False, gradient_checkpointing=again)
    samples = samples_of(policy, advantages=[1.0, -0.5, 0.0, 0.7] * 4)
    for weight in (0.0, 0.3):
        config, _ = configure(*overrides, f"model.router_aux_loss={weight}")
        strategy = Held(policy, config)
        updater = Updater(policy, config, strategy)
        report = updater.run(samples, np.random.default_rng(0), Clock())
        gradients[weight] = strategy.gradients[0]
        losses[weight] = update_metrics(report).get("moe/aux_loss")
    (minibatch,) = updater.collator.minibatches(samples, np.random.default_rng(0))
    assert len(minibatch.micro_batches) > 2
    policy.causal_model.train()
    total = 0.0
    for micro in minibatch.micro_batches:  # 12 sequences have an advantage; padding is out of the mask
        mask = micro.action_mask
        last = torch.where(predicting(mask), torch.arange(mask.shape[1]), -1).amax(dim=1, keepdim=True)
        real = (torch.arange(mask.shape[1]) <= last).long()
        output = policy.causal_model(micro.token_ids, attention_mask=real, output_router_logits=True)
        total = total + output.aux_loss * len(mask) / 12
    names, parameters = zip(*policy.model.named_parameters(), strict=True)
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    assert losses == {0.0: None, 0.3: pytest.approx(total.item(), abs=1e-6)}
    for name, grad in zip(names, expected, strict=True):
        added = gradients[0.3][name] - gradients[0.0][name]
        wanted = torch.zeros_like(added) if grad is None else 0.3 * grad
        torch.testing.assert_close(added, wanted, rtol=1e-4, atol=1e-6)
        assert ".gate." not in name or wanted.abs().max() > 1e-4  # routers learn from it


def test_the_auxiliary_loss_spreads_tokens_over_experts(load, configure):
    config, _ = configure("model=tiny_moe", "model.router_aux_loss=10", "algorithm.learning_rate=0.01")
    policy = load("qwen3_moe", freeze_router=False)
    move(policy)
    updater = Updater(policy, config)
    found = [
        update_metrics(updater.run(samples_of(policy, seed=i), np.random.default_rng(i), Clock()))
        for i in range(8)
    ]
    first, last = (metrics["moe/aux_loss"] - CHOSEN for metrics in (found[0], found[-1]))
    assert first > 0.02
    assert last < first / 2


def test_without_an_auxiliary_loss_no_logits_are_kept(load):
    policy = load("qwen3_moe")
    ids, mask = ragged(policy)
    for with_logits, kept in ((False, 0), (True, LAYERS)):
        with policy.routing.watched(None, with_logits) as routed:
            policy(ids, mask, 1.0)
        assert len(routed._logits) == kept


def test_settings_for_routers_are_refused_where_there_are_none(load, configure):
    policy = load("qwen3")
    config, _ = configure("algorithm=grpo", "algorithm.routing_replay=true")
    with pytest.raises(UserError, match=r"routing_replay=true: .* has no routed experts; set"):
        Updater(policy, config)
    config, _ = configure("model=tiny_moe", "model.router_aux_loss=0.1")
    with pytest.raises(UserError, match=r"router_aux_loss=0\.1: .* has no routed experts; set"):
        Updater(policy, config)
    with pytest.raises(
        UserError,
        match=r"router_aux_loss=0\.1: has no effect on frozen routers; .* model\.freeze_router=false",
    ):
        configure("model=tiny_moe", "model.freeze_router=true", "model.router_aux_loss=0.1")


def test_routers_that_weigh_by_another_rule_are_watched_but_not_forced(configure):
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=50, hidden_size=16, intermediate_size=24, moe_intermediate_size=24, q_lora_rank=8,
            num_hidden_layers=2, first_k_dense_replace=1, num_attention_heads=2, num_key_value_heads=2,
            n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=8,
            qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        )
    ).eval()  # fmt: skip
    routing = Routing(model)
    with torch.no_grad(), routing.watched() as routed:
        model(torch.arange(10).view(1, 10))
    assert routed.experts((1, 10)).shape == (1, 10, 1, 2)
    config, _ = configure("algorithm.routing_replay=true")
    with pytest.raises(UserError, match="weights its experts by an unknown rule"):
        require_routing(routing, config)


def test_a_run_logs_how_many_experts_changed(configure, tmp_path, reporter):
    free = ["model=tiny_moe", dotted(EvenReward), "algorithm.learning_rate=0.03"]
    for name, overrides in (
        ("free", free),
        (
            "replayed",
            [*free, "algorithm=grpo", "algorithm.routing_replay=true", "model.router_aux_loss=0.01"],
        ),
    ):
        summary, folder = run(configure(*overrides), tmp_path / name, reporter)
        assert summary["status"] == "completed"
        lines = folder.read("metrics.jsonl")
        assert all(0 < line["moe/expert_change"] <= 1 for line in lines)
        assert all(("moe/aux_loss" in line) == (name == "replayed") for line in lines)
