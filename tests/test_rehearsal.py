"""One update tried before training: it is Adam's first step, leaves nothing, and foretells ratios."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.engine import Request, Sampling, generate
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.rehearsal import (
    Rehearsal,
    clipped_share,
    rehearsal_text,
    rehearse,
    stored_rehearsal,
)
from gspo_cli.training.session import run_training
from gspo_cli.training.strategy import OneProcess
from gspo_cli.types import Message, Problem
from tests.support.models import untouched
from tests.support.whole_runs import SMALL, run

WRONG = '{"rehearsal": {"spread": "x", "clipped": 0, "of_tokens": true, "length": 1}}'
PROBLEMS = [Problem(str(n), (Message("user", f"{n}+{n * n * n}="),)) for n in (1, 7, 15, 120, 9999, 3)]


@pytest.fixture
def tried(configure):
    """`tried(policy, "key=value")`: what is found of PROBLEMS, and the configuration."""

    def try_update(policy, *overrides, problems=PROBLEMS):
        config, _ = configure("training.updates_per_rollout=2", *overrides)
        engine = TransformersEngine(policy, 16)
        strategy = OneProcess(policy, config)
        return rehearse(config, policy, strategy, engine, problems, Prompts(policy.chat)), config

    return try_update


def naive(policy, config):
    """Token log ratios of each measured answer after torch's own AdamW has taken a step on the others."""
    prompts = Prompts(policy.chat)
    ids = [list(prompts.ids(problem.messages)) for problem in PROBLEMS for _ in range(2)]
    requests = [Request(own, derived_seed(config.seed, "rehearsal", i), i) for i, own in enumerate(ids)]
    sampling = Sampling(1.0, 1.0, 0, config.rollout.max_completion_length, policy.chat.stop_ids)
    answers = [answer.token_ids for answer in generate(TransformersEngine(policy, 16), requests, sampling)]

    def logprobs(place):
        whole = torch.tensor([ids[place] + answers[place]])
        logits = policy.model(whole).logits[0, len(ids[place]) - 1 : -1]
        return logits.log_softmax(-1).gather(1, whole[0, len(ids[place]) :, None])[:, 0]

    before = [logprobs(place).detach() for place in range(6, 12)]
    rate = config.algorithm.learning_rate
    optimizer = torch.optim.AdamW(policy.trainable(), lr=rate, weight_decay=0, eps=1e-30)
    for place in range(6):
        ((-1) ** (place + 1) * logprobs(place).mean()).backward()
    optimizer.step()
    return [logprobs(6 + place).detach() - old for place, old in enumerate(before)]


@pytest.mark.parametrize("algorithm", ["gspo", "grpo", "gmpo", "gspo_token", "cispo"])
@pytest.mark.parametrize("settings", [{}, {"use_lora": True}], ids=["whole", "lora"])
def test_it_is_the_first_step_of_adam_on_other_answers(load, tried, algorithm, settings):
    of_tokens = algorithm in ("grpo", "gmpo", "cispo")
    band = ["algorithm.clip_range_left=0.02", "algorithm.clip_range_right=0.01"] if of_tokens else []
    learns = [f"algorithm={algorithm}", "algorithm.learning_rate=1e-3", *band]
    found, config = tried(load("qwen3", **settings), *learns)
    moved = naive(load("qwen3", **settings), config)
    ratios = torch.cat(moved) if of_tokens else torch.stack([each.mean() for each in moved])
    assert found.spread == pytest.approx(ratios.std().item(), rel=1e-3)
    assert found.length == pytest.approx(sum(map(len, moved)) / 6)
    assert found.of_tokens is of_tokens
    left, right = config.algorithm.clip_range
    low, high = (-left, right) if algorithm == "gmpo" else (math.log(1 - left), math.log(1 + right))
    outside = ((ratios < low) | (ratios > high)).float().mean().item()
    assert 0 < outside < 1 or not of_tokens
    # before the second of two updates; cispo clips whatever the advantage, the others half of these
    assert found.clipped == pytest.approx(outside / (2 if algorithm == "cispo" else 4))


def test_nothing_is_left_of_it(load, tried):
    policy = load("qwen3", use_lora=True)
    with untouched(policy):
        assert tried(policy)[0] == tried(policy)[0]


