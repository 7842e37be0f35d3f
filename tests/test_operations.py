"""The useful operations that the benchmarks divide times by, against what PyTorch counts."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gspo_cli.config.choices import Attention, ExpertsImplementation
from gspo_cli.config.model_schema import Shape
from gspo_cli.policy.dimensions import dimensions
from gspo_cli.policy.embedded import write_embedded
from tests.support.models import TEXTS

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
ROWS, LENGTH = 3, 20
# no two widths alike: a formula that takes one for another is off
WIDE = {
    "hidden_size": 64,
    "layers": 6,
    "heads": 4,
    "key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 112,
}


@pytest.fixture(scope="module")
def counting():
    return SimpleNamespace(**runpy.run_path(str(SCRIPTS / "benchmark_operations.py")))


@pytest.fixture(scope="module")
def wide(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("wide")
    write_embedded(root / "wide", Shape(**WIDE), 0, TEXTS)
    write_embedded(root / "wide_moe", Shape(**WIDE, experts=4, experts_per_token=2), 0, TEXTS)
    return root


@pytest.fixture
def eager(load, folders, wide, monkeypatch):
    """`eager("wide", use_lora=True)`: a policy whose attention is matrix products, which are counted."""
    for folder in wide.iterdir():
        monkeypatch.setitem(folders, folder.name, folder)
    return lambda name, **settings: load(name, attention=Attention.eager, **settings)


def counted(policy, ids) -> tuple[int, int]:
    """What PyTorch counts of the plain model, logits of all tokens: forward, and with backward."""
    with FlopCounterMode(display=False) as counter:
        logits = policy.model(input_ids=ids, use_cache=False).logits
        forward = counter.get_total_flops()
        logits.logsumexp(dim=-1).sum().backward()
    return forward, counter.get_total_flops()


LORA = {"use_lora": True, "lora_r": 4}


@pytest.mark.parametrize(
    ("name", "settings", "inputs"),
    [
        ("wide", {}, 0),
        ("gpt2", {}, 0),
        # under LoRA what the first layer's queries, keys and values read needs no gradient
        ("wide", LORA, 64 * (96 + 48 + 48) + 3 * 4 * 64),
        ("gpt2", LORA, 32 * 96 + 4 * 32),
    ],
)
def test_plain_sequences_take_the_operations_that_pytorch_counts(counting, eager, name, settings, inputs):
    policy = eager(name, **settings)
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 200
    # eager attention computes the scores of all pairs and masks those of later tokens
    work = counting.Work(tokens=ROWS * LENGTH, pairs=ROWS * LENGTH * LENGTH, predictors=ROWS * LENGTH)
    forward, both = counted(policy, ids)
    model = dimensions(policy.model)
    assert counting.forward_operations(model, work) == pytest.approx(forward, rel=0.005)
    needed = counting.update_operations(model, work) - 2 * inputs * work.tokens
    assert needed == pytest.approx(both, rel=0.005)


def test_a_token_takes_the_operations_of_its_active_experts(counting, eager):
    policy = eager("wide_moe", experts_implementation=ExpertsImplementation.eager)
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 200
    work = counting.Work(tokens=ROWS * LENGTH, pairs=ROWS * LENGTH * LENGTH, predictors=ROWS * LENGTH)
    forward, _ = counted(policy, ids)
    assert counting.forward_operations(dimensions(policy.model), work) == pytest.approx(forward, rel=0.02)


def test_the_output_layer_counts_for_predictors_of_trained_tokens_only(counting, eager):
    policy = eager("wide")
    ids = torch.arange(LENGTH)[None]
    trained = torch.arange(LENGTH)[None] >= 15
    work = counting.Work.of([(ids[0].tolist(), trained[0].tolist())])
    assert (work.tokens, work.predictors) == (LENGTH, 5)
    work = counting.Work(work.tokens, LENGTH * LENGTH, work.predictors)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy(ids, trained, 1.0)
    assert counting.forward_operations(dimensions(policy.model), work) == pytest.approx(
        counter.get_total_flops(), rel=0.005
    )


def test_work_counts_what_sequences_share_once(counting):
    prompt, trained = [1, 2, 3], [False] * 3 + [True] * 2
    work = counting.Work.of(
        [([*prompt, 4, 5], trained), ([*prompt, 6, 7], trained), ([*prompt, 4, 8], trained)]
    )
    assert work.tokens == 3 + 5  # 4 5, 8 after the same 4, and 6 7
    assert work.pairs == (1 + 2 + 3) + (4 + 5) + 5 + (4 + 5)
    assert work.predictors == 3  # the 3, the 4 and the 6


def test_an_iteration_scores_all_minibatches_but_the_first(counting, eager):
    model = dimensions(eager("wide").model)
    groups = [[([1, 2, 3, 4], [False, False, True, True])], [([5, 6, 7, 8], [False, False, True, True])]]
    work = counting.Work.of(groups[0])
    found = counting.operations_of_iteration(model, groups, updates=2)
    assert found["score_operations"] == counting.forward_operations(model, work)
    assert found["update_operations"] == 2 * counting.update_operations(model, work)
