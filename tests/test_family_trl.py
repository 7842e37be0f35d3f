"""The objective against TRL's own loss functions, where TRL is installed.

TRL's trainers are not started: their loss methods run on a stand-in that has the attributes they read."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from gspo_cli.algorithm.correction import off_policy_kept
from gspo_cli.config.choices import Aggregation, ClipMode
from gspo_cli.training.batch import MicroBatch, MiniBatch
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.training.selection import select_high_entropy
from tests.support.objectives import algorithm, batch, computed

pytest.importorskip("trl", reason="TRL is an oracle of these tests, not a dependency")

CASES = range(60)
EXACT = 1e-12
ONE_PROCESS = SimpleNamespace(
    gather=lambda value: value,
    gather_for_metrics=lambda value: value,
    reduce=lambda value, reduction="sum": value,
    pad_across_processes=lambda value, **_: value,
    num_processes=1,
    sync_gradients=True,
)


def grpo_trainer():
    from trl.trainer.grpo_trainer import GRPOTrainer

    return GRPOTrainer


def rloo_trainer():
    from trl.trainer.rloo_trainer import RLOOTrainer

    return RLOOTrainer


def gmpo_trainer():
    from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer

    return GMPOTrainer


def trl_loss(trainer, given, entropies=None, inputs=None, **settings):
    """`_compute_loss` of a trainer class on log-probabilities that are given."""
    logprobs, old, advantages, mask = given
    rows, length = logprobs.shape
    entropies = torch.zeros_like(logprobs) if entropies is None else entropies
    arguments = {
        name: settings.pop(name)
        for name in ("delta", "sapo_temperature_pos", "sapo_temperature_neg", "use_bias_correction_kl")
        if name in settings
    }
    stand_in = SimpleNamespace(
        **{
            "_get_per_token_logps_and_entropies": lambda *_, **__: (logprobs, entropies, None),
            "get_high_entropy_mask": lambda *each: grpo_trainer().get_high_entropy_mask(stand_in, *each),
            "get_off_policy_mask": grpo_trainer().get_off_policy_mask,
            "accelerator": ONE_PROCESS,
            "args": SimpleNamespace(
                **{"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1} | arguments
            ),
            "model": SimpleNamespace(training=True),
            "_metrics": {"train": defaultdict(list)},
            "current_gradient_accumulation_steps": 1,
            "aux_loss_enabled": False,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "importance_sampling_level": "token",
            "beta": 0.0,
            "use_vllm": False,
            "use_adaptive_entropy": False,
            "_entropy_bonus_enabled": False,
            "entropy_coef": 0.0,
            "max_completion_length": length,
        }
        | settings
    )
    batch_of_trl = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros(rows, length, dtype=torch.long),
        "completion_mask": mask.to(logprobs.dtype),
        "advantages": advantages[:, 0],
        "old_per_token_logps": old,
        "old_logps": (old * mask).sum(dim=1),
        "num_items_in_batch": mask.sum(),
    }
    return trainer._compute_loss(stand_in, None, batch_of_trl | (inputs or {}))


def agree(config, given, loss, **more):
    found, gradient, _ = computed(config, *given, **more)
    (expected,) = torch.autograd.grad(loss, given[0])
    assert (found - loss).abs() < EXACT
    assert (gradient - expected).abs().max() < EXACT


@pytest.mark.parametrize("seed", CASES)
def test_sapo_is_that_of_trl(seed):
    # temperatures that fp32 has exactly, in which TRL chooses between them
    config = algorithm("token", None, None, clip_mode=ClipMode.soft_gate, tau_pos=0.75, tau_neg=2.5)
    given = batch(seed)
    loss = trl_loss(
        grpo_trainer(), given, loss_type="sapo", sapo_temperature_pos=0.75, sapo_temperature_neg=2.5
    )
    agree(config, given, loss)


@pytest.mark.parametrize("seed", CASES)
def test_gmpo_is_that_of_trl(seed):
    given = batch(seed)
    loss = trl_loss(gmpo_trainer(), given, epsilon_low=0.4, epsilon_high=0.3)
    agree(algorithm("sequence", 0.4, 0.3, clip_mode=ClipMode.token_log), given, loss)


@pytest.mark.parametrize("seed", CASES)
def test_luspo_is_that_of_trl(seed):
    config = algorithm("sequence", 0.1, 0.15, aggregation=Aggregation.sequence_sum)
    given = batch(seed)
    loss = trl_loss(
        grpo_trainer(), given, loss_type="luspo", importance_sampling_level="sequence", epsilon_low=0.1,
        epsilon_high=0.15,
    )  # fmt: skip
    agree(config, given, loss)


@pytest.mark.parametrize(("loss_type", "aggregation"), [("grpo", "sequence_mean"), ("dapo", "token_mean")])
@pytest.mark.parametrize("seed", CASES)
def test_the_dual_clip_is_trls_delta(seed, loss_type, aggregation):
    config = algorithm("token", 0.2, 0.27, clip_ratio_dual=1.6, aggregation=Aggregation[aggregation])
    given = batch(seed)
    loss = trl_loss(grpo_trainer(), given, loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.27, delta=1.6)
    agree(config, given, loss)


@pytest.mark.parametrize("seed", CASES)
def test_rloo_with_a_clip_is_that_of_trl(seed):
    given = batch(seed)
    loss = trl_loss(rloo_trainer(), given, epsilon_low=0.4, epsilon_high=0.5)
    agree(algorithm("sequence_product", 0.4, 0.5), given, loss)
    # bounds that nothing reaches: the unclipped ratio of the preset
    loss = trl_loss(rloo_trainer(), given, epsilon_low=1e9, epsilon_high=1e9)
    agree(algorithm("sequence_product", None, None, clip_mode=ClipMode.none), given, loss)


@pytest.mark.parametrize("seed", CASES)
def test_the_corrected_kl_is_that_of_trl(seed):
    given = batch(seed)
    reference = given[1] + 0.4 * torch.sin(10 * given[1])
    loss = trl_loss(
        grpo_trainer(), given, inputs={"ref_per_token_logps": reference}, loss_type="grpo", epsilon_low=0.2,
        epsilon_high=0.27, beta=0.3, use_bias_correction_kl=True,
    )  # fmt: skip
    agree(algorithm(beta=0.3, kl_bias_corrected=True), given, loss, ref_logprobs=reference)


@pytest.mark.parametrize("seed", CASES)
def test_the_off_policy_mask_is_that_of_trl(seed):
    logprobs, old, advantages, mask = given = batch(seed)
    loss = trl_loss(
        grpo_trainer(), given, loss_type="grpo", epsilon_low=0.2, epsilon_high=0.27,
        off_policy_mask_threshold=0.05,
    )  # fmt: skip
    kept = off_policy_kept(logprobs, old, advantages, mask, 0.05)
    agree(algorithm(), (logprobs, old, advantages * kept, mask), loss)


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("seed", CASES)
def test_tokens_of_high_entropy_are_those_of_trl(seed, share):
    logprobs, old, advantages, mask = given = batch(seed)
    # values that fp32 has exactly, in which TRL takes the quantile
    entropies = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)).double()
    loss = trl_loss(
        grpo_trainer(), given, entropies=entropies, loss_type="grpo", epsilon_low=0.2, epsilon_high=0.27,
        top_entropy_quantile=share,
    )  # fmt: skip
    micro = MicroBatch([], mask.long(), mask, old, advantages)
    update = MiniBatch([micro], 0.0, 0, 0, 0, 0.0, 0, 0)
    select_high_entropy(update, lambda _: entropies, ProcessGroup(), share)
    agree(algorithm(), (logprobs, old, advantages * micro.selected, mask), loss)