def test_weights_are_restored_where_scoring_fails(load, configure, monkeypatch):
    policy = load("qwen3")
    before = copy.deepcopy(policy.state_dict())
    config, _ = configure("training.updates_per_rollout=2")
    strategy = OneProcess(policy, config)

    def fails_after_the_step(*scored, **options):
        if not all(torch.equal(value, before[name]) for name, value in policy.state_dict().items()):
            raise RuntimeError("out of memory")
        return policy(*scored, **options)

    monkeypatch.setattr(strategy, "forward", fails_after_the_step)
    with pytest.raises(RuntimeError, match="out of memory"):
        rehearse(config, policy, strategy, TransformersEngine(policy, 16), PROBLEMS, Prompts(policy.chat))
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        ["training.updates_per_rollout=1"],
        ["algorithm=sapo"],
        ["algorithm=rloo"],
        ["algorithm=dpo"],
    ],
)
def test_where_no_ratio_leaves_a_band_nothing_is_tried(load, tried, settings):
    assert tried(load("qwen3"), *settings)[0] is None
    assert tried(load("qwen3"), problems=PROBLEMS[:1])[0] is None


def test_a_calibrated_band_has_no_share_of_its_own(load, tried):
    found, _ = tried(load("qwen3"), "algorithm.clip_calibration=quantile")
    assert found.spread > 0
    assert found.clipped is None
    assert "the band" not in rehearsal_text(found)


def test_the_share_is_half_of_what_lies_outside_after_each_update():
    ratios = torch.tensor([-0.3, -0.1, 0.0, 0.2])
    assert clipped_share(ratios, -0.25, 0.25, 1) == 0
    assert clipped_share(ratios, -0.25, 0.25, 2) == pytest.approx((0 + 1 / 4) / 2 / 2)
    # after two updates 0.2 has become 0.283, after three -0.1 is still inside
    assert clipped_share(ratios, -0.25, 0.25, 4) == pytest.approx((0 + 1 / 4 + 2 / 4 + 2 / 4) / 2 / 4)
    assert clipped_share(ratios, -math.inf, 0.25, 2) == 0


def test_the_card_says_it():
    assert rehearsal_text(None) == ""
    assert rehearsal_text(Rehearsal(3e-5, 0.0, True, 8)).endswith(
        "8 tokens); the band then clips almost none"
    )
    assert rehearsal_text(Rehearsal(0.0316, 0.2442, False, 11.2)) == (
        "one update moves the ratios of other answers by about 0.032 (measured on answers of 11 tokens); "
        "the band then clips about 24% of those with an advantage"
    )


@pytest.mark.parametrize("rate", [1e-4, 1e-3])
@pytest.mark.parametrize("algorithm", ["gspo", "grpo"])
def test_the_first_iteration_is_as_it_foretells(tmp_path, configure, reporter, algorithm, rate):
    learns = [f"algorithm={algorithm}", f"algorithm.learning_rate={rate}", "training.updates_per_rollout=2"]
    sizes = ["training.num_outer_iterations=1", "training.generations_per_iteration=96", "evaluation.every=0"]
    _, folder = run(configure(*SMALL, *learns, *sizes), tmp_path, reporter)
    said = json.loads((folder.path / "card.json").read_text())["rehearsal"]
    (line,) = folder.read("metrics.jsonl")
    spread = line["ratio/std"] * math.sqrt(2)  # half of the ratios, those before the first update, are 1
    assert said["spread"] / 2 < spread < said["spread"] * 2
    assert said["clipped"] / 2 - 0.01 < line["clip_ratio/token"] < said["clipped"] * 2 + 0.01
    assert rehearsal_text(Rehearsal(**said)) in (folder.path / "card.txt").read_text()


def test_a_run_that_goes_on_keeps_what_its_card_said(tmp_path, configure, reporter):
    few = [*SMALL, "training.updates_per_rollout=2", "evaluation.every=0"]
    _, folder = run(configure(*few, "training.num_outer_iterations=1"), tmp_path, reporter)
    said = folder.read_card()["rehearsal"]
    config, _ = configure(*few, "training.num_outer_iterations=2")
    run_training(config, folder, reporter)
    assert len(folder.read("metrics.jsonl")) == 2
    assert folder.read_card()["rehearsal"] == said
    assert "spread" in (folder.path / "card.txt").read_text()


@pytest.mark.parametrize("card", ["{", "[]", "{}", '{"rehearsal": {"spread": 1}}', WRONG])
def test_a_damaged_card_stops_no_run(tmp_path, card):
    (tmp_path / "card.json").write_text(card)
    assert stored_rehearsal(RunFolder(tmp_path)) is None


def test_where_there_is_no_memory_for_it_the_run_goes_on(tmp_path, configure, reporter, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("gspo_cli.training.session.rehearse", fails)
    few = [*SMALL, "training.num_outer_iterations=1", "evaluation.every=0"]
    summary, folder = run(configure(*few), tmp_path, reporter)
    assert (summary["status"], folder.read_card()["rehearsal"]) == ("completed", None)
    assert any("the card does not say how ratios spread" in text for text in reporter.warnings)
