"""Rows of prefix trees by flex_attention: the mask is that of the tree, and so are the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from transformers.masking_utils import create_causal_mask

from gspo_cli.config.choices import Attention, Device, Precision
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.packed import PackedRows
from gspo_cli.policy.tree_attention import block_mask, has_tree_attention
from gspo_cli.training.memory_plan import tree_mask
from gspo_cli.training.sharing import Sharing, sharing
from gspo_cli.training.strategy import OneProcess
from gspo_cli.training.update import Updater
from tests.support.batches import conversations, ragged

FLEX = Attention.flex_attention
TREE = Sharing(True, attention_share=1e-4)


@pytest.fixture
def uncompiled():
    """flex_attention by plain products: compiling it for a CPU takes a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # by torch's own import
]


def random_rows(random, trees=3):
    """Trees of up to 7 sequences of two different tokens, which often begin alike."""
    rows = []
    for _ in range(trees):
        lengths = random.integers(2, 9, size=random.integers(1, 8))
        rows.append(sorted((random.integers(2, size=length) for length in lengths), key=list))
    masks = [np.ones(len(ids), dtype=bool) for row in rows for ids in row]
    return PackedRows.of(rows, masks, 9, 0, torch.device("cpu"))


def test_a_node_sees_what_the_dense_mask_shows():
    random = np.random.default_rng(0)
    for _ in range(30):
        rows = random_rows(random)
        count, size = rows.ends.shape
        mask = block_mask(rows.ends)
        assert mask.shape == (count, 1, size, size)
        seen = create_mask(mask.mask_mod, count, 1, size, size, device="cpu")
        assert torch.equal(seen, rows.attention_bias(torch.float32) == 0)


def test_blocks_without_a_pair_are_skipped():
    # a beginning of two blocks, and three answers of two blocks each
    ends = torch.tensor([1024] * 256 + [512] * 256 + [768] * 256 + [1024] * 256)[None]
    mask = block_mask(ends)
    causal, apart = 8 * 9 // 2, 3 * 2 * 2  # pairs of blocks: of all, and of different answers
    found = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert found == causal - apart


def test_transformers_hands_a_block_mask_on_as_it_is(load):
    policy = load("qwen3", attention=FLEX)
    mask = block_mask(torch.full((2, 5), 5))
    hidden = torch.zeros(2, 5, 8)
    config = policy.causal_model.config
    assert create_causal_mask(config, hidden, mask, past_key_values=None) is mask


def logprobs(policy, config, samples, share):
    updater = Updater(policy, config, sharing=share)
    with torch.no_grad():
        micros = updater.collator.minibatch(samples).micro_batches
        assert any(micro.rows is not None for micro in micros) == share.on
        return {
            id(sample): values[: sample.length]
            for micro in micros
            for sample, values in zip(micro.samples, updater._logprobs(micro), strict=True)
        }


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_rows_of_trees_are_scored_as_by_sdpa(load, configure, uncompiled, name):
    config, _ = configure("algorithm=gspo", "hardware.tokens_per_microbatch=100")
    samples = conversations()
    policy = load(name, attention=FLEX)
    assert has_tree_attention(policy.causal_model)
    plain, packed = (logprobs(policy, config, samples, share) for share in (Sharing(False), TREE))
    fused = logprobs(load(name), config, samples, TREE)
    assert max((plain[key] - packed[key]).abs().max() for key in plain) < 5e-5
    assert max((fused[key] - packed[key]).abs().max() for key in plain) < 5e-5


def test_under_autocast_rows_are_computed_in_its_precision(load, configure, uncompiled):
    config, _ = configure("algorithm=gspo", "hardware.tokens_per_microbatch=100")
    samples, hardware = conversations(), HardwareConfig(precision=Precision.bf16)
    found, fused = (
        logprobs(load("qwen3", hardware, attention=kind), config, samples, TREE)
        for kind in (FLEX, Attention.sdpa)
    )
    assert max((fused[key] - found[key]).abs().max() for key in fused) < 0.05


def test_plain_rows_are_those_of_sdpa_and_have_a_gradient(load):
    policy, fused = (load("qwen3", attention=kind) for kind in (FLEX, Attention.sdpa))
    ids, mask = ragged(policy)
    found = []
    for each in (policy, fused):
        values, _ = each(ids, mask, 1.0)
        values.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in each.trainable() if p.grad is not None])
        found.append((values.detach(), gradient))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_tree_without_a_backward_pass_is_found_by_trying(load, configure, uncompiled):
    config, _ = configure()
    policy = load("qwen3", attention=FLEX)
    found = sharing(config, policy, OneProcess(policy, config))
    assert not found.on
    assert found.reason.startswith("it failed on a tree (NotImplementedError: FlexAttention does not support")
    assert all(p.grad is None for p in policy.trainable())
    assert not policy.model.training


def test_it_is_refused_on_a_cpu(configure):
    with pytest.raises(UserError) as error:
        configure("model.attention=flex_attention", "hardware=cpu")
    assert str(error.value) == (
        "model.attention=flex_attention: has no backward pass on a CPU; use model.attention=auto, or "
        "hardware.device=cuda"
    )
    config, _ = configure("model.attention=flex_attention", "hardware=single_gpu")
    assert (config.model.attention, config.hardware.device) == (FLEX, Device.cuda)


def test_a_model_without_sdpa_cannot_use_it(load, monkeypatch):
    monkeypatch.setattr("transformers.models.qwen3.modeling_qwen3.Qwen3PreTrainedModel._supports_sdpa", False)
    with pytest.raises(
        UserError, match=r"model\.attention=flex_attention: cannot be used here .*use model\.att"
    ):
        load("qwen3", attention=FLEX)


def test_the_plan_counts_a_boolean_mask(configure):
    dense, _ = configure("hardware=single_gpu")
    flex, _ = configure("hardware=single_gpu", "model.attention=flex_attention")
    assert tree_mask(dense, 4096) >= 2 * tree_mask(flex, 4096) == 2 * 4096**2
