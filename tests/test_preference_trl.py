"""Pairs against TRL's own DPO loss, where TRL is installed.

TRL's trainer is not started: its collator lays out the pairs, and its loss method runs on a stand-in that has
the attributes it reads, over the models of this test."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gspo_cli.training.credit import compared
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.stored_pairs import PairCollector
from tests.support.batches import gradients_of
from tests.test_family_trl import ONE_PROCESS
from tests.test_stored_pairs import prepared

pytest.importorskip("trl", reason="TRL is an oracle of these tests, not a dependency")

LOSSES = {
    "sigmoid": ("dpo", "sequence_sum"),
    "sigmoid_norm": ("dpo", "sequence_mean"),
    "ipo": ("ipo", "sequence_mean"),  # which TRL normalizes by length
}


def as_trl_calls_it(model):
    """A model under the call of TRL's fused head: what it returns for every position but the first."""

    def call(input_ids, attention_mask, labels, use_cache, fused_lm_head):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].float()
        logprobs, targets = logits.log_softmax(-1), labels[:, 1:]
        found = logprobs.gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0]
        return SimpleNamespace(
            log_probs=torch.where(targets >= 0, found, 0),
            entropy=-(logprobs.exp() * logprobs).sum(-1),
            mean_logits=logits.mean(-1),
            is_top1=logits.argmax(-1) == targets,
        )

    return call


def trl_loss(groups, policy, reference, loss_type, beta):
    """The loss of TRL's trainer on the tokens of `groups`, and what it logs."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    def ids(trajectory, sampled):
        tokens = zip(trajectory.token_ids, trajectory.action_mask, strict=True)
        return [token for token, trained in tokens if trained == sampled]

    examples = [
        {"prompt_ids": ids(a, False), "chosen_ids": ids(a, True), "rejected_ids": ids(b, True)}
        for a, b in groups
    ]
    inputs = DataCollatorForPreference(policy.chat.pad_id).torch_call(examples)
    metrics = {"train": defaultdict(list)}
    stand_in = SimpleNamespace(
        model=SimpleNamespace(training=True),
        ref_model=as_trl_calls_it(reference),
        accelerator=SimpleNamespace(**vars(ONE_PROCESS), device=torch.device("cpu")),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
    )
    loss = DPOTrainer._compute_loss(stand_in, as_trl_calls_it(policy.causal_model), inputs, False)
    return loss, {name: values[-1] for name, values in metrics["train"].items()}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_gradient_and_metrics_are_those_of_trl(load, configure, tmp_path, monkeypatch, loss_type):
    monkeypatch.setattr("trl.trainer.dpo_trainer.disable_gradient_checkpointing", lambda *_: nullcontext())
    monkeypatch.setattr("trl.trainer.dpo_trainer.is_peft_model", lambda _: False)
    preference, aggregation = LOSSES[loss_type]
    settings = ("training.updates_per_rollout=1", "training.max_grad_norm=1e6", "algorithm.beta=0.3")
    chosen = (f"algorithm.preference={preference}", f"algorithm.aggregation={aggregation}")
    updater, pairs, _ = prepared(load, configure, tmp_path, *settings, *chosen)
    policy, reference = updater.policy, load("qwen3").causal_model
    groups = PairCollector(updater.config, pairs).collect(0, 0, Clock()).groups
    loss, theirs = trl_loss(groups, policy, reference, loss_type, 0.3)
    expected = torch.autograd.grad(loss, policy.trainable())
    found = gradients_of(updater.strategy, policy.trainable())
    mine = update_metrics(updater.run(compared(groups), np.random.default_rng(0), Clock()))
    assert mine["loss"] == pytest.approx(loss.item(), rel=2e-6)
    assert max(grad.abs().max() for grad in expected) > 1e-3
    [gradient] = found
    flat = torch.cat([grad.flatten() for grad in expected])
    torch.testing.assert_close(gradient, flat, rtol=1e-4, atol=2e-6)
    if aggregation == "sequence_sum":  # TRL logs sums whatever the loss normalizes
        assert mine["preference/accuracy"] == theirs["rewards/accuracies"]
        for name in ("chosen", "rejected"):
            assert mine[f"preference/{name}"] == pytest.approx(theirs[f"rewards/{name}"], abs=2e-6)
        assert mine["preference/margin"] == pytest.approx(theirs["rewards/margins"], abs=2e-6)
    assert mine["entropy"] == pytest.approx(theirs["entropy"], abs=1e-5)
